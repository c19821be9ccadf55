"""Result files: what is in them, and that a half-written one is never there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardflow.bench import results


def test_a_file_says_what_it_is_from_and_has_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "it.json"
    results.write(path, "soak", {"options": {"minutes": 5}, "series": [{"seconds": 1}]}, argv=["b/soak.py", "--x"])
    found = json.loads(path.read_text())
    assert list(found) == ["benchmark", "command", "time", "options", "series"]
    assert found["benchmark"] == "soak"
    assert found["command"] == "python b/soak.py --x"
    assert found["time"].endswith("+00:00")
    assert found["series"] == [{"seconds": 1}]


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    results.write(
        tmp_path / "it.json", "x", {"figures": {"a": float("nan"), "b": [float("inf"), 1.5, (2,)]}}, argv=["x"]
    )
    assert json.loads((tmp_path / "it.json").read_text())["figures"] == {"a": None, "b": [None, 1.5, [2]]}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    results.write(path, "x", {}, argv=["x"])
    before = path.read_text()
    with pytest.raises(TypeError):
        results.write(path, "x", {"figures": {"one": 1, "other": object()}}, argv=["x"])
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_flat_answer_becomes_parts() -> None:
    answer = {"per_s": 5, "options": {"a": 1}, "environment": {}, "runs": [{"per_s": 5}], "lost": 0}
    assert results.parts(answer) == {
        "options": {"a": 1},
        "environment": {},
        "runs": [{"per_s": 5}],
        "figures": {"per_s": 5, "lost": 0},
    }


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/home/me/.venv/bin/shardflow", "bench", "latency", "--rate", "9"], "shardflow bench latency --rate 9"),
        (["/somewhere/shardflow/cli/__main__.py", "bench", "latency"], "shardflow bench latency"),
        (["benchmarks/soak.py", "--set", "a=b c"], "python benchmarks/soak.py --set 'a=b c'"),
        (["{here}/benchmarks/soak.py", "{here}/results/it.json"], "python benchmarks/soak.py results/it.json"),
        (["{here}/benchmarks/compare/__main__.py", "--quick"], "python benchmarks/compare --quick"),
        (["x.py", "--out=/home/me/it.json", "/home/me/c.yaml"], "python x.py --out=it.json c.yaml"),
    ],
)  # fmt: skip
def test_a_command_names_no_folder_of_this_machine(argv: list[str], told: str) -> None:
    assert results.command([each.replace("{here}", str(Path.cwd())) for each in argv]) == told

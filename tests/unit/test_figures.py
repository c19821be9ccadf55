"""`benchmarks/figures.py` and `benchmarks/all.py`: what the documentation says is what the result files say."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from unit import bench_samples as samples


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder with all results, in which every promise is kept."""
    for steps, rate in ((0, 50_000), (1, 28_000), (3, 16_000)):
        for name in (f"throughput-{steps}", f"throughput-4096-{steps}"):
            data = samples.throughput(steps, rate, rate * 5 // 4)
            data["figures"] |= {
                "submit_per_s": 60_000,
                "submit_postgres_cpu_us_per_workflow": 10.0,
                "rows_per_workflow": 3,
            }
            data["options"]["payload"] = 4096 if "4096" in name else 100
            samples.write(tmp_path, name, data)
    data["options"] |= {"retention": 0.5, "payload": 100}
    data["figures"] |= {"retention_workflows_per_s": 15_000, "ratio_with_retention": 0.94}
    samples.write(tmp_path, "throughput-retention", data)
    for rate in (10, 100, 500, 1_000):
        samples.write(tmp_path, f"latency-{rate}", samples.latency(rate))
    samples.write(tmp_path, "latency-backlog", samples.latency(100, 18, 190, backlog=100_000))
    for name in ("compare", "scaleout", "soak", "horizon", "million", "sleepers"):
        samples.write(tmp_path, name, samples.everything()[name])
    data = samples.compare()
    data["options"]["shards"] = 3
    samples.write(tmp_path, "compare-shards", data)
    million = samples.million()
    for each in million["figures"]["operations"]:
        each["ratio"] = min(each["ratio"], 1.4)
    samples.write(tmp_path, "million", million)
    return tmp_path


def _change(path: Path, *places: str, to: Any) -> None:
    data = value = json.loads(path.read_text())
    for place in places[:-1]:
        value = value[place]
    value[places[-1]] = to
    path.write_text(json.dumps(data))


def test_the_documentation_says_what_the_results_say(part: Any) -> None:
    assert part("figures").stale() == [], "run: python benchmarks/figures.py"


def test_every_block_says_something_of_complete_results(part: Any, measured: Path) -> None:
    results = part("figures").read(measured)
    for name, block in part("_blocks").BLOCKS.items():
        assert block(results), name
        assert block({}) == "" or name == "promises"
    drawn = part("figures").drawings(measured)
    assert part("_blocks").PICTURES.keys() <= drawn.keys()


def test_blocks_are_filled_and_the_rest_stays(part: Any, measured: Path) -> None:
    figures = part("figures")
    results, drawn = figures.read(measured), figures.drawings(measured)
    text = "before\n<!-- figures: {} -->\nold\n<!-- end of figures -->\nafter\n"
    made = figures.filled(figures.DOCUMENTS[1], text.format("picture scaleout"), results, drawn)
    title = "8 shards do 7.5 times the work of one: 93 % of linear"
    assert made == (
        f"before\n<!-- figures: picture scaleout -->\n![{title}](pictures/scaleout.png)\n\n"
        f"```sh\n{results['scaleout'].command}\n```\n<!-- end of figures -->\nafter\n"
    )
    made = figures.filled(figures.DOCUMENTS[0], text.format("costs"), results, drawn)
    assert "| 1 | 28,000 |" in made
    assert figures.filled(figures.DOCUMENTS[0], made, results, drawn) == made
    assert figures.filled(figures.DOCUMENTS[0], made, {}, {}) == text.format("costs").replace("old\n", "")
    with pytest.raises(KeyError):
        figures.filled(figures.DOCUMENTS[0], text.format("nonsense"), results, drawn)


def test_a_picture_of_other_figures_is_stale(part: Any, measured: Path, tmp_path: Path) -> None:
    from shardflow.bench.report.make import make

    figures, folder = part("figures"), tmp_path / "pictures"
    make([measured], tmp_path / "it.html", folder)

    def old() -> list[str]:
        return [name for name in figures.stale(measured, folder) if name.endswith(".png")]

    assert old() == []
    (folder / "nobody.png").write_bytes((folder / "soak.png").read_bytes())
    (folder / "horizon.png").unlink()
    _change(measured / "scaleout.json", "options", "runs", to=7)
    assert old() == [f"docs/pictures/{name}.png" for name in ("horizon", "nobody", "scaleout", "scaleout-open")]


def test_kept_promises_are_kept(part: Any, measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert part("all").main(["--check", "--results", str(measured)]) == 0
    assert " no\n" not in capsys.readouterr().out
    assert len(part("_promises").broken({})) == sum(not each.dream for each in part("_promises").PROMISES)


@pytest.mark.parametrize(
    ("name", "places", "value", "said"),
    [
        ("throughput-3", ("figures", "ratio_to_floor"), 0.64, "of the bare loop, 3 steps"),
        ("throughput-0", ("figures", "submit_per_s"), 49_000, "`submit_many`, workflows/s"),
        ("latency-100", ("figures", "p50_ms"), 5.1, "submit to result at 100/s, median"),
        ("latency-100", ("figures", "idle_queries_per_s"), 2.1, "idle worker: queries/s and shard"),
        ("latency-backlog", ("options", "backlog"), 90_000, "that backlog, workflows"),
        ("soak", ("options", "minutes"), 5, "that soak, minutes"),
        ("soak", ("figures", "lost"), 1, "results with anything lost, there twice or wrong"),
        (
            "horizon",
            ("figures", "pinned_to_unpinned"),
            0.7,
            "throughput beside a transaction held open, of that without",
        ),
    ],
)
def test_a_broken_promise_is_named(
    part: Any, measured: Path, name: str, places: tuple[str, ...], value: float, said: str
) -> None:
    _change(measured / f"{name}.json", *places, to=value)
    promises = part("_promises")
    assert [each.what for each in promises.broken(part("figures").read(measured))] == [said]
    assert part("all").main(["--check", "--results", str(measured)]) == 1


def test_a_dream_is_told_and_not_judged(part: Any, measured: Path) -> None:
    _change(measured / "throughput-0.json", "figures", "workflows_per_s", to=42_000)
    promises = part("_promises")
    results = part("figures").read(measured)
    assert "no" in [row[3] for row in promises.table(results)]
    assert promises.broken(results) == []


def test_what_is_promised_and_shown_is_measured(part: Any) -> None:
    jobs = {job.name for job in part("all").JOBS}
    assert {each.command for each in part("_promises").PROMISES} - {"all"} <= jobs
    assert {name for names in part("_blocks").PICTURES.values() for name in names} <= jobs
    for document in part("figures").DOCUMENTS:
        names = re.findall(r"<!-- figures: picture (\S+) -->", document.read_text())
        assert names
        assert set(names) <= part("_blocks").PICTURES.keys()


def test_only_what_is_wanted_and_not_there_is_measured(
    part: Any, measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything, begun = part("all"), []
    monkeypatch.setattr(everything, "run", lambda job, folder, quick: begun.append(job.name) or job.name != "soak")
    monkeypatch.setattr(everything, "judge", lambda results: 0)
    for name in ("soak", "compare"):
        _change(measured / f"{name}.json", "time", to="2020-01-01T00:00:00+00:00")
    for path in measured.glob("*.json"):
        if path.stem not in ("soak", "compare"):
            _change(path, "time", to="2999-01-01T00:00:00+00:00")
    where = ["--results", str(measured), "--resume", "5"]
    assert everything.main([*where, "--only", "compare,million"]) == 0
    assert begun == ["compare"]
    assert everything.main(where) == 1
    assert begun == ["compare", "compare", "soak"]
    assert "failed: soak" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        everything.main(["--only", "nonsense"])
    with pytest.raises(SystemExit):
        everything.main(["--quick"])


def test_a_job_that_takes_far_too_long_is_stopped(
    part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = part("all")
    monkeypatch.setattr(everything, "_MARGIN", 0.5)
    job = everything.Job("endless", "python -c 'import threading; threading.Event().wait()'", 0.0, "")
    assert everything.run(job, tmp_path, False) is False
    assert "endless ended" in capsys.readouterr().err


def test_the_quick_form_of_an_option_comes_last(part: Any) -> None:
    job = part("all").Job("it", "python it.py --runs 5", 1, "--runs 1")
    assert job.line(Path("f.json"), True) == [
        sys.executable,
        "it.py",
        "--runs",
        "5",
        "--runs",
        "1",
        "--out",
        "f.json",
    ]
    assert job.line(Path("f.json"), False) == [sys.executable, "it.py", "--runs", "5", "--out", "f.json"]

"""The demo's judgement: it agrees where the steps are right, and turns red at every kind of wrong."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from shardflow import ClusterConfig, ShardConfig, load_config
from shardflow.demo import local
from shardflow.demo.app import ROOT, Record, index
from shardflow.demo.ledger import STEPS, VARIABLE, Audit, Line, audit, note, read
from shardflow.demo.truth import Evidence, compute, differences, find_files

FILES = ["ast.py", "json/decoder.py", "email/message.py"]


def test_the_steps_and_the_direct_computation_agree():
    files = [*FILES, *find_files(ROOT, 8, 3)]
    assert [index(file) for file in files] == [compute(ROOT, file) for file in files]
    assert compute(ROOT, "ast.py").code.classes > 10


@pytest.mark.parametrize("data", [b"", b"x = 1", b"a\r\nb\rc\n", b"\xff\xfe", b"def f(:", b"x = '\0'", b"(" * 300])
def test_they_agree_on_odd_files_too(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "odd.py").write_bytes(data)
    monkeypatch.setattr("shardflow.demo.app.ROOT", tmp_path)
    assert index("odd.py") == compute(tmp_path, "odd.py")


def test_the_same_seed_finds_the_same_files(tmp_path: Path):
    for name in ("a.py", "b/c.py", "b/d.txt", "site-packages/e.py", "f.py", "g.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(find_files(tmp_path, None, 1)) == ["a.py", "b/c.py", "f.py", "g.py"]
    assert find_files(tmp_path, 2, 1) == find_files(tmp_path, None, 1)[:2]
    assert len({tuple(find_files(tmp_path, None, seed)) for seed in range(20)}) > 5


def lines(*places: tuple[str, str]) -> list[Line]:
    return [Line(0.0, 1, place, file) for file, place in places]


GOOD = [(file, place) for place in (*STEPS, "end") for file in FILES]


def test_a_ledger_in_order_is_clean():
    assert audit(lines(*GOOD), FILES) == Audit(9, 0, [], [])


def test_a_step_may_start_again_until_what_follows_has_started():
    again = lines(
        ("a", "read"), ("a", "read"), ("a", "parse"), ("a", "parse"), ("a", "summarise"), ("a", "summarise")
    )
    assert audit(again, ["a"]) == Audit(6, 3, [], [])
    assert audit([*again, *lines(("a", "end"), ("a", "end"))], ["a"]).past == []


@pytest.mark.parametrize(("step", "after"), [("read", "parse"), ("parse", "summarise"), ("summarise", "end")])
def test_a_step_that_starts_after_its_checkpoint_is_found(step: str, after: str):
    file = FILES[0]
    place = GOOD.index((file, after)) + 1
    assert audit(lines(*GOOD[:place], (file, step), *GOOD[place:]), FILES).past == [(file, step)]


def test_a_step_that_never_started_is_found():
    assert audit(lines(*(g for g in GOOD if g != (FILES[1], "parse"))), FILES).missing == [(FILES[1], "parse")]


def test_notes_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shardflow.demo.ledger._file", None)
    note("read", "nobody keeps this")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "ledger"))
    note("read", "a b.py")
    note("end", "ü.py")
    assert [(line.place, line.file) for line in read(tmp_path / "ledger")] == [("read", "a b.py"), ("end", "ü.py")]


TRUTH = {file: compute(ROOT, file) for file in FILES}


def evidence(**changes: object) -> Evidence:
    counts = {"submitted": 3, "succeeded": 3, "steps": 9, "failed": 0, "ready": 0, "running": 0, "suspended": 0}
    right = Evidence(dict(TRUTH), {}, {"pg1": counts}, {"pg1": 3}, audit(lines(*GOOD), FILES))
    return replace(right, **changes)  # type: ignore[arg-type]


def wrong(record: Record, **changes: int) -> Record:
    return replace(record, code=replace(record.code, **changes))


def test_right_evidence_has_no_differences():
    assert differences(TRUTH, evidence()) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"records": {**TRUTH, "ast.py": wrong(TRUTH["ast.py"], functions=1)}}, "ast.py: the cluster says"),
        (
            {"records": {**TRUTH, "ast.py": replace(TRUTH["ast.py"], content=TRUTH["json/decoder.py"].content)}},
            "sum of bytes",
        ),
        ({"records": {file: TRUTH[file] for file in FILES[1:]}}, "ast.py: lost"),
        ({"records": {**TRUTH, "more.py": TRUTH["ast.py"]}}, "more.py: has a result and was never submitted"),
        ({"records": {file: TRUTH[file] for file in FILES[1:]}, "failures": {"ast.py": "E: m"}}, "no result: E: m"),
        ({"routed": {"pg1": 2}}, "2 workflows were submitted for 3 files"),
        ({"audit": Audit(10, 1, [("ast.py", "read")], [])}, "ast.py: step read started after its checkpoint"),
        ({"audit": Audit(8, 0, [], [("ast.py", "parse")])}, "ast.py: step parse never started"),
        *(
            ({"counts": {"pg1": evidence().counts["pg1"] | {name: 7}}}, f"its database has 7 {name}")
            for name in evidence().counts["pg1"]
        ),
    ],
)
def test_each_kind_of_wrong_is_found(changes: dict[str, object], complaint: str):
    assert any(complaint in line for line in differences(TRUTH, evidence(**changes)))


def test_a_written_configuration_reads_back_and_is_the_owners_alone(tmp_path: Path):
    config = ClusterConfig("dev", (ShardConfig("pg1", "postgresql://u:pa$s@h:1/d"), ShardConfig("pg2", "host=b")), 96)
    path = tmp_path / "cluster.yaml"
    for _ in range(2):
        local.write(config, path)
    assert load_config(path) == config
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

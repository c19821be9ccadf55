"""The checker on ledgers and tables written by hand: each letter can turn red, and what is right stays clean."""

from __future__ import annotations

import json

import pytest
from faults.checker import Entry, Shard, judge, recompute
from faults.history import read

VALUES, RESULT = recompute("a")

LEDGER = [
    "plan 0 0.5000 kill-worker 1 0s",
    "intend a",
    "accept a",
    "begin a 0 7 w1",
    "start a 0 0 7 w1",
    f"record a 0 {VALUES[0]} w1",
    "start a 1 0 7 w1",
    "fire 0 1",
    "begin a 1 8 w2",
    "start a 1 1 8 w2",
    f"record a 1 {VALUES[1]} w2",
    "start a 2 1 8 w2",
    f"record a 2 {VALUES[2]} w2",
    f"result a {RESULT}",
]

AUDIT: list[Entry] = [
    (1, 100, "open", 7, 101, 0),
    (2, 101, "claim", None, None, 1),
    (3, 101, "step", None, None, 1),
    (4, 110, "open", 8, 111, 0),
    (5, 110, "end", 7, 101, 0),
    (6, 111, "claim", None, None, 1),
    (9, 111, "step", None, None, 2),
    (10, 111, "outcome", None, None, 1),
    (11, 111, "end", 8, 111, 0),
]


def coded(value: object) -> bytes:
    return json.dumps(value).encode()


def tables() -> dict[str, Shard]:
    first = Shard(entries=list(AUDIT))
    first.ends.append(("a", "succeeded", coded(RESULT)))
    first.steps["a"] = {seq: coded(value) for seq, value in enumerate(VALUES)}
    return {"one": first, "two": Shard(entries=[])}


def letters(ledger: list[str] | None = None, shards: dict[str, Shard] | None = None) -> str:
    found = judge(read(LEDGER if ledger is None else ledger), tables() if shards is None else shards).found
    return "".join(found)


def test_a_run_that_is_right_is_clean() -> None:
    verdict = judge(read(LEDGER), tables())
    assert verdict.clean, verdict
    assert (verdict.accepted, verdict.starts, verdict.replays, verdict.fired, verdict.leases) == (1, 4, 1, 1, 2)


def test_lost_an_acknowledged_workflow_that_has_not_ended() -> None:
    assert letters([*LEDGER, "intend b", "accept b"]) == "L"
    assert letters([*LEDGER, "intend b"]) == ""


def test_lost_an_acknowledged_checkpoint_that_is_not_there() -> None:
    assert letters([*LEDGER, "start b 0 0 8 w2", f"record b 0 {recompute('b')[0][0]} w2"]) == "L"


def test_duplicated_two_ends_of_one_id() -> None:
    shards = tables()
    shards["two"].ends.append(("a", "succeeded", coded(RESULT)))
    shards["two"].steps["a"] = dict(shards["one"].steps["a"])
    shards["two"].entries = AUDIT
    assert letters(shards=shards) == "D"


def test_repeated_a_step_that_starts_after_its_acknowledgement() -> None:
    assert letters([*LEDGER, "start a 1 1 8 w2"]) == "C"


def moved(entry: Entry, seq: int) -> list[Entry]:
    return sorted([*(e for e in AUDIT if e != entry), (seq, *entry[1:])])


@pytest.mark.parametrize(
    ("audit", "why"),
    [
        (moved(AUDIT[2], 6), "a write behind the end of its lease"),
        (moved(AUDIT[7], 12), "an outcome behind the release"),
        (moved(AUDIT[1], 7), "a claim behind the end of its lease"),
        (
            [*AUDIT[:3], (4, 120, "resume", 7, 121, 0), (5, 101, "wait", None, None, 1), *AUDIT[3:]],
            "resumed elsewhere",
        ),
        ([(1, 99, "wait", None, None, 1), *AUDIT[0:]], "a backend that never had a lease"),
        (AUDIT[:7] + AUDIT[8:], "an outcome that no entry tells of"),
        (AUDIT[:2] + AUDIT[3:], "a step that no entry tells of"),
        ([(seq, pid, what, lease and lease + 90, *rest) for seq, pid, what, lease, *rest in AUDIT], "unknown leases"),
    ],
)
def test_dead_leases_that_something_was_written_under(audit: list[Entry], why: str) -> None:
    shards = tables()
    shards["one"].entries = audit
    assert letters(shards=shards) == "F", why


def test_a_resumed_lease_and_a_pid_used_again_are_no_dead_leases() -> None:
    shards = tables()
    shards["one"].entries = [
        *AUDIT[:3],
        (4, 110, "open", 8, 101, 0),  # the holder of lease 7 is dead, and its pid has become another's
        (5, 101, "claim", None, None, 1),
        (6, 110, "end", 7, 101, 0),
        (7, 101, "step", None, None, 1),
        (8, 130, "resume", 8, 131, 0),
        (9, 131, "step", None, None, 1),
        (10, 131, "outcome", None, None, 1),
        (11, 131, "end", 8, 131, 0),
    ]
    assert letters(shards=shards) == ""


def test_without_an_audit_dead_leases_are_not_decided() -> None:
    shards = tables()
    for shard in shards.values():
        shard.entries = None
    assert letters(shards=shards) == ""


def test_a_lease_without_a_writer_cannot_be_judged() -> None:
    shards = tables()
    shards["one"].entries = [(1, 100, "open", 7, None, 0)]
    with pytest.raises(ValueError, match="lease 7 on one"):
        letters(shards=shards)


@pytest.mark.parametrize(
    ("status", "output"), [("succeeded", coded(RESULT + 1)), ("failed", None), ("failed", coded(RESULT))]
)
def test_wrong_results(status: str, output: bytes | None) -> None:
    shards = tables()
    shards["one"].ends = [("a", status, output)]
    assert letters(shards=shards) == "R"


def test_wrong_checkpoints() -> None:
    shards = tables()
    shards["one"].steps["a"][1] = coded(-1)
    assert letters(shards=shards) == "R"


def test_wrong_a_missing_checkpoint_of_an_ended_workflow() -> None:
    shards = tables()
    del shards["one"].steps["a"][1]
    shards["one"].entries = [(*e[:5], 1) if e[2] == "step" else e for e in AUDIT]
    assert letters([line for line in LEDGER if not line.startswith("record a 1")], shards) == "R"


@pytest.mark.parametrize("line", ["record a 0 5 w1", "record a 3 5 w1", "result a 5", "result a failed"])
def test_wrong_answers(line: str) -> None:
    assert "R" in letters([*LEDGER, line])


@pytest.mark.parametrize("instead", [[], ["fire 0 0"]])
def test_unfired_faults(instead: list[str]) -> None:
    assert letters([*(line for line in LEDGER if not line.startswith("fire")), *instead]) == "N"


@pytest.mark.parametrize("line", ["start a 0 0 7", "start a x 0 7 w1", "began a", "", "fire 0 many", "plan 0"])
def test_what_is_no_line_of_the_ledger_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of the ledger"):
        read([line])


def test_results_differ_between_workflows() -> None:
    assert len({recompute(f"run-{i}")[1] for i in range(100)}) > 90

"""Schedules of faults: drawn from a seed, printed, read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.schedule import FIRST, LAST, Fault, Kind, given, parse, plan, seed

NUMBERS = {Kind.KILL_WORKER: 40, Kind.FREEZE_WORKER: 12, Kind.STOP_SERVER: 5, Kind.KILL_SERVER: 5}


def written(faults: list[Fault]) -> str:
    return "\n".join(map(str, faults))


def drawn(seed: int) -> list[Fault]:
    return plan(seed, NUMBERS, workers=4, servers=3, freeze=2.0, down=0.5)


def test_a_seed_makes_one_schedule_and_another_seed_another() -> None:
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_a_schedule_has_what_was_asked_for_in_order() -> None:
    faults = drawn(7)
    assert {kind: sum(f.kind is kind for f in faults) for kind in Kind} == NUMBERS
    assert faults == sorted(faults)
    assert all(FIRST <= f.at <= LAST for f in faults)
    assert {f.target for f in faults if not f.kind.hits_server} == {0, 1, 2, 3}
    assert {f.target for f in faults if f.kind.hits_server} == {0, 1, 2}
    assert all(2.0 <= f.seconds <= 3.0 for f in faults if f.kind is Kind.FREEZE_WORKER)
    assert all(0.5 <= f.seconds <= 0.75 for f in faults if f.kind.hits_server)


def test_what_a_schedule_prints_is_read_again() -> None:
    assert parse(written(drawn(7))) == drawn(7)
    assert parse(written(drawn(7)[::-1])) == drawn(7)


@pytest.mark.parametrize("text", ["0.5 kill-worker 1", "0.5 kill-nobody 1 0s", "half kill-worker 1 0s"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_the_environment_gives_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDFLOW_FAULT_SEED", "17")
    assert seed() == 17
    monkeypatch.delenv("SHARDFLOW_FAULT_SEED")
    assert seed() != seed()


def test_the_environment_gives_a_schedule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert given() is None
    (tmp_path / "plan").write_text(written(drawn(7)[:3]) + "\n")
    monkeypatch.setenv("SHARDFLOW_FAULT_PLAN", str(tmp_path / "plan"))
    assert given() == drawn(7)[:3]

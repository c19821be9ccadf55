"""A fault at every message of a commit loop's connection: whatever was under way, nothing is lost or done twice.

`SHARDFLOW_SWEEP=all` sweeps over all messages of a short run; the default is an even sample.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from faults.proxy import cut, reset
from faults.proxy_link import Way
from faults.proxy_sweep import Point, Sweep, spread, sweeping
from support.lab import Lab

ALL = os.environ.get("SHARDFLOW_SWEEP") == "all"
#: Share of the faults that must come while work is left. The last messages of a sample may not, in a run that takes
#: fewer turns than the one that was counted.
ENOUGH = 0.6

pytestmark = pytest.mark.timeout(1800 if ALL else 150)


@pytest.fixture(scope="module")
def sweep(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    with sweeping(lab, tmp_path_factory.mktemp("sweep")) as made:
        yield made


def points(sweep: Sweep, way: Way, cases: int) -> Iterable[Point]:
    """All messages, or so many of them; of those that the server sends, the ones that end an exchange.

    A turn is one exchange, and not answered until then.
    """
    if ALL:
        return (Point(way, number) for number in itertools.count(1))
    kinds = "" if way is Way.UP else "Z"
    return [Point(way, number, kinds) for number in spread(sweep.messages(way, kinds), cases)]


def demand(sweep: Sweep, share: float) -> None:
    """A clean verdict over all cases so far, and most faults hit."""
    verdict = sweep.on.verdict()
    print(
        f"{sweep.hit} faults while work was left in {sweep.cases} cases so far, {share:.0%} of this test's\n{verdict}"
    )
    assert verdict.clean, f"logs in {sweep.on.logs}\n{verdict}"
    assert verdict.fired == sweep.hit
    assert share >= ENOUGH


@pytest.mark.parametrize("way", list(Way), ids=["sent", "answered"])
def test_a_worker_killed_at_a_message(sweep: Sweep, way: Way) -> None:
    """Sent: the server gets all that came before the message. Answered: it has done it, and the answer is lost."""
    demand(sweep, sweep.over(points(sweep, way, 12), sweep.kill_at))


@pytest.mark.parametrize("way", list(Way), ids=["sent", "answered"])
def test_a_connection_lost_at_a_message(sweep: Sweep, way: Way) -> None:
    """The worker lives: it has to find out what became of its turn, and goes on with what it has in memory."""
    before = sweep.on.verdict().replays

    def case(point: Point) -> bool:
        return sweep.spoil_at(point, reset if point.number % 2 else cut)

    demand(sweep, sweep.over(points(sweep, way, 12), case))
    assert sweep.on.verdict().replays == before, "a worker started over instead of going on"


def test_a_connection_lost_again_while_the_worker_resumes(sweep: Sweep) -> None:
    def case(point: Point) -> bool:
        return sweep.spoil_at(point, cut, again=1 + 5 * point.number % 23)

    demand(sweep, sweep.over(points(sweep, Way.UP, 6), case))


def test_the_sweep_turns_red_when_workflows_go_on_before_the_commit(lab: Lab, tmp_path: Path) -> None:
    """The positive control."""
    with sweeping(lab, tmp_path, mutants=["acknowledge_before_commit"]) as mutant:
        last = mutant.messages(Way.UP)
        for number in range(last, 0, -last // 10):
            mutant.kill_at(Point(Way.UP, number))
            if "C" in mutant.on.verdict().found:
                return
    pytest.fail("the mutant was not noticed")

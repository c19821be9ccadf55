"""Workers killed at the nastiest moments of what workflows can do: each effect is seen exactly once, and each case is
red where the guard that it is about is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.kill_cases import CASES, Case
from faults.kill_stand import Stand, Wrong
from faults.nursery import Nursery

from shardflow import AsyncClient, ClusterConfig

MakeCluster = Callable[..., ClusterConfig]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd and /proc")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    none = tmp_path_factory.mktemp("kills")
    made = Nursery(none, none, none, (), 20, "faults.kill_app")
    try:
        yield made
    finally:
        made.close()


async def play(case: Case, mutated: bool, make_cluster: MakeCluster, nursery: Nursery, folder: Path) -> None:
    config = make_cluster(shards=case.shards)
    spoil = mutated and " " in case.mutant
    mutants = (case.mutant,) if mutated and not spoil else ()
    given, later = ((), mutants) if case.later else (mutants, ())
    async with AsyncClient(config) as client:
        patience = case.waits if mutated else 60.0
        stand = Stand(config, client, nursery, folder, case.point, given, later, patience)
        if spoil:
            stand.everywhere(case.mutant)
        try:
            await ((mutated and case.mutated) or case.play)(stand)
            await stand.expect_the_end()
        finally:
            stand.close()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_killed_there(case: Case, make_cluster: MakeCluster, nursery: Nursery, tmp_path: Path) -> None:
    await play(case, False, make_cluster, nursery, tmp_path)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_red_where(case: Case, make_cluster: MakeCluster, nursery: Nursery, tmp_path: Path) -> None:
    with pytest.raises(Wrong, match=case.red):
        await play(case, True, make_cluster, nursery, tmp_path)

"""Workers killed at the nastiest moments of what workflows can do: each effect is seen exactly once, and each case is
red where the guard that it is about is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.kill_app import effects, node
from faults.kill_cases import CASES, Case
from faults.kill_stand import Stand, Wrong
from faults.kill_wide_cases import WIDE_CASES
from faults.nursery import Nursery

from shardflow import AsyncClient, ClusterConfig, ShardUnavailable
from shardflow.delivery import sender
from shardflow.storage import submissions

MakeCluster = Callable[..., ClusterConfig]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd and /proc")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    none = tmp_path_factory.mktemp("kills")
    made = Nursery(none, none, none, (), 20, "faults.kill_wide_app")
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


@pytest.mark.parametrize("case", CASES + WIDE_CASES, ids=str)
async def test_killed_there(case: Case, make_cluster: MakeCluster, nursery: Nursery, tmp_path: Path) -> None:
    await play(case, False, make_cluster, nursery, tmp_path)


@pytest.mark.parametrize("case", CASES + WIDE_CASES, ids=str)
async def test_red_where(case: Case, make_cluster: MakeCluster, nursery: Nursery, tmp_path: Path) -> None:
    with pytest.raises(Wrong, match=case.red) as red:
        await play(case, True, make_cluster, nursery, tmp_path)
    print(f"{case}: {case.mutant}: {red.value}")


#: What a submission may ask for; "other" is another workflow.
ASKED: dict[str, dict[str, Any]] = {
    "delay": {"delay": 0.2},
    "after": {"after": "other", "on_failure": "run"},
    "attributes and timeout": {"attributes": {"tenant": 7}, "timeout": 600.0},
    "all but delay": {"attributes": {"tenant": 7}, "after": "other", "timeout": 600.0, "priority": 3},
}


class Lost:
    """Stands before `submissions.submit` and loses the answer to the first call for `effects`: it has committed."""

    def __init__(self) -> None:
        self.lost = 0
        self._real = submissions.submit

    async def __call__(self, shard: Any, conn: Any, generation: int, new: Any, seconds: float = 0.0) -> Any:
        made = await self._real(shard, conn, generation, new, seconds)
        if new[0].name == "effects" and not self.lost:
            self.lost += 1
            await conn.close()
            raise ShardUnavailable("the answer is lost", shard=shard.name)
        return made


async def submit_once(
    config: ClusterConfig, nursery: Nursery, folder: Path, patch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """A client's connection is lost after the COMMIT of a submission; a worker runs what is there."""
    lost = Lost()
    async with AsyncClient(config) as client:
        stand = Stand(config, client, nursery, folder, "")
        try:
            other = await client.submit(node, "other", True, id="other")
            patch.setattr(submissions, "submit", lost)
            handle = await client.submit(effects, 1, **asked)
            assert lost.lost == 1
            query = "SELECT count(*) FROM {}"
            stand.expect("workflows", stand.total(query.format("workflow WHERE name = 'effects'")), 1)
            waits = int("delay" in asked or "after" in asked)
            stand.expect("waiting", stand.total(query.format("wait")), waits)
            stand.expect("ready", stand.total(query.format("ready")), 2 - waits)
            stand.expect("to be registered", stand.total(query.format("outbox")), int("after" in asked))
            stand.successor()
            await client.send("other", "go")
            for each in (handle, other):
                await stand.result(each)
            stand.expect_effects("0", "other")
            await stand.expect_the_end()
        finally:
            stand.close()


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_a_submission_whose_answer_is_lost_is_there_once(
    make_cluster: MakeCluster,
    nursery: Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
) -> None:
    await submit_once(make_cluster(shards=2), nursery, tmp_path, monkeypatch, asked)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
async def test_red_where_the_client_submits_it_under_another_id(
    make_cluster: MakeCluster,
    nursery: Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
) -> None:
    monkeypatch.setattr(sender, "_free", lambda items: all(item.draw is not None for item in items))
    with pytest.raises(Wrong, match="workflows: 2"):
        await submit_once(make_cluster(shards=2), nursery, tmp_path, monkeypatch, asked)

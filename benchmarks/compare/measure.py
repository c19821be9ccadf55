"""One measurement of a rival: everything submitted, then the clock from the first start to the last durable end.

What is counted afterwards is counted in the rival's own tables, from outside.
"""

from __future__ import annotations

import mmap
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import ground
from player import Player, PlayerFailed
from systems import Settings, System

from shardflow.embedded import Servers

_PREPARE_SECONDS = 120.0
_LOOK = 0.005


def play(
    system: System, python: Path, servers: Servers, *, workflows: int, steps: int, settings: Settings
) -> dict[str, Any]:
    """Figures of one run, with one process of the rival for each server, or as many as its settings say.

    Raises PlayerFailed where a process fails or does not come to an end.
    """
    assert system.script is not None
    patience = 60 + 20 * workflows / system.guess[steps]
    processes = settings.get("processes", 1)
    with ground.fresh(servers) as databases, Tally(workflows) as tally, ExitStack() as stack:
        players = []
        for process in range(processes):  # the first of each server makes its schema before the others start
            started = []
            for shard, dsn in enumerate(databases.dsns):
                spec = {"dsn": dsn, "workflows": workflows, "steps": steps, "settings": settings, "tally": tally.path}
                spec |= {"shard": shard, "shards": len(databases.dsns), "process": process, "processes": processes}
                started.append(stack.enter_context(Player(python, system.script, spec)))
            version = {player.hear(_PREPARE_SECONDS)["version"] for player in started}.pop()
            players += started
        empty, wal_start, cpu_start = databases.size(), databases.wal(), databases.cpu()
        began = time.monotonic()
        submitted = _all(players[: len(databases.dsns)], "submit", patience)
        submit_seconds = time.monotonic() - began
        wal_submitted, cpu_submitted = databases.wal(), databases.cpu()
        _all(players, "run", patience)
        _until_run(players, tally, system, patience)
        last = _until_ended(databases, system, workflows)
        cpu_end, wal_end, size = databases.cpu(), databases.wal(), databases.size()
        reports = _all(players, "report", patience)
        finished, steps_found = databases.total(system.finished), workflows * steps
        if system.steps_kept:
            steps_found = databases.total(system.steps_kept)
    begun = [report for report in reports if report["first"]]
    seconds = last - min(report["first"][0] for report in begun)
    worker = sum(report["now"][1] - report["first"][1] for report in begun)
    peaks = [report["rss_mb"] for report in reports if report["rss_mb"] is not None]
    return {
        "version": version,
        "processes": processes * len(databases.dsns),
        "workflows": workflows,
        "seconds": round(seconds, 3),
        "workflows_per_s": round(workflows / seconds, 1),
        "submit_per_s": None if settings.get("direct") else round(workflows / submit_seconds, 1),
        "worker_cpu_us_per_workflow": micros(worker, workflows),
        "postgres_cpu_us_per_workflow": micros(cpu_end - cpu_submitted, workflows),
        "submit_client_cpu_us_per_workflow": micros(sum(each["cpu"] for each in submitted), workflows),
        "submit_postgres_cpu_us_per_workflow": micros(cpu_submitted - cpu_start, workflows),
        "wal_bytes_per_workflow": round((wal_end - wal_start) / workflows),
        "submit_wal_bytes_per_workflow": round((wal_submitted - wal_start) / workflows),
        "disk_bytes_per_workflow": round((size - empty) / workflows),
        "worker_max_rss_mb": max(peaks) if peaks else None,
        "finished": finished,
        "steps_found": steps_found,
        "verified": finished == workflows
        and steps_found == workflows * steps
        and sum(report["workflows"] for report in reports) == workflows
        and sum(report["steps"] for report in reports) == workflows * steps,
    }


def _all(players: list[Player], order: str, seconds: float) -> list[dict[str, Any]]:
    for player in players:
        player.tell(order)
    return [player.hear(seconds) for player in players]


class Tally:
    """A file with a byte for each workflow, which its process sets when the workflow's code has ended: so that who
    waits for the last one asks nothing of the processes and of the server meanwhile."""

    def __init__(self, workflows: int) -> None:
        self._file = NamedTemporaryFile(prefix="compare-")  # noqa: SIM115, closed with the block
        self._file.truncate(workflows)
        self._bytes = mmap.mmap(self._file.fileno(), workflows)
        self._missing = 0
        self.path = self._file.name

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()
        self._file.close()

    def missing(self) -> bool:
        """Whether some workflow's code has not ended."""
        self._missing = self._bytes.find(b"\0", self._missing)
        return self._missing >= 0


def _until_run(players: list[Player], tally: Tally, system: System, seconds: float) -> None:
    until = time.monotonic() + seconds
    while tally.missing():
        for player in players:
            player.check()
        if time.monotonic() > until:
            raise PlayerFailed(f"{system.name} has not run all of its workflows within {seconds:.0f} s")
        time.sleep(_LOOK)


def _until_ended(databases: ground.Databases, system: System, workflows: int) -> float:
    """Waits until the last end is in the tables, which it is soon after its code has run; the steady clock then."""
    until = time.monotonic() + _PREPARE_SECONDS
    while True:
        missing = databases.total(system.left) if system.left else workflows - databases.total(system.finished)
        if missing <= 0:
            return time.monotonic()
        if time.monotonic() > until:
            raise PlayerFailed(f"{system.name}: {missing} workflows have run and are not ended in the tables")
        time.sleep(_LOOK)


def micros(seconds: float, workflows: int) -> float:
    """Microseconds a workflow."""
    return round(seconds / workflows * 1e6, 1)

"""A worker joins a cluster that runs: when it has its leases and first claims, and whether anything was disturbed."""

from __future__ import annotations

import time
from typing import Any

from faults.timing_load import Plan, Stream
from faults.timing_rig import Rig, rig, summary, until


def join(*, shards: int = 4, workers: int = 2, rate: float = 200.0, settle: float = 3.0) -> dict[str, Any]:
    """Starts one more worker beside `workers` on so many shards, under `rate` workflows a second over all of them.

    `settle`: seconds of load before, and behind. Answers figures, in seconds from the moment at which the process had
    loaded its app; how long that took, which is Python's own time, is told too.
    """
    with rig(shards) as on:
        on.start_workers(workers)
        with Stream(on, [Plan(rate / shards, shard, paced=1) for shard in on.shards]) as stream:
            until(lambda: all(on.ends(shard) for shard in on.shards), "work ends everywhere")
            time.sleep(settle)
            began = time.time()
            name = on.start_worker()
            loaded = until(lambda: _first(on, name, "A"), "the app is loaded")
            seen: dict[str, float] = {}
            held: list[int] = []
            last = time.time() + 30
            while time.time() < last:
                now = time.time() - loaded
                if on.everywhere("SELECT 1 FROM {s}.worker WHERE worker = %s", name):
                    seen.setdefault("registered", now)
                if (leases := on.leases(name)) != held:
                    held, seen["last_lease"] = leases, now
                if "begun" not in seen and (begun := _first(on, name, "B")):
                    seen["begun"] = begun - loaded
                    last = min(last, time.time() + settle)
                time.sleep(0.02)
            full = len(on.shards) * on.config.rebalance.min_group
            until(
                lambda: sum(len(on.holders(shard)) for shard in on.shards) <= full, "others step back in its favour"
            )
            seen["balanced"] = time.time() - loaded
            groups = {on.config.shards[shard].name: sorted(on.holders(shard)) for shard in on.shards}
        until(lambda: on.left() == 0, "all work ends")
        repeated, replayed = on.repeated()
        return {
            "leases": [on.config.shards[shard].name for shard in held],
            "groups": groups,
            "seconds_to_load": round(loaded - began, 2),
            **{f"seconds_until_{what}": round(when, 2) for what, when in seen.items()},
            "seconds_to_result": summary([s.answered for s in stream.samples if s.answered is not None]),
            "unanswered": sum(s.answered is None for s in stream.samples),
            "steps_run_twice": repeated,
            "workflows_replayed": replayed,
            "wrong": on.wrong(),
        }


def _first(on: Rig, name: str, kind: str) -> float | None:
    """When the worker wrote its first line of that kind."""
    pid = on.workers[name].pid
    return next((line.at for line in on.journal() if line.pid == pid and line.kind == kind), None)

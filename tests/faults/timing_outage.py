"""One of four servers is down for a while: what the other three do meanwhile, and submits that may go anywhere."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from faults.timing_load import Plan, Stream
from faults.timing_rig import rig, summary, until, windows

SERVERS = 4
DOWN = 3


def outage(*, seconds: float = 20.0, rate: float = 100.0, anywhere: float = 20.0, workers: int = 2) -> dict[str, Any]:
    """Stops one server like a crash for so many seconds, after as many without a fault.

    Arguments: `rate`, workflows a second on each shard; `anywhere`, those with generated ids; `workers`, processes.
    Answers figures, times in seconds.
    """
    with rig(SERVERS, lease={"ttl": 5.0}) as on:
        on.start_workers(workers)
        free, bound = Plan(anywhere), [Plan(rate, shard) for shard in on.shards]
        with Stream(on, [free, *bound], patience=60.0) as stream:
            until(lambda: all(on.ends(shard) for shard in on.shards), "work ends everywhere")
            time.sleep(1.0)
            first = time.time()
            time.sleep(seconds)
            at = time.time()
            on.servers[DOWN].stop("immediate")
            time.sleep(max(0.0, at + seconds - time.time()))
            last = time.time()
            on.servers[DOWN].start()
            back = time.time()
            until(lambda: on.ends(DOWN) and on.ends(DOWN)[-1] > back, "its work goes on")
        until(lambda: on.left() == 0, "all work ends", 120)
        others = [shard for shard in on.shards if shard != DOWN]
        ends = {shard: on.ends(shard) for shard in on.shards}
        pace = {shard: (_pace(ends[shard], first, at), _pace(ends[shard], at, last)) for shard in others}
        before, during = (sum(both[k] for both in pace.values()) for k in (0, 1))
        beside = [plan for plan in bound if plan.shard != DOWN]
        away = [s for s in stream.of(free) if at <= s.at < last]
        return {
            "down": round(last - at, 1),
            "ends_a_second_before": round(before, 1),
            "ends_a_second_during": round(during, 1),
            "share": round(during / before, 3),
            "least_share_of_a_shard": round(min(b / a for a, b in pace.values()), 3),
            "least_ends_of_a_shard_in_half_a_second": min(min(windows(ends[s], at, last, 0.5)) for s in others),
            "generated_submits": len(away),
            "generated_submits_failed": sum(s.accepted is None for s in away),
            "their_errors": dict(Counter(s.error.split(":")[0] for s in away if s.accepted is None)),
            "seconds_to_submit": summary([s.accepted for s in away if s.accepted is not None]),
            "results_of_others_during": summary(
                [s.answered for s in stream.of(*beside) if s.answered is not None and at <= s.at < last]
            ),
            "accepted_and_unanswered": sum(s.accepted is not None and s.answered is None for s in stream.samples),
            "seconds_until_its_work_goes_on": round(min(t for t in ends[DOWN] if t > back) - back, 2),
            "wrong": on.wrong(),
        }


def _pace(times: list[float], first: float, last: float) -> float:
    """How many a second between the two."""
    return sum(first <= t < last for t in times) / (last - first)

"""Every worker is replaced under load, one by one: what a submitter sees of it, and whether a step repeats."""

from __future__ import annotations

import signal
import time
from typing import Any

from faults.timing_load import Plan, Stream
from faults.timing_rig import quantile, rig, summary, until

#: Seconds of submits whose answers are summed up together, to see the worst of them.
WIDTH = 2.0


def rolling(*, workers: int = 3, rate: float = 150.0, settle: float = 2.0) -> dict[str, Any]:
    """Sends SIGTERM to each worker of two shards, waits for its end, starts another, waits until that one serves.

    Arguments: `workers`, processes; `rate`, workflows a second over both shards; `settle`, seconds between two.
    Answers figures, times in seconds.
    """
    with rig(2) as on:
        names = on.start_workers(workers)
        plans = [Plan(rate / 2, shard, paced=2) for shard in on.shards]
        ending: list[float] = []
        with Stream(on, plans) as stream:
            until(lambda: all(on.ends(shard) for shard in on.shards), "work ends everywhere")
            time.sleep(settle)
            first = time.time()
            for name in names:
                at = time.time()
                on.workers[name].send_signal(signal.SIGTERM)
                if on.workers[name].wait(30):
                    raise AssertionError(f"{name} ended with {on.workers[name].returncode}; see {on.folder}")
                ending.append(time.time() - at)
                other = on.start_worker()
                until(lambda other=other: on.leases(other), f"{other} serves")
                time.sleep(settle)
            last = time.time()
        until(lambda: on.left() == 0, "all work ends")
        answered = [(s.at, s.answered) for s in stream.samples if s.answered is not None]
        meanwhile = [(at, seconds) for at, seconds in answered if first <= at < last]
        parts = [
            [seconds for at, seconds in meanwhile if int((at - first) // WIDTH) == part]
            for part in range(int((last - first) // WIDTH))
        ]
        repeated, replayed = on.repeated()
        return {
            "restarts": len(names),
            "seconds_to_drain": summary(ending),
            "seconds_to_result_before": summary([seconds for at, seconds in answered if at < first]),
            "seconds_to_result": summary([seconds for _, seconds in meanwhile]),
            "worst_p99_of_two_seconds": round(max(quantile(part, 0.99) or 0.0 for part in parts), 3),
            "unanswered": sum(s.answered is None for s in stream.samples),
            "steps_run_twice": repeated,
            "workflows_replayed": replayed,
            "wrong": on.wrong(),
        }

"""One of two workers dies or freezes at full load: when what it held runs elsewhere, and what the other does then."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import Any

from faults.timing_load import Backlog
from faults.timing_rig import Rig, rig, summary, until, windows

#: Seconds of one window of throughput.
WIDTH = 0.25


def takeover(
    number: signal.Signals, *, ttl: float = 10.0, warm: float = 3.0, watch: float = 3.0, depth: int = 3000
) -> dict[str, Any]:
    """Sends the signal to one of two workers on two shards.

    Arguments: `ttl` of the leases; `warm`, seconds of load before; `watch`, seconds of load behind, beyond `ttl`
    where the worker only freezes; `depth` of the backlog on each shard. Answers figures, times in seconds.
    """
    with rig(2, lease={"ttl": ttl}) as on:
        victim, _ = on.start_workers(2)
        with Backlog(on, depth):
            until(lambda: all(on.ends(shard) for shard in on.shards), "work ends everywhere")
            time.sleep(warm)
            for _ in range(20):
                on.workers[victim].send_signal(number)
                at = time.time()
                held = on.claimed(victim)
                if held or number is not signal.SIGSTOP:
                    break
                on.workers[victim].send_signal(signal.SIGCONT)  # it was hit between two claims: nothing is to be seen
                time.sleep(0.05)
            last = at + watch + (ttl if number is signal.SIGSTOP else 0.0)
            looks = _look_on(on, victim, last)
        until(lambda: on.left() == 0, "all work ends", 120)
        if number is signal.SIGSTOP:
            on.workers[victim].send_signal(signal.SIGCONT)
            until(lambda: on.leases(victim), "the frozen one goes on with new leases")
        return _figures(on, victim, held, at, warm, looks)


@dataclass(frozen=True)
class Moment:
    """A look at all shards: when it began, seconds that it took, whether each had work, and who has leases where."""

    at: float
    took: float
    work: bool
    holders: tuple[set[str], ...]


def _look_on(on: Rig, victim: str, last: float) -> list[Moment]:
    """Looks until then. Each look commits a row on every server, so that it takes long where the machine is slow."""
    for shard in on.shards:
        on.rows(shard, "CREATE TABLE IF NOT EXISTS public.look (at timestamptz)")
    looks: list[Moment] = []
    while (now := time.time()) < last:
        ready = [on.rows(shard, "SELECT EXISTS (SELECT FROM {s}.ready)") for shard in on.shards]
        for shard in on.shards:
            on.rows(shard, "INSERT INTO public.look VALUES (now()) RETURNING at")
        holders = tuple(on.holders(shard) for shard in on.shards)
        looks.append(Moment(now, time.time() - now, all(found and found[0][0] for found in ready), holders))
        time.sleep(0.02)
    return looks


def _figures(on: Rig, victim: str, held: set[str], at: float, warm: float, looks: list[Moment]) -> dict[str, Any]:
    # What the victim had sent to the server when it was hit is done all the same.
    done = "SELECT w.id FROM {s}.outcome JOIN {s}.workflow w USING (wf) WHERE finished_at < to_timestamp(%s)"
    held = held - {row[0] for row in on.everywhere(done, at + WIDTH)}
    begun: dict[str, float] = {}
    for line in on.journal():
        if line.kind == "B" and line.id in held and line.at > at and line.pid != on.workers[victim].pid:
            begun.setdefault(line.id, line.at - at)
    ended = [next((look.at - at for look in looks if victim not in look.holders[shard]), None) for shard in on.shards]
    ends = [on.ends(shard) for shard in on.shards]
    both = sorted(t for shard in ends for t in shard)
    last = looks[-1].at
    counts = list(zip(*(windows(shard, at + WIDTH, last, WIDTH) for shard in ends), strict=True))
    # A window in which a look took half of it says nothing of the worker, nor does one in which a queue was empty.
    fair = [
        counts[k]
        for k in range(len(counts))
        if all(look.took < WIDTH / 2 and look.work for look in looks if 0 <= look.at - at - WIDTH - k * WIDTH < WIDTH)
    ]
    return {
        "seconds_until_lease_ended": [None if seconds is None else round(seconds, 2) for seconds in ended],
        "held": len(held),
        "elsewhere": len(begun),
        "seconds_until_elsewhere": summary(list(begun.values())),
        "ends_a_second_before": round(sum(at - warm <= t < at for t in both) / warm),
        "ends_a_second_behind": round(sum(map(sum, counts)) / (len(counts) * WIDTH)),
        "windows": len(counts),
        "fair_windows": len(fair),
        "least_ends_in_a_window": min(map(sum, fair), default=None),
        "least_ends_in_a_window_of_a_shard": min(map(min, fair), default=None),
        "ends_in_windows": counts,
        "ended": len(both),
        "wrong": on.wrong(),
    }

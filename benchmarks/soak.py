"""Hours of mixed work with retention on: does anything grow, slow down or get lost?

One server, worker processes, and a load that they are just able to take (or a given rate): workflows of 0, 1 and 3
steps, sleeps, messages, children, a limited queue. Workflows are deleted some minutes after their end. Passed if the
last tenth of the time, after a warm-up, has 95 % of the first tenth's throughput, if tables and indexes grow no more
in the second half, and if every workflow that was submitted has ended well.

A machine that others share is faster at one time and slower at another. With `--control` a new cluster takes the same
load right behind it, for as long as the warm-up and a tenth: against it, what came with age is seen.

    python benchmarks/soak.py --minutes 60 --control --out benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _soak_stand import Stand, Wanted, mean, size, stand

from shardflow.bench.meters import environment
from shardflow.bench.results import write

#: What the last tenth must have of the first one's throughput; how much larger the second half may be than the first.
LEAST, MOST = 0.95, 1.2
#: Told beside it, not judged: what a workflow cost, and how long the machine took for a loop that is always the same.
COSTS = ("worker_cpu_us", "postgres_cpu_us", "machine_us")


def figures(at: Stand, account: dict[str, int], fresh: Stand | None = None) -> dict[str, Any]:
    """The verdict, from the samples behind the warm-up, and beside it what a `fresh` cluster has shown afterwards."""
    warm = [each for each in at.samples if each["seconds"] > warm_up(at.wanted)]
    tenth = max(1, len(warm) // 10)
    half = len(warm) // 2
    first, last = mean(warm[:tenth]), mean(warm[-tenth:])
    sizes = [size(each) for each in warm] or [0]
    ratio = last / first if first else 0.0
    growth = max(sizes[half:]) / max(sizes[:half] or sizes[:1] or [1]) if max(sizes) else 0.0
    whole = not (
        account["lost"] or account["duplicated"] or account["failed"] or account["left_over"] or account["errors"]
    )
    return {
        "workflows_per_s": round(mean(warm)),
        "first_tenth_per_s": round(first),
        "last_tenth_per_s": round(last),
        "last_to_first": round(ratio, 3),
        **{f"{each}_first_tenth": round(mean(warm[:tenth], each), 1) for each in COSTS},
        **{f"{each}_last_tenth": round(mean(warm[-tenth:], each), 1) for each in COSTS},
        **(_beside(warm[-tenth:], fresh, warm_up(at.wanted)) if fresh is not None else {}),
        "size_growth": round(growth, 3),
        "largest_bytes": dict(sorted(at.largest.items(), key=lambda item: -item[1])[:8]),
        "rss_mb_first": warm[0]["rss_mb"] if warm else None,
        "rss_mb_last": warm[-1]["rss_mb"] if warm else None,
        **account,
        "passed": whole and ratio >= LEAST and 0 < growth <= MOST,
    }


def _beside(last: list[dict[str, Any]], fresh: Stand, behind: float) -> dict[str, Any]:
    samples = [each for each in fresh.samples if each["seconds"] > behind]
    return {
        "fresh_per_s": round(mean(samples)),
        "last_to_fresh": round(mean(last) / mean(samples), 3) if samples else None,
        **{f"{each}_fresh": round(mean(samples, each), 1) for each in COSTS},
    }


def warm_up(wanted: Wanted) -> float:
    """Seconds that do not count, a third of the time at the most: until as much is deleted as comes in, and until
    autovacuum, which looks once a minute, has come by."""
    return min(max(2 * wanted.age + 10, 90), wanted.minutes * 20)


def run(wanted: Wanted, *, control: bool = False) -> dict[str, Any]:
    """The parts of the result file."""
    at, account, surroundings = _run(wanted)
    fresh = None
    if control:
        behind = warm_up(wanted)
        fresh, again, _ = _run(replace(wanted, minutes=(behind + (wanted.minutes * 60 - behind) / 10) / 60))
        account = {name: number + (again[name] if name != "submitted" else 0) for name, number in account.items()}
    options = {**asdict(wanted), "rate": wanted.rate or "as many as are taken", "control": control}
    return {
        "environment": surroundings,
        "options": options,
        "figures": figures(at, account, fresh),
        "series": at.samples,
    }


def _run(wanted: Wanted) -> tuple[Stand, dict[str, int], dict[str, Any]]:
    """A cluster that has taken the load; its account, and where it ran."""
    with stand(wanted) as at:
        asyncio.run(at.run())
        account = asyncio.run(at.account())
        for error in at.load.errors[:3]:
            print(f"error: {error}", file=sys.stderr)
        return at, account, asyncio.run(environment(at.config))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument(
        "--age", type=float, help="seconds for which workflows are kept (default: a twentieth of the time)"
    )
    parser.add_argument("--every", type=float, help="seconds between samples (default: 300 samples, at least 2 s)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--payload", type=int, default=100, help="bytes of each input and result (default: 100)")
    parser.add_argument("--rate", type=float, help="submissions a second (default: as many as are taken)")
    parser.add_argument("--control", action="store_true", help="then a tenth of it with a new cluster")
    parser.add_argument("--quick", action="store_true", help="some seconds only, to see that it works")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there")
    given = parser.parse_args(arguments)
    minutes = 0.15 if given.quick else given.minutes
    if minutes <= 0 or given.workers < 1:
        parser.error("numbers must be above 0")
    wanted = Wanted(
        minutes,
        given.age or (2.0 if given.quick else minutes * 3),
        given.every or (1.0 if given.quick else max(2.0, minutes / 5)),
        given.workers,
        given.payload,
        given.rate or (300.0 if given.quick else None),
    )
    result = run(wanted, control=given.control)
    if given.out:
        write(given.out, "soak", result)
    print(json.dumps(result if given.json else result["figures"], indent=2))
    return 0 if result["figures"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())

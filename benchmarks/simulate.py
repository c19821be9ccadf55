"""Assignment and leases in a simulated cluster: how fast it rests, what moves, what is left alone meanwhile.

A seeded discrete-event simulation, the same for the same arguments: workers join, drain, crash, hang, freeze beyond
the TTL and are cut off from shards; servers go away; backlogs burst; for a time nobody is elected, or two are.
The decisions are those of shardflow.core.assignment, limited in rate, and workers adopt shards that nobody serves.

Why the descent was chosen: see `--algorithm all`. Rendezvous hashing with bounded loads needs no memory, but a
change of one group's size or of the bound reshuffles leases that were fine, and it follows every backlog;
starting from nothing does worse. Neither is better covered or better balanced.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Loaded by its path (from a wheel, say), this file still finds its helpers.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _simulate_rivals import ALGORITHMS
from _simulate_setup import CONNECTIONS_PER_LEASE, Figures, Setup
from _simulate_world import World

CHANGES = ("join", "leave", "crash", "host lost", "freeze", "partition")


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else round(seconds, 2)


def report(setup: Setup, figures: Figures, algorithm: str) -> dict[str, Any]:
    """The figures by name; times in seconds of simulated time."""
    changes = sum(figures.events[what] for what in CHANGES)
    spans = setup.shards * setup.hours * 3_600
    return {
        "algorithm": algorithm,
        "workers": setup.workers,
        "shards": setup.shards,
        "hours": setup.hours,
        "seed": setup.seed,
        "events": dict(sorted(figures.events.items())),
        "first_cover_s": finite(figures.first_cover),
        "first_rest_s": finite(figures.first_rest),
        "to_rest_s": {
            "p50": round(quantile(figures.unrest, 0.5), 2),
            "p99": round(quantile(figures.unrest, 0.99), 2),
            "max": round(max(figures.unrest, default=0.0), 2),
        },
        "leases_opened": figures.opened,
        "leases_closed": figures.closed,
        "leases_opened_per_change": round(figures.opened / max(1, changes), 2),
        "adopted": figures.adopted,
        "uncovered_shard_seconds": round(figures.uncovered, 1),
        "covered_share": round(1 - figures.uncovered / spans, 7),
        "longest_uncovered_s": round(figures.longest_uncovered, 2),
        "unreachable_shard_seconds": round(figures.unreachable, 1),
        "most_leases_per_server": figures.most_leases,
        "most_connections_per_server": figures.most_leases * CONNECTIONS_PER_LEASE,
        "heaviest_load_over_mean": {
            "p50": round(quantile(figures.imbalance, 0.5), 2),
            "p99": round(quantile(figures.imbalance, 0.99), 2),
        },
        "decisions": figures.decisions,
    }


def simulate(setup: Setup, algorithm: str = "descent") -> dict[str, Any]:
    return report(setup, World(setup, ALGORITHMS[algorithm]).run(), algorithm)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--shards-per-server", type=int, default=1)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--algorithm", choices=[*ALGORITHMS, "all"], default="descent")
    parser.add_argument("--no-rebalancer", action="store_true", help="workers only adopt what nobody serves")
    parser.add_argument("--json", action="store_true", help="one line of JSON per algorithm")
    options = parser.parse_args(arguments)
    setup = Setup(
        workers=options.workers,
        shards=options.shards,
        shards_per_server=options.shards_per_server,
        hours=options.hours,
        seed=options.seed,
        rebalancer=not options.no_rebalancer,
    )
    for name in ALGORITHMS if options.algorithm == "all" else [options.algorithm]:
        began = time.perf_counter()
        figures = simulate(setup, name)
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
        if options.json:
            print(json.dumps(figures))
        else:
            for key, value in figures.items():
                print(f"{key:28} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

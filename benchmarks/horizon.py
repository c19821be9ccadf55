"""Mixed work while a transaction elsewhere is held open for minutes, so that no dead row can be removed.

First without it, then with it, then without it again: passed if throughput with it is at least 80 % of that without,
and if every workflow that was submitted has ended well. The work is that of `soak.py`, retention included.

    python benchmarks/horizon.py --minutes 10 --out benchmarks/results/horizon.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
from _soak_stand import Stand, Wanted, mean, size, stand

from shardflow.bench.meters import environment
from shardflow.bench.results import write

#: What throughput must be with the transaction, of that without.
LEAST = 0.8


class Pin:
    """A transaction that keeps what it saw, from one second of the run to another."""

    def __init__(self, at: Stand, begin: float, end: float) -> None:
        self._at = at
        self._begin = begin
        self._end = end
        self._stack = ExitStack()

    def __call__(self, seconds: float) -> None:
        if not self._at.pinned and self._begin <= seconds < self._end:
            conn = self._stack.enter_context(psycopg.connect(self._at.config.shards[0].dsn))
            conn.execute("SET SESSION idle_in_transaction_session_timeout = 0")
            conn.commit()
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            conn.execute("SELECT count(*) FROM shardflow.shard")
            self._at.pinned = True
        elif self._at.pinned and seconds >= self._end:
            self.close()

    def close(self) -> None:
        self._stack.close()
        self._at.pinned = False


def figures(at: Stand, account: dict[str, int], settled: float) -> dict[str, Any]:
    """The verdict; `settled` seconds are warm-up."""
    pinned = [each for each in at.samples if each["pinned"]]
    begin, end = (pinned[0]["seconds"], pinned[-1]["seconds"]) if pinned else (0.0, 0.0)
    before = [each for each in at.samples if settled < each["seconds"] < begin]
    after = [each for each in at.samples if each["seconds"] > end]
    last = pinned[-max(1, len(pinned) // 5) :]
    free = mean(before)
    whole = not (
        account["lost"] or account["duplicated"] or account["failed"] or account["left_over"] or account["errors"]
    )
    ratio = mean(pinned) / free if free else 0.0
    ratio_last = mean(last) / free if free else 0.0
    return {
        "unpinned_per_s": round(free),
        "pinned_per_s": round(mean(pinned)),
        "pinned_last_fifth_per_s": round(mean(last)),
        "after_per_s": round(mean(after)),
        "pinned_to_unpinned": round(ratio, 3),
        "pinned_last_fifth_to_unpinned": round(ratio_last, 3),
        "bytes_before": size(before[-1]) if before else None,
        "bytes_pinned": size(pinned[-1]) if pinned else None,
        "dead_pinned": pinned[-1]["dead"] if pinned else None,
        "largest_bytes": dict(sorted(at.largest.items(), key=lambda item: -item[1])[:8]),
        **account,
        "passed": whole and ratio >= LEAST,
    }


def run(wanted: Wanted, held: float) -> dict[str, Any]:
    """The parts of the result file; `held`, minutes of the transaction."""
    rest = (wanted.minutes - held) * 60
    with stand(wanted) as at:
        pin = Pin(at, rest * 0.7, rest * 0.7 + held * 60)
        try:
            asyncio.run(at.run(pin))
        finally:
            pin.close()
        account = asyncio.run(at.account())
        for error in at.load.errors[:3]:
            print(f"error: {error}", file=sys.stderr)
        return {
            "environment": asyncio.run(environment(at.config)),
            "options": {**asdict(wanted), "held_minutes": held, "rate": wanted.rate or "as many as are taken"},
            "figures": figures(at, account, min(wanted.age + 10, rest * 0.35)),
            "series": at.samples,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the transaction is open (default: 10)")
    parser.add_argument("--beside", type=float, help="minutes before and after it (default: 3, or as long as it)")
    parser.add_argument("--age", type=float, default=30.0, help="seconds for which workflows are kept (default: 30)")
    parser.add_argument("--every", type=float, help="seconds between samples (default: 300 samples, at least 2 s)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--payload", type=int, default=100, help="bytes of each input and result (default: 100)")
    parser.add_argument("--rate", type=float, help="submissions a second (default: as many as are taken)")
    parser.add_argument("--quick", action="store_true", help="some seconds only, to see that it works")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there")
    given = parser.parse_args(arguments)
    held = 0.08 if given.quick else given.minutes
    beside = 0.1 if given.quick else given.beside or min(3.0, held)
    if held <= 0 or beside <= 0 or given.workers < 1:
        parser.error("numbers must be above 0")
    wanted = Wanted(
        held + beside,
        2.0 if given.quick else given.age,
        given.every or (1.0 if given.quick else max(2.0, (held + beside) / 5)),
        given.workers,
        given.payload,
        given.rate or (300.0 if given.quick else None),
    )
    result = run(wanted, held)
    if given.out:
        write(given.out, "horizon", result)
    print(json.dumps(result if given.json else result["figures"], indent=2))
    return 0 if result["figures"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())

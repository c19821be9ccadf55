"""Measures every figure of the documentation, one after the other, and says which promises the results keep.

Two hours and a half on a quiet machine, half of it the soak. Each job writes one file; then the pictures, the page
and the tables of the documentation are made from the files (`figures.py`). Ends with 1 where a job fails or a promise
is not kept.

    python benchmarks/all.py                          everything
    python benchmarks/all.py --resume 3               without what was measured in the last three hours
    python benchmarks/all.py --only soak,horizon      some of it
    python benchmarks/all.py --check                  nothing: only says which promises are kept
    python benchmarks/all.py --quick --results build/try   every command once, in small
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from _promises import Results, broken, table
from figures import RESULTS, ROOT, read
from figures import main as make_figures

#: A job may take so many times what it should, and so many seconds more, before it is stopped.
_PATIENCE, _MARGIN = 3.0, 120.0


@dataclass(frozen=True)
class Job:
    """One result file: its name, the command without `--out`, about how many minutes it takes, and what is put behind
    the command, or in place of its options of the same names, to try it in small."""

    name: str
    command: str
    minutes: float
    quick: str

    def line(self, out: Path, quick: bool) -> list[str]:
        """The command line. Of an option that is there twice the last one counts."""
        words = shlex.split(f"{self.command} {self.quick}" if quick else self.command)
        program = {"shardflow": [sys.executable, "-m", "shardflow.cli"], "python": [sys.executable]}[words[0]]
        return [*program, *words[1:], "--out", str(out)]


def _jobs() -> Iterable[Job]:
    small = "--workflows 2000 --runs 1"
    for steps in (0, 1, 3):
        yield Job(
            f"throughput-{steps}", f"shardflow bench throughput --workflows 40000 --steps {steps} --runs 5", 1, small
        )
    for rate in (10, 100, 500, 1000):
        idle = 10 if rate == 100 else 0
        command = f"shardflow bench latency --rate {rate} --seconds 30 --idle {idle}"
        yield Job(f"latency-{rate}", command, 1, "--seconds 2 --idle 0")
    command = "shardflow bench latency --rate 100 --seconds 30 --idle 0 --backlog 100000"
    yield Job("latency-backlog", command, 1, "--seconds 2 --backlog 5000")
    for steps in (0, 1, 3):
        # Without the bare loop, which lets the server compress so large values.
        command = f"shardflow bench throughput --workflows 10000 --steps {steps} --payload 4096 --runs 3"
        yield Job(f"throughput-4096-{steps}", f"{command} --no-floor --no-overlapped", 1, small)
    command = "shardflow bench throughput --workflows 400000 --runs 3 --retention 0.5 --no-floor --no-overlapped"
    yield Job("throughput-retention", command, 4, small)
    yield Job("compare", "python benchmarks/compare --runs 5 --seconds 2.5", 8, "--quick")
    yield Job("compare-shards", "python benchmarks/compare --shards 3 --runs 3 --seconds 2.5", 4, "--quick")
    yield Job("scaleout", "python benchmarks/scaleout.py --runs 3", 8, "--quick")
    yield Job("sleepers", "python benchmarks/sleepers.py --count 100000", 4, "--count 1000 --messages 200")
    yield Job("million", "python benchmarks/million.py --rows 1000000 --rounds 9", 12, "--quick")
    yield Job("horizon", "python benchmarks/horizon.py --minutes 10", 14, "--quick")
    yield Job("soak", "python benchmarks/soak.py --minutes 60 --control", 74, "--quick")


JOBS = tuple(_jobs())


def run(job: Job, folder: Path, quick: bool) -> bool:
    """Runs it; False where it fails or takes far too long. What it prints is seen."""
    out = folder / f"{job.name}.json"
    line = job.line(out, quick)
    if quick:
        out.unlink(missing_ok=True)
    print(f"== {job.name}, about {job.minutes:g} min: {shlex.join(line[1:])}", file=sys.stderr, flush=True)
    # It keeps servers, which it stops when it is interrupted.
    with subprocess.Popen(line, cwd=ROOT, start_new_session=True) as process:
        try:
            code = process.wait(job.minutes * 60 * _PATIENCE + _MARGIN)
        except BaseException as error:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = -1
    if quick and out.exists():  # what so short a run finds is not judged
        return True
    if code:
        print(f"== {job.name} ended with {code}", file=sys.stderr, flush=True)
    return code == 0


def fresh(results: Results, hours: float) -> set[str]:
    """Names of the results that are no older than that."""
    since = datetime.now(UTC) - timedelta(hours=hours)
    return {name for name, each in results.items() if each.time and datetime.fromisoformat(each.time) >= since}


def judge(results: Results) -> int:
    """Prints what is promised and what was measured; 1 where a promise is not kept."""
    rows = [("what", "must be", "is", "kept"), *table(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for what, wanted, measured, kept in rows:
        print(f"{what:<{widths[0]}}  {wanted:>{widths[1]}}  {measured:>{widths[2]}}  {kept}")
    return 1 if broken(results) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where the files are (default: benchmarks/results)"
    )
    parser.add_argument("--only", help=f"some of {', '.join(job.name for job in JOBS)}")
    parser.add_argument("--resume", type=float, metavar="HOURS", help="not what was measured in the last HOURS")
    parser.add_argument("--check", action="store_true", help="measure nothing, say what is kept")
    parser.add_argument("--quick", action="store_true", help="in small; needs --results, makes no documentation")
    given = parser.parse_args(arguments)
    folder = given.results.resolve()
    wanted = set(given.only.split(",")) if given.only else {job.name for job in JOBS}
    if unknown := wanted - {job.name for job in JOBS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if given.quick and folder == RESULTS:
        parser.error("--quick is for another folder: give --results")
    if given.check:
        return judge(read(folder))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    there = fresh(read(folder), given.resume) if given.resume else set()
    began = time.monotonic()
    failed = [job.name for job in JOBS if job.name in wanted - there and not run(job, folder, given.quick)]
    print(f"== measured in {(time.monotonic() - began) / 60:.0f} min", file=sys.stderr)
    if failed:
        print(f"== failed: {', '.join(failed)}", file=sys.stderr)
    if given.quick:
        return 1 if failed else 0
    if folder == RESULTS:
        make_figures([])
    return judge(read(folder)) or (1 if failed else 0)


if __name__ == "__main__":
    sys.exit(main())

"""How throughput grows with the number of shards, against linear.

Each embedded Postgres server is held to a share of one core, so that on a small machine too the servers are what
limits and the shape of the curve is true: see _scaleout_throttle.py. With --config the first shards of a cluster of
yours are used as they are. Each shard has a worker process of its own, or, with --shared, the workers serve all.

    python benchmarks/scaleout.py --runs 3
    python benchmarks/scaleout.py --config cluster.yaml --shards 1,2,4,8 --workers 4 --workflows 500000

Workers start on held servers (`start_up_seconds`) with an empty queue, which is paused, filled, and let go when they
have settled. `workflows_per_s` counts from there to the last worker's last commit; `efficiency` is that against as
many times the figure of the first number of shards, and `of_apart` against as many clusters of one shard each that
run at the same time: that leaves out what the machine itself does, whose cores may work faster or slower the more
they have to do. `busy` counts while all shards have something to do. Every workflow and checkpoint is looked up
afterwards: the exit code is 1 if anything is lost, there twice, or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Loaded by its path (from a wheel, say), this file still finds its helpers.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _scaleout_loads import Crew, Stand, drained, opened
from _scaleout_throttle import DELAY_CONCURRENCY, Throttle, Unheld, throttle

from shardflow import ClusterConfig, ShardflowError
from shardflow.bench import results
from shardflow.bench.arena import Ground, ground
from shardflow.bench.meters import environment
from shardflow.bench.processes import BenchFailed, loop_factory
from shardflow.bench.workload import LEAST_PAYLOAD, Load

LOADS = ("drained", "apart", "open")
FAULTS = ("lost", "duplicated", "wrong", "left")
#: Workflows for each shard that no figure counts.
WARM_UP = 200
#: Seconds for which workers are idle on held servers before the load comes: what they do to settle is no part of it.
SETTLED = 2.0
#: The open load, of what a shard drained: small turns cost a server two to three times as much for each workflow.
OPEN_PART = 1 / 5
#: Vacuum would come to some of the servers within the seconds of a run and not to others.
SETTINGS = {"autovacuum": "off"}
#: Figures of which medians are given, with their titles in the table.
SHOWN = {
    "offered_per_s": "offered/s",
    "workflows_per_s": "workflows/s",
    "efficiency_percent": "of linear %",
    "busy_efficiency_percent": "while all busy %",
    "of_apart_percent": "of clusters apart %",
    "result_p50_ms": "result p50 ms",
    "result_p99_ms": "p99 ms",
    "start_up_seconds": "start-up s",
    "tail_seconds": "tail s",
    "server_cpu_percent": "a server's CPU %",
    "server_cpu_us_per_workflow": "its µs a workflow",
    "quota_used_up_percent": "quota used up %",
    "workers_cpu_percent": "workers' CPU %",
    "worker_cpu_us_per_workflow": "their µs a workflow",
    "machine_idle_percent": "machine idle %",
}
MEDIANS = (*SHOWN, "busy_workflows_per_s", "submit_p50_ms", "submit_p99_ms", "late_p99_ms", "seconds")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure; see the arguments' help."""

    shards: tuple[int, ...]
    loads: tuple[str, ...]
    workflows: int
    steps: int
    payload: int
    seconds: float
    rate: float | None
    runs: int
    crew: Crew
    throttle: str
    share: float
    settled: float
    config: Path | None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(options: Options) -> dict[str, Any]:
    """The parts of a result file."""
    most = max(options.shards)
    settings = {} if options.config else SETTINGS
    with (
        ground(options.config, most, settings) as place,
        throttle(place, options.throttle, options.share) as slow,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        crew = options.crew
        if slow.kind == "commit_delay" and crew.concurrency is None:
            crew = replace(crew, concurrency=DELAY_CONCURRENCY)
        surroundings = runner.run(environment(ClusterConfig("bench", place.shards)))
        # What a server reads for the first time must not be the first run's to pay.
        runner.run(drained(Stand(place, Unheld(), crew, 0.0), Load(WARM_UP * most, options.steps, 100, 100), say))
        runs: list[dict[str, Any]] = []
        for number in range(options.runs):
            for shards, load in order(options.shards, options.loads, number):
                runs.append(_run(options, runner, place, slow, crew, load, shards, number, runs))
                gc.collect()
    return {
        "environment": surroundings,
        "options": {
            "loads": options.loads,
            "shards": options.shards,
            "workflows_per_shard": options.workflows,
            "steps": options.steps,
            "payload": options.payload,
            "runs": options.runs,
            "workers": crew.count,
            "workers_serve": "all shards" if crew.shared else "one shard each",
            "concurrency": crew.concurrency,
            "throttle": slow.kind,
            "share_of_a_core": options.share if slow.kind.startswith("cgroup") else None,
            "servers": "embedded" if options.config is None else "configured",
            "settings": settings,
        },
        **summary(runs),
    }


def order(shards: Sequence[int], loads: Sequence[str], number: int) -> list[tuple[int, str]]:
    """What one run measures: there, or back, so that a neighbour's load falls on few and many shards alike.

    All is compared with what the first number of shards drains, so that is measured at both ends; apart are as many
    clusters as there are shards at the most.
    """
    way = list(shards) if number % 2 == 0 else list(reversed(shards))
    measured = [(count, load) for count in way for load in loads if load != "apart" or count == shards[-1] > 1]
    again = (shards[0], "drained")
    if len(shards) > 1 and again in measured:
        measured = [*measured, again] if number % 2 == 0 else [again, *measured]
    return measured


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What follows from the runs, and they themselves."""
    return {
        "figures": {"verified": not any(run[fault] for run in runs for fault in FAULTS)},
        "series": {load: series(runs, load) for load in LOADS if any(run["load"] == load for run in runs)},
        "runs": list(runs),
    }


def add(answer: dict[str, Any], path: Path) -> dict[str, Any]:
    """The answer with the runs of an earlier result file before its own. Raises BenchFailed if they don't compare."""
    earlier = json.loads(path.read_text())
    options = json.loads(json.dumps(answer["options"]))
    for key in options.keys() - {"runs"}:
        if earlier["options"].get(key) != options[key]:
            raise BenchFailed(f"{path} has other options: {key} {earlier['options'].get(key)}, not {options[key]}")
    count = earlier["options"]["runs"]
    runs = earlier["runs"] + [{**run, "run": run["run"] + count} for run in answer["runs"]]
    return {**answer, "options": {**options, "runs": options["runs"] + count}, **summary(runs)}


def _run(
    options: Options,
    runner: asyncio.Runner,
    place: Ground,
    slow: Throttle,
    crew: Crew,
    load: str,
    shards: int,
    number: int,
    runs: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """One load on one number of shards."""
    name = f"run {number + 1} of {options.runs}, {load}, {shards} shard(s)"
    stand = Stand(replace(place, shards=place.shards[:shards]), slow, crew, options.settled, load == "apart")
    what = Load(options.workflows * shards, options.steps, options.payload, options.payload)

    def progress(text: str) -> None:
        say(f"{name}: {text}")

    began = time.monotonic()
    if load != "open":
        figures = runner.run(drained(stand, what, progress))
    else:
        rate = options.rate or _served(runs)
        figures = runner.run(opened(stand, what, rate * shards, options.seconds, progress))
    faults = ", ".join(f"{fault} {figures[fault]}" for fault in FAULTS)
    say(f"{name}: {figures['workflows_per_s']:,.0f}/s; {faults}; took {time.monotonic() - began:.0f} s")
    return {"load": load, "shards": shards, "run": number, **figures}


def _served(runs: Sequence[dict[str, Any]]) -> float:
    """A part of what one shard drained first."""
    first = next(run for run in runs if run["load"] == "drained")
    return float(first["workflows_per_s"] / first["shards"] * OPEN_PART)


def series(runs: Sequence[dict[str, Any]], load: str) -> list[dict[str, Any]]:
    """Medians by number of shards, and how near to linear they are; sums of what must be zero."""
    points: list[dict[str, Any]] = []
    for shards in sorted({run["shards"] for run in runs if run["load"] == load}):
        mine = [run for run in runs if run["load"] == load and run["shards"] == shards]
        point: dict[str, Any] = {"shards": shards, "runs": len(mine)}
        for key in MEDIANS:
            values = [run[key] for run in mine if run.get(key) is not None]
            if values:
                point[key] = round(statistics.median(values), 2)
        rates = [run["workflows_per_s"] for run in mine]
        point |= {"least_per_s": min(rates), "most_per_s": max(rates)}
        base = points[0] if points else point
        for key, to in (("workflows_per_s", "efficiency"), ("busy_workflows_per_s", "busy_efficiency")):
            if base.get(key):
                point[f"{to}_percent"] = round(point[key] / base[key] * base["shards"] / shards * 100, 1)
        apart = [run["workflows_per_s"] for run in runs if run["load"] == "apart" and run["shards"] == shards]
        if apart and load == "drained":
            point["of_apart_percent"] = round(point["workflows_per_s"] / statistics.median(apart) * 100, 1)
        points.append(point | {fault: sum(run[fault] for run in mine) for fault in FAULTS})
    return points


def show(answer: dict[str, Any]) -> None:
    """Tables on stdout."""
    for load, points in answer["series"].items():
        columns = [key for key in SHOWN if any(key in point for point in points)]
        print(f"\n{load}: {answer['options']['throttle']}, {answer['options']['steps']} step(s)")
        print("| shards | " + " | ".join(SHOWN[key] for key in columns) + " |")
        print("|" + "---|" * (len(columns) + 1))
        for point in points:
            cells = [f"{point[key]:,}" if key in point else "–" for key in columns]
            print(f"| {point['shards']} | " + " | ".join(cells) + " |")
    print(
        "\nnothing lost, nothing twice, nothing wrong" if answer["figures"]["verified"] else "\nFAULTS: see the runs"
    )


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part) for part in text.split(",")}))
    if not numbers or numbers[0] < 1:
        raise ValueError(text)
    return numbers


def _loads(text: str) -> tuple[str, ...]:
    if set(text.split(",")) - set(LOADS):
        raise ValueError(text)
    return tuple(load for load in LOADS if load in text.split(","))


def parse(arguments: Sequence[str] | None) -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=_numbers, default=(1, 2, 4, 8), metavar="N,N,...", help="how many at once")
    parser.add_argument("--loads", type=_loads, default=LOADS, metavar="L,L,...", help="of drained, apart, open: all")
    parser.add_argument("--workflows", type=int, help="drained: for each shard (default: 16000; configured: 100000)")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--payload", type=int, default=100, help="bytes of each input and result")
    parser.add_argument(
        "--rate", type=float, help="open: submits a second and shard (default: a fifth of one drained)"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="open: how long, after a warm-up")
    parser.add_argument("--runs", type=int, default=1, help="whose medians are given")
    parser.add_argument(
        "--workers", type=int, default=1, help="worker processes for each shard; with --shared, in all"
    )
    parser.add_argument("--shared", action="store_true", help="every worker serves all shards")
    parser.add_argument("--concurrency", type=int, help="workflows at once in each worker")
    parser.add_argument("--throttle", choices=["auto", "cgroup", "delay", "none"], default="auto")
    parser.add_argument("--share", type=float, default=0.04, help="of a core, for each server that is held")
    parser.add_argument("--config", type=Path, help="a cluster's file (default: embedded servers)")
    parser.add_argument("--quick", action="store_true", help="1 and 2 shards, a few seconds: only whether it works")
    parser.add_argument("--add", type=Path, help="to the runs of this earlier result file")
    parser.add_argument("--json", action="store_true", help="the whole answer on stdout instead of a table")
    parser.add_argument("--out", type=Path, help="the whole answer into this file too")
    given = parser.parse_args(arguments)
    if given.quick:
        given.shards, given.workflows, given.seconds, given.runs = (1, 2), 600, 1.0, 1
        given.share = max(given.share, 0.1)
    whole = {"workflows": given.workflows, "runs": given.runs, "workers": given.workers}
    if any(value is not None and value < 1 for value in whole.values()) or given.steps < 0:
        parser.error("numbers must be above 0")
    if given.payload < LEAST_PAYLOAD:
        parser.error(f"--payload must be at least {LEAST_PAYLOAD}")
    if not 0.01 <= given.share <= 1:
        parser.error("--share must be from 0.01 to 1")
    if "drained" not in given.loads and (given.rate is None and "open" in given.loads):
        parser.error("the open load needs --rate: without a drained run nobody knows what a shard can do")
    options = Options(
        shards=given.shards,
        loads=given.loads,
        workflows=given.workflows or (100_000 if given.config else 16_000),
        steps=given.steps,
        payload=given.payload,
        seconds=given.seconds,
        rate=given.rate,
        runs=given.runs,
        crew=Crew(given.workers, given.shared, given.concurrency),
        throttle=given.throttle,
        share=given.share,
        settled=0.2 if given.quick else SETTLED,
        config=given.config,
    )
    return options, given


def main(arguments: Sequence[str] | None = None) -> int:
    options, given = parse(arguments)
    try:
        answer = measure(options)
        if given.add is not None:
            answer = add(answer, given.add)
    except ShardflowError as error:
        say(f"scaleout: {error}")
        return 1
    if given.out is not None:
        argv = ["benchmarks/scaleout.py", *(sys.argv[1:] if arguments is None else arguments)]
        results.write(given.out, "scaleout", answer, argv=argv)
    if given.json:
        print(json.dumps(answer, indent=1))
    else:
        show(answer)
    return 0 if answer["figures"]["verified"] else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""shardflow beside DBOS, Absurd, PgQueuer, Procrastinate, awa and the floor: same server, same run, same work.

Workflows of 0, 1 and 3 steps that do nothing, 100 bytes in and out, durable commits; shardflow has one worker
process, a rival as many as it is best with. All are submitted first, then the clock runs from the first start to the
last durable end, and the tables are counted. The systems take turns, in an order that alternates; each runs as many
workflows as it ends in about `--seconds`. Their settings are those that `--sweep` found best. What each keeps
afterwards is said beside its figure: a queue that deletes what is done does less.

    python benchmarks/compare                       all of them, medians of five
    python benchmarks/compare --sweep dbos          one rival with other settings, best first
    python benchmarks/compare --shards 3            three servers: one DBOS on each, ids hashed in the client
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ground
import ours
import report
from race import Race
from systems import SYSTEMS, System

from shardflow.bench import results
from shardflow.bench.meters import environment
from shardflow.model import ClusterConfig, ShardConfig

STEPS = (0, 1, 3)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", type=_names, help=f"some of {', '.join(SYSTEMS)}")
    parser.add_argument("--steps", type=_steps, default=STEPS, help="such as 0,1,3 (the default)")
    parser.add_argument("--runs", type=int, default=5, help="whose medians are reported (default 5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="about so long for each measurement (default 6)")
    parser.add_argument("--shards", type=int, default=1, help="servers, each with its own worker processes")
    parser.add_argument("--sweep", type=_names, metavar="SYSTEMS", help="try these rivals' other settings instead")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="of Postgres"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short run: a smoke test, its figures are worth nothing"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the result as JSON into a file")
    parser.add_argument("--add", action="store_true", help="keep the runs that FILE has from before, and add to them")
    options = parser.parse_args(arguments)
    if options.add and options.out is None:
        parser.error("--add needs --out")
    if options.quick:
        options.runs, options.seconds = 1, 0.3
    return options


def _names(given: str) -> list[str]:
    names = given.split(",")
    for name in names:
        if name not in SYSTEMS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SYSTEMS)}")
    return names


def _steps(given: str) -> tuple[int, ...]:
    steps = tuple(int(each) for each in given.split(","))
    if not set(steps) <= set(STEPS):
        raise argparse.ArgumentTypeError(f"only {', '.join(map(str, STEPS))} are compared")
    return steps


def compare(options: argparse.Namespace, race: Race) -> None:
    """The runs, in an order that is turned round each time."""
    part = [SYSTEMS[name] for name in options.systems or SYSTEMS]
    part = [system for system in part if options.shards == 1 or system.shards]
    done = max((run["run"] for run in race.runs), default=0)
    for number in range(done + 1, done + 1 + options.runs):
        for steps in STEPS:
            for system in part if number % 2 else reversed(part):
                if steps in _wanted(options, system):
                    race.one(system, steps, number)


def sweep(options: argparse.Namespace, race: Race) -> None:
    """Each of the settings once, then all of them again, so that no neighbour's load falls on one alone."""
    done = max((run["run"] for run in race.runs), default=0)
    for number in range(done + 1, done + 1 + options.runs):
        for name in options.sweep:
            system = SYSTEMS[name]
            for steps in _wanted(options, system):
                for changed in ({}, *system.knobs):
                    race.one(system, steps, number, changed)


def _wanted(options: argparse.Namespace, system: System) -> list[int]:
    if options.quick:
        return [min(1, max(system.steps))]
    return [steps for steps in options.steps if steps in system.steps]


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """The options that runs must have in common to be put together."""
    return {
        "payload": ours.PAYLOAD,
        "shards": options.shards,
        "seconds": options.seconds,
        "settings": options.settings,
    }


def former(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs that are to be added to. Raises SystemExit where they were made otherwise."""
    if not options.add or not options.out.exists():
        return []
    kept = json.loads(options.out.read_text())
    if kept["options"] != asked(options):
        raise SystemExit(f"{options.out} was made with {kept['options']}: use the same, or another file")
    runs: list[dict[str, Any]] = kept["runs"]
    return runs


def described(runs: Sequence[dict[str, Any]], shards: int) -> dict[str, Any]:
    """What each system is, with the settings that it ran with."""
    found = {}
    for name, system in SYSTEMS.items():
        if all(run["system"] != name for run in runs):
            continue
        versions = {run["version"] for run in runs if run["system"] == name and "version" in run}
        found[name] = {
            "version": ", ".join(sorted(versions)) or None,
            "keeps": system.keeps,
            "remark": system.remark or None,
            "settings": {
                str(steps): settings for steps in system.steps if (settings := system.settings(steps, shards))
            },
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    benchmark = "compare-sweep" if options.sweep else "compare"
    runs = former(options)
    with ground.servers(options.shards, dict(each.split("=", 1) for each in options.settings)) as servers:
        shards = tuple(ShardConfig(server.name, server.dsn) for server in servers)
        surroundings = asyncio.run(environment(ClusterConfig("compare", shards)))

        def found() -> dict[str, Any]:
            return {
                "environment": surroundings,
                "options": asked(options),
                "systems": described(runs, options.shards),
                "figures": report.best_of(runs) if options.sweep else report.figures(runs),
                "runs": [report.slim(run) for run in runs] if options.sweep else runs,
            }

        def keep() -> None:
            if options.out is not None:
                results.write(options.out, benchmark, found())

        tries = not (options.quick or options.sweep)
        race = Race(servers, runs, seconds=options.seconds, tries=tries, keep=keep)
        (sweep if options.sweep else compare)(options, race)
    table = report.sweep_table if options.sweep else report.table
    print(json.dumps({"benchmark": benchmark, **found()}) if options.json else table(found()["figures"]))
    good = all("error" not in run and run["verified"] for run in runs)
    if not good:
        print("a run has failed or is not verified: see above", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())

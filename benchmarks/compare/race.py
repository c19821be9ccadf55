"""Runs of the systems one after the other, each with as many workflows as it ends in the time wanted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import ground
import home
import measure
import ours
import report
from player import PlayerFailed
from systems import Settings, System

from shardflow.embedded import Servers
from shardflow.errors import ShardflowError

MOST, LEAST = 300_000, 60
_FAILED = (PlayerFailed, ShardflowError, RuntimeError)


class Race:
    """The runs so far, and how fast each system was found to be, by which the next one is sized.

    `seconds`: about so long for each measurement; `tries`: whether a system's first one is preceded by a short try;
    `keep`: called after each, so that nothing is lost where the whole is stopped.
    """

    def __init__(
        self,
        servers: Servers,
        runs: list[report.Run],
        *,
        seconds: float,
        tries: bool,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers = servers
        self.runs = runs
        self.shards = len(servers)
        self.seconds = seconds
        self.tries = tries
        self.keep = keep
        self._rates: dict[tuple[str, int, str], float] = {}
        for run in runs:
            if "error" not in run:
                self._rates[run["system"], run["steps"], run.get("variant", "")] = run["workflows_per_s"]

    def one(self, system: System, steps: int, number: int, changed: Settings | None = None) -> None:
        """Measures; the first time after a short try, whose rate says how many workflows to take."""
        variant = "" if changed is None else json.dumps(changed, sort_keys=True)
        key = (system.name, steps, variant)
        run: report.Run = {"run": number, "system": system.name, "steps": steps}
        if changed is not None:
            run["variant"] = variant
        try:
            if key not in self._rates and self.tries:
                few = self._count(system.guess[steps] / 2 * self.shards, min(1.0, self.seconds))
                self._rates[key] = self._play(system, steps, few, changed)["workflows_per_s"]
            many = self._count(self._rates.get(key, system.guess[steps] * self.shards), self.seconds)
            run |= self._play(system, steps, many, changed)
            self._rates[key] = run["workflows_per_s"]
            told = f"{run['workflows_per_s']:,.0f} workflows/s" + ("" if run["verified"] else ", NOT VERIFIED")
        except _FAILED as error:
            run["error"] = told = f"{type(error).__name__}: {error}"
        self.runs.append(run)
        self.keep()
        print(f"run {number}: {system.name} {variant} {steps} steps: {told}", file=sys.stderr, flush=True)

    def _count(self, rate: float, seconds: float) -> int:
        return max(LEAST, min(MOST, int(rate * seconds)))

    def _play(self, system: System, steps: int, workflows: int, changed: Settings | None) -> dict[str, Any]:
        if system.script is not None:
            settings = {**system.settings(steps, self.shards), **(changed or {})}
            return measure.play(
                system, home.python(), self.servers, workflows=workflows, steps=steps, settings=settings
            )
        with ground.fresh(self.servers) as databases:
            found = ours.play_floor if system.name == "floor" else ours.play_shardflow
            return found(databases, workflows=workflows, steps=steps)

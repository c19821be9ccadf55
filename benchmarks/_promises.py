"""What the results must show, and whether they do: one line for each, judged from the files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shardflow.bench.report.files import Result
from shardflow.bench.report.words import faults, mappings, number, rough

Results = Mapping[str, Result]


@dataclass(frozen=True)
class Promise:
    """`value` is what the results say of it, None where they say nothing; `least` or `most` is what it must be.

    A `dream` is told and not judged. `command` names the job of `all.py` that measures it.
    """

    what: str
    command: str
    value: Callable[[Results], float | None]
    least: float | None = None
    most: float | None = None
    unit: str = ""
    dream: bool = False

    def kept(self, results: Results) -> bool | None:
        """Whether it is; None where nothing was measured."""
        value = self.value(results)
        if value is None:
            return None
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def wanted(self) -> str:
        """The threshold in words."""
        text = f"≥ {self.least:,g}" if self.least is not None else f"≤ {self.most:,g}"
        return f"{text}{self.unit}" + (", a dream" if self.dream else "")

    def measured(self, results: Results) -> str:
        """The value in words."""
        value = self.value(results)
        return "not measured" if value is None else f"{rough(value)}{self.unit}"


def figure(name: str, key: str) -> Callable[[Results], float | None]:
    """A figure of the result file `name`."""
    return lambda results: number(results[name].figures, key) if name in results else None


def option(name: str, key: str, unit: float = 1.0) -> Callable[[Results], float | None]:
    """An option with which the result file `name` came about."""

    def value(results: Results) -> float | None:
        found = number(results[name].options, key) if name in results else None
        return None if found is None else found / unit

    return value


def beside(system: str, steps: int) -> Callable[[Results], float | None]:
    """How many times as many workflows as another system."""

    def value(results: Results) -> float | None:
        if "compare" not in results:
            return None
        rates = {
            str(each.get("system")): number(each, "workflows_per_s")
            for each in mappings(results["compare"].data.get("figures"))
            if each.get("steps") == steps
        }
        ours, theirs = rates.get("shardflow"), rates.get(system)
        return ours / theirs if ours and theirs else None

    return value


def _scaled(results: Results) -> float | None:
    if "scaleout" not in results:
        return None
    series = results["scaleout"].data.get("series")
    points = mappings(series.get("drained")) if isinstance(series, dict) else []
    return next((number(each, "efficiency_percent") for each in points if each.get("shards") == 8), None)


def _grown(results: Results) -> float | None:
    if "million" not in results:
        return None
    measured = (mappings(results["million"].figures.get(part)) for part in ("operations", "memory"))
    ratios = [ratio for part in measured for each in part if (ratio := number(each, "ratio")) is not None]
    return max(ratios, default=None)


def _faulty(results: Results) -> float | None:
    """Files that say that something was lost, there twice, wrong or left behind."""
    return float(len(faults(results.values()))) if results else None


_STEPS = {0: "no steps", 1: "1 step", 3: "3 steps"}

PROMISES: tuple[Promise, ...] = (
    *(
        Promise(
            f"of the bare loop, {text}", f"throughput-{steps}", figure(f"throughput-{steps}", "ratio_to_floor"), 0.65
        )
        for steps, text in _STEPS.items()
    ),
    Promise(
        "workflows/s without steps, server and worker together",
        "throughput-0",
        figure("throughput-0", "workflows_per_s"),
        43_000,
        dream=True,
    ),
    *(
        Promise(f"against {name}, {_STEPS[steps]}", "compare", beside(system, steps), least, unit="×")
        for name, system, steps, least in (
            ("DBOS", "dbos", 1, 40),
            ("DBOS", "dbos", 3, 60),
            ("Absurd", "absurd", 1, 10),
            ("Absurd", "absurd", 3, 15),
            ("PgQueuer", "pgqueuer", 0, 1),
        )
    ),
    Promise("`submit_many`, workflows/s", "throughput-0", figure("throughput-0", "submit_per_s"), 50_000),
    Promise("submit to result at 100/s, median", "latency-100", figure("latency-100", "p50_ms"), most=5, unit=" ms"),
    Promise("the same, 99 %", "latency-100", figure("latency-100", "p99_ms"), most=25, unit=" ms"),
    Promise(
        "99 % beside a draining backlog of another queue",
        "latency-backlog",
        figure("latency-backlog", "p99_ms"),
        most=250,
        unit=" ms",
    ),
    Promise("that backlog, workflows", "latency-backlog", option("latency-backlog", "backlog"), 100_000),
    Promise("idle worker: queries/s and shard", "latency-100", figure("latency-100", "idle_queries_per_s"), most=2),
    Promise(
        "idle worker: of a core",
        "latency-100",
        figure("latency-100", "idle_worker_cpu_percent"),
        most=1,
        unit=" %",
    ),
    Promise(
        "throughput beside a transaction held open, of that without",
        "horizon",
        figure("horizon", "pinned_to_unpinned"),
        0.8,
    ),
    Promise("that transaction, minutes", "horizon", option("horizon", "held_minutes"), 10),
    Promise("soak: throughput at the end, of that at the beginning", "soak", figure("soak", "last_to_first"), 0.95),
    Promise("soak: size on disk, second half to first", "soak", figure("soak", "size_growth"), most=1.2),
    Promise("that soak, minutes", "soak", option("soak", "minutes"), 60),
    Promise("8 throttled shards, of linear", "scaleout", _scaled, 90, unit=" %"),
    Promise("among a million, times as long as among 10,000", "million", _grown, most=1.5),
    Promise("results with anything lost, there twice or wrong", "all", _faulty, most=0),
)


def verdict(promise: Promise, results: Results) -> str:
    """One word."""
    kept = promise.kept(results)
    return "–" if kept is None else "yes" if kept else "no"


def broken(results: Results) -> list[Promise]:
    """Those that are judged and not kept, or not measured."""
    return [promise for promise in PROMISES if not promise.dream and not promise.kept(results)]


def table(results: Results) -> list[tuple[str, str, str, str]]:
    """What, threshold, figure, verdict."""
    return [(each.what, each.wanted(), each.measured(results), verdict(each, results)) for each in PROMISES]

"""`benchmarks/compare`: shardflow beside the systems that a user would pick instead, doing the same work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .charts import Bar, BarPanel, Bars, Ink, Picture, Row, Section, Table
from .files import Result, Unusable
from .words import between, exact, faults, listed, mappings, need, number, numbers, reach, rough, steps_of, whole

_NAMES = {"dbos": "DBOS", "absurd": "Absurd", "pgqueuer": "PgQueuer", "procrastinate": "Procrastinate", "awa": "awa"}
_OURS = "shardflow"
_FLOOR = "floor"
_SWEPT = ("worker_cpu_us_per_workflow", "postgres_cpu_us_per_workflow")
#: Points on a scale of powers instead of bars where the fastest is so many times the slowest; then bars once more.
_WIDE = 20.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What one system did with one number of steps."""

    system: str
    steps: int
    rate: float | None
    low: float | None
    high: float | None
    keeps: str
    remark: str
    version: str
    figures: Mapping[str, Any]
    settings: str


def section(results: Sequence[Result]) -> Section:
    """A picture for each number of shards, with a panel for each number of steps."""
    pictures: list[Picture] = []
    names: dict[str, int] = {}
    for result in sorted(results, key=lambda result: whole(result.options, "shards", 1)):
        entries = _entries(result)
        if not any(entry.rate for entry in entries):
            raise Unusable("has no rates")
        servers = whole(result.options, "shards", 1)
        name = "compare" if servers == 1 else f"compare-{servers}-servers"
        names[name] = names.get(name, 0) + 1
        pictures += _pictures(name if names[name] == 1 else f"{name}-again-{names[name]}", result, entries)
    warnings = [warning for result in results for warning in _warnings(result)]
    return Section("Side by side", pictures, results, warnings=[*faults(results), *warnings])


def _pictures(name: str, result: Result, entries: Sequence[Entry]) -> list[Picture]:
    steps = sorted({entry.steps for entry in entries})
    by_place = {(entry.system, entry.steps): entry for entry in entries}
    systems = _order(entries)
    stepped = {str(run.get("system")) for run in result.runs if whole(run, "steps")}
    rows = [Row(_shown(system), _note(entries, system)) for system in systems]
    panels = [BarPanel(steps_of(n), [_bar(by_place, system, n, stepped) for system in systems]) for n in steps]
    table, note = _table(systems, steps, by_place), _how(result)
    servers = whole(result.options, "shards", 1)
    title = _title(by_place, systems, steps) + (f", on {servers} servers each" if servers > 1 else "")
    rates = [entry.rate for entry in entries if entry.rate]
    if max(rates) / min(rates) <= _WIDE:
        return [Picture(name, title, Bars(rows, panels, "workflows/s", shared=True), table, note)]
    powers = Bars(rows, panels, "workflows/s", log=True, shared=True)
    bars = Bars([Row(row.name) for row in rows], panels, "workflows/s", shared=True)
    settings = _settings_table(systems, steps, by_place)
    return [
        Picture(name, title, powers, table, f"{note}; each line is ten times the one before"),
        Picture(f"{name}-bars", "The same as bars, which start at zero", bars, settings, note),
    ]


def _order(entries: Sequence[Entry]) -> list[str]:
    """Ours first, then what limits us, then the others: the fastest with the most steps that it can do first."""
    best: dict[str, tuple[int, float]] = {}
    for entry in entries:
        best[entry.system] = max(best.get(entry.system, (-1, 0.0)), (min(entry.steps, 1), entry.rate or 0.0))
    rivals = [system for system in best if system not in (_OURS, _FLOOR)]
    rivals.sort(key=lambda system: best[system], reverse=True)
    return [*(system for system in (_OURS, _FLOOR) if system in best), *rivals]


def _shown(system: str) -> str:
    return "bare loop" if system == _FLOOR else _NAMES.get(system, system)


def _note(entries: Sequence[Entry], system: str) -> str:
    mine = [entry for entry in entries if entry.system == system]
    keeps = next((entry.keeps for entry in mine if entry.keeps), "")
    return "; ".join(text for text in (_processes(mine), f"keeps {keeps}" if keeps else "") if text)


def _processes(entries: Sequence[Entry]) -> str:
    """With how many processes: "1 process", "2 or 3 processes"."""
    counts = sorted({count for entry in entries if (count := whole(entry.figures, "processes"))})
    if not counts:
        return ""
    return f"{' or '.join(map(str, counts))} {'process' if counts == [1] else 'processes'}"


def _bar(by_place: Mapping[tuple[str, int], Entry], system: str, steps: int, stepped: set[str]) -> Bar:
    entry = by_place.get((system, steps))
    if entry is None or entry.rate is None:
        return Bar(None, "has no steps" if steps and system not in stepped else "not measured")
    ink = Ink.OURS if system == _OURS else Ink.REFERENCE if system == _FLOOR else Ink.OTHERS
    ours = by_place.get((_OURS, steps))
    text = rough(entry.rate)
    if system not in (_OURS, _FLOOR) and ours is not None and ours.rate:
        text += f" ({part(entry.rate, ours.rate)})"
    return Bar(entry.rate, text, entry.low, entry.high, ink)


def part(rate: float, ours: float) -> str:
    """A rate as a part of ours: "1/93", or "1.3×" where it is more."""
    return f"1/{_two(ours / rate)}" if rate < ours else f"{_two(rate / ours)}×"


def _two(value: float) -> str:
    return exact(round(value) if value >= 10 else value, 1)


def _title(by_place: Mapping[tuple[str, int], Entry], systems: Sequence[str], steps: Sequence[int]) -> str:
    for wanted in (1, *sorted(steps, reverse=True)):
        ours = by_place.get((_OURS, wanted))
        if ours is None or not ours.rate:
            continue
        rates = {system: entry.rate for system in systems if (entry := by_place.get((system, wanted))) and entry.rate}
        rivals = [(system, ours.rate / rate) for system, rate in rates.items() if system not in (_OURS, _FLOOR)]
        if rivals:
            told = [f"{_two(times)} times as many as {_shown(system)}" for system, times in rivals]
            told[0] = told[0].replace("as many as", "as many workflows as", 1)
            return f"With {steps_of(wanted)} shardflow runs {listed(told)}"
    return "Workflows a second of each system, doing the same work"


def _how(result: Result) -> str:
    servers = whole(result.options, "shards", 1)
    runs = max((whole(each, "runs") for each in mappings(result.data.get("figures"))), default=0)
    parts = [
        "the same server and the same work in the same run, each system in its best settings",
        f"{servers} servers, a worker of each system on each" if servers > 1 else "",
        f"medians of {runs} runs, whiskers their range" if runs > 1 else "one run",
        "in brackets the part of what shardflow does",
    ]
    return "; ".join(text for text in parts if text)


def _table(systems: Sequence[str], steps: Sequence[int], by_place: Mapping[tuple[str, int], Entry]) -> Table:
    columns = ["system"]
    for n in steps:
        columns += [f"{steps_of(n)}: workflows/s (runs)", "part of shardflow"]
    rows = []
    for system in systems:
        row = [_shown(system)]
        for n in steps:
            entry, ours = by_place.get((system, n)), by_place.get((_OURS, n))
            rate = entry.rate if entry else None
            row.append(rough(rate) + (between(entry.low, entry.high) if entry else ""))
            row.append(part(rate, ours.rate) if rate and ours and ours.rate else "–")
        entries = [entry for (name, _), entry in by_place.items() if name == system]
        rows.append([*row, next((entry.keeps for entry in entries if entry.keeps), "–")])
    return Table([*columns, "what it keeps"], rows, texts=(0, len(columns)))


def _settings_table(systems: Sequence[str], steps: Sequence[int], by_place: Mapping[tuple[str, int], Entry]) -> Table:
    columns = [
        "system",
        "steps",
        "processes",
        "submits/s",
        "worker CPU µs",
        "Postgres CPU µs",
        "WAL bytes",
        "version, settings, remarks",
    ]
    rows = []
    for system in systems:
        for n in steps:
            if entry := by_place.get((system, n)):
                keys = (
                    ("processes",),
                    ("submit_per_s",),
                    ("worker_cpu_us_per_workflow", "python_cpu_us_per_workflow"),
                    ("postgres_cpu_us_per_workflow",),
                    ("wal_bytes_per_workflow",),
                )
                cells = [rough(number(entry.figures, *names)) for names in keys]
                told = "; ".join(text for text in (entry.version, entry.settings, entry.remark) if text)
                rows.append([_shown(system), str(n), *cells, told or "–"])
    return Table(columns, rows, texts=(0, len(columns) - 1))


def _entries(result: Result) -> list[Entry]:
    described = result.data.get("systems")
    found: list[Entry] = []
    for figures in mappings(result.data.get("figures")):
        system = figures.get("system")
        if isinstance(system, str):
            about = described.get(system) if isinstance(described, dict) else None
            found.append(_entry(system, figures, about if isinstance(about, dict) else {}))
    return found


def _entry(system: str, figures: Mapping[str, Any], about: Mapping[str, Any]) -> Entry:
    steps = whole(figures, "steps")
    span = figures.get("workflows_per_s_range")
    low, high = reach(numbers([{"at": each} for each in span], "at") if isinstance(span, list) else [])
    settings = about.get("settings")
    settings = settings.get(str(steps)) if isinstance(settings, dict) else None
    shown = ", ".join(f"{key} {value}" for key, value in settings.items()) if isinstance(settings, dict) else ""
    return Entry(
        system,
        steps,
        number(figures, "workflows_per_s"),
        low,
        high,
        str(about.get("keeps") or ""),
        str(about.get("remark") or ""),
        str(about.get("version") or ""),
        figures,
        shown,
    )


def sweep(results: Sequence[Result]) -> Section:
    """The settings that were tried for each rival, the fastest first."""
    pictures = [_sweep("sweep" if place == 0 else f"sweep-{place + 1}", each) for place, each in enumerate(results)]
    return Section("The rivals' settings", pictures, results, warnings=faults(results))


def _sweep(name: str, result: Result) -> Picture:
    tried: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for figures in mappings(result.data.get("figures")):
        if number(figures, "workflows_per_s"):
            tried.setdefault((str(figures.get("system")), whole(figures, "steps")), []).append(figures)
    if not tried:
        raise Unusable("has no rates")
    systems = list(dict.fromkeys(system for system, _ in tried))
    steps = sorted({count for _, count in tried})
    panels, rows = [], []
    for count in steps:
        bars = []
        for system in systems:
            rates = [need(each, "workflows_per_s") for each in tried.get((system, count), [])]
            text = f"{rough(max(rates))} of {len(rates)}" if rates else "not tried"
            bars.append(Bar(max(rates) if rates else None, text, *reach(rates)))
        panels.append(BarPanel(steps_of(count), bars))
    for (system, count), variants in tried.items():
        ordered = sorted(variants, key=lambda each: need(each, "workflows_per_s"), reverse=True)
        for each in ordered:
            shown = str(each.get("variant") or "").strip("{}").replace('"', "")
            cells = [rough(number(each, key)) for key in ("workflows_per_s", *_SWEPT)]
            rows.append([_shown(system), str(count), *cells, shown or "as they are before"])
    most = max(map(len, tried.values()))
    title = f"Each rival was tried with up to {most} settings; the fastest of them is the one that is compared"
    chart = Bars([Row(_shown(system)) for system in systems], panels, "workflows/s", log=True, shared=True)
    columns = ["system", "steps", "workflows/s", "worker CPU µs", "Postgres CPU µs", "settings that differ"]
    note = "the fastest of how many, whiskers down to the slowest; one short run each"
    return Picture(name, title, chart, Table(columns, rows, texts=(0, 5)), note)


def _warnings(result: Result) -> list[str]:
    found = [
        f"{result.path.name}: {_shown(str(run.get('system')))}, {steps_of(whole(run, 'steps'))}: {run['error']}"
        for run in result.runs
        if run.get("error")
    ]
    found += [
        f"{result.path.name}: {_shown(str(each.get('system')))}, {steps_of(whole(each, 'steps'))}: not verified"
        for each in mappings(result.data.get("figures"))
        if each.get("verified") is False
    ]
    return list(dict.fromkeys(found))

"""`benchmarks/million.py` and `benchmarks/sleepers.py`: what a great many workflows cost those that come now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Bar, BarPanel, Bars, Ink, Picture, Row, Section, Table
from .files import Result, Unusable
from .words import exact, faults, mappings, need, number, rough, whole

_LIMIT = 1.5
#: So many operations are drawn; all are in the table.
_DRAWN = 14
_PARTS = {
    "at_once": Row("all due at once", "one timer each, the same moment"),
    "one_by_one": Row("due one after the other", "at a steady rate"),
    "by_message": Row("waiting for a message", "all are sent at once"),
}


def million(results: Sequence[Result]) -> Section:
    """A picture for each result: those operations whose time grows most, beside the limit."""
    pictures = [
        _million("million" if place == 0 else f"million-{place + 1}", result) for place, result in enumerate(results)
    ]
    return Section("The size of the world", pictures, results, warnings=[*faults(results), *_misplaced(results)])


def _million(name: str, result: Result) -> Picture:
    judged = _judged(result, "operations", "memory")
    if not judged:
        raise Unusable("has no operations with a ratio")
    limit = number(result.options, "limit") or _LIMIT
    few, many = (exact(number(result.options, key)) for key in ("few", "rows"))
    states = list(dict.fromkeys(state for states in judged.values() for state in states))
    ratios = {what: max(need(each, "ratio") for each in states.values()) for what, states in judged.items()}
    drawn = sorted(ratios, key=lambda what: ratios[what], reverse=True)[:_DRAWN]
    panels = [
        BarPanel(state, [_grown(judged[what].get(state), limit) for what in drawn], limit, f"{exact(limit)}×")
        for state in states
    ]
    base = f"times as long as among {few}"
    within = sum(1 for ratio in ratios.values() if ratio <= limit)
    if within == len(ratios):
        finding = f"nothing takes more than {exact(max(ratios.values()))} {base}"
    else:
        finding = f"{within} of {len(ratios)} operations take at most {exact(limit)} {base}"
    note = f"medians; the {len(drawn)} of {len(ratios)} that grow most, all are in the table"
    if _judged(result, "counts"):
        note += ", with the exact counts, which read what they count and have no limit"
    chart = Bars([Row(what) for what in drawn], panels, base, shared=True)
    title = f"Among {many} workflows of each kind {finding}"
    return Picture(name, title, chart, _table(result, states, few, many), note)


def _grown(measured: Mapping[str, Any] | None, limit: float) -> Bar:
    if measured is None:
        return Bar(None, "not measured")
    value = need(measured, "ratio")
    return Bar(value, f"{exact(value)}×", ink=Ink.OURS if value <= limit else Ink.SECOND)


def _judged(result: Result, *parts: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Operation → what state the tables were in → its figures."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for part in parts:
        for each in mappings(result.figures.get(part)):
            if number(each, "ratio") is not None:
                found.setdefault(str(each.get("operation")), {})[str(each.get("state") or "")] = each
    return found


def _table(result: Result, states: Sequence[str], few: str, many: str) -> Table:
    columns = ["operation"]
    for state in states:
        columns += [f"{state}: among {few}", f"among {many}", "ratio"]
    rows = []
    for what, measured in _judged(result, "operations", "memory", "counts").items():
        row = [what]
        for state in states:
            each = measured.get(state, {})
            unit = "MB" if number(each, "few_mb") is not None else "ms"
            row += [_with(number(each, key, f"{key[:-2]}mb"), unit) for key in ("few_ms", "many_ms")]
            row.append(exact(number(each, "ratio")))
        rows.append(row)
    return Table(columns, rows)


def _with(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{rough(value)} {unit}"


def _misplaced(results: Sequence[Result]) -> list[str]:
    return [
        f"{result.path.name}: {exact(count)} workflows are not in exactly one place"
        for result in results
        for shard in mappings(result.figures.get("shards"))
        if (count := number(shard, "misplaced"))
    ]


def sleepers(results: Sequence[Result]) -> Section:
    """What suspended workflows cost a worker's memory."""
    pictures = []
    for place, result in enumerate(results):
        pictures.append(_sleepers("sleepers" if place == 0 else f"sleepers-{place + 1}", result))
    return Section("Suspended workflows", pictures, results, warnings=faults(results))


def _sleepers(name: str, result: Result) -> Picture:
    parts = {key: part for key in _PARTS if isinstance(part := result.figures.get(key), dict)}
    if not parts:
        raise Unusable("has no part of its measurement")
    count = whole(result.figures, "count") or whole(result.options, "count")
    panels = [
        BarPanel(title, [_memory(part, key) for part in parts.values()])
        for title, key in (("one in a hundred asleep", "rss_mb_at_a_hundredth"), ("all asleep", "rss_mb_at_all"))
    ]
    most = max(need(part, "rss_mb_at_all") for part in parts.values())
    less = max(need(part, "rss_mb_at_a_hundredth") for part in parts.values())
    many = exact(count) if count else "many"
    title = (
        f"With {many} workflows suspended a worker takes {rough(most)} MB; with a hundredth of them {rough(less)} MB"
    )
    chart = Bars([_PARTS[key] for key in parts], panels, "resident memory of the worker, MB", shared=True)
    columns = list(dict.fromkeys(key for part in parts.values() for key in part))
    rows = [[_PARTS[key].name, *(exact(number(part, column)) for column in columns)] for key, part in parts.items()]
    table = Table(["", *(column.replace("_", " ") for column in columns)], rows)
    return Picture(name, title, chart, table, "one worker process on one shard; lateness by the server's clock")


def _memory(part: Mapping[str, Any], key: str) -> Bar:
    value = number(part, key)
    return Bar(None, "not measured") if value is None else Bar(value, f"{rough(value)} MB", ink=Ink.OURS)

"""`bench latency`: how long callers wait for a result, at one rate or over several."""

from __future__ import annotations

from collections.abc import Sequence

from .charts import Bar, BarPanel, Bars, Ink, Line, LinePanel, Lines, Picture, Row, Section, Table
from .files import Result
from .words import exact, faults, need, number, plural, rough, steps_of, whole

#: Which figure, its name at the line's end, its colour.
_PARTS = (
    ("p50_ms", "half within", Ink.OURS),
    ("p90_ms", "90 % within", Ink.THIRD),
    ("p99_ms", "99 % within", Ink.SECOND),
    ("max_ms", "longest", Ink.OTHERS),
)
#: Percentiles, and rates, further apart than this need a scale of powers.
_WIDE = 40.0
_FEW = 8.0
#: Submits a second that the title of a curve tells about, where they are on it.
_USUAL = 100.0


def section(results: Sequence[Result]) -> Section:
    """A curve over the rates where one situation was measured at several; bars for those measured at one."""
    for result in results:
        need(result.figures, "p50_ms")
        need(result.figures, "p99_ms")
    groups: dict[tuple[int, ...], dict[float, Result]] = {}
    for result in sorted(results, key=lambda result: result.time):
        key = tuple(whole(result.options, name) for name in ("steps", "workers", "shards", "payload", "backlog"))
        groups.setdefault(key, {})[number(result.options, "rate") or 0.0] = result
    curves = [group for group in groups.values() if len(group) > 1]
    single = [result for group in groups.values() if len(group) == 1 for result in group.values()]
    pictures = [
        _curve("latency" if order == 0 else f"latency-{order + 1}", [group[rate] for rate in sorted(group)])
        for order, group in enumerate(sorted(curves, key=len, reverse=True))
    ]
    beside = [result for result in single if whole(result.options, "backlog")]
    alone = [result for result in single if not whole(result.options, "backlog")]
    if alone:
        pictures.append(_bars("latency" if not pictures else f"latency-{len(pictures) + 1}", alone))
    if beside:
        pictures.append(_bars("latency-backlog", beside))
    return Section("Latency", pictures, results, warnings=faults(results))


def situation(result: Result) -> str:
    """What was submitted, and beside what."""
    options = result.options
    parts = [steps_of(whole(options, "steps", 1))]
    if workers := whole(options, "workers"):
        parts.append(f"{plural(workers, 'worker')} on {plural(whole(options, 'shards', 1), 'shard')}")
    if backlog := whole(options, "backlog"):
        parts.append(f"beside a backlog of {exact(backlog)} in another queue")
    return ", ".join(parts)


def _curve(name: str, results: Sequence[Result]) -> Picture:
    rates = [need(result.options, "rate") for result in results]
    lines = []
    for key, title, ink in _PARTS[:3]:
        ys = [need(result.figures, key) for result in results if number(result.figures, key) is not None]
        if len(ys) == len(rates):
            lines.append(Line(f"{title} {rough(ys[-1])} ms", rates, ys, ink, points=True))
    values = [y for line in lines for y in line.ys if y > 0]
    steep = max(values) / min(values) > _WIDE if values else False
    axis = "ms from submit to result" + (", each line ten times the one before" if steep else "")
    wide = max(rates) / max(min(rates), 1e-9) > _FEW
    chart = Lines([LinePanel(axis, lines, log=steep)], "submits a second", rates, log=wide)
    place = rates.index(_USUAL) if _USUAL in rates else 0
    told, last = results[place].figures, results[-1].figures
    title = (
        f"At {rough(rates[place])} submits a second, half of the results are there within"
        f" {rough(need(told, 'p50_ms'))} ms and 99 % within {rough(need(told, 'p99_ms'))} ms"
    )
    if place < len(rates) - 1:
        title += f"; at {rough(rates[-1])} within {rough(need(last, 'p50_ms'))} and {rough(need(last, 'p99_ms'))}"
    return Picture(name, title, chart, _table(results), _note(results))


def _bars(name: str, results: Sequence[Result]) -> Picture:
    rows = [Row(title) for _, title, _ in _PARTS]
    panels = [
        BarPanel(
            f"{rough(need(result.options, 'rate'))}/s, {steps_of(whole(result.options, 'steps', 1))}"
            + (" beside a backlog" if whole(result.options, "backlog") else ""),
            [_bar(result, key, ink) for key, _, ink in _PARTS],
        )
        for result in results[:3]
    ]
    shown = results[0]
    backlog = whole(shown.options, "backlog")
    title = (
        (f"Beside a backlog of {exact(backlog)}, at" if backlog else "At")
        + f" {rough(need(shown.options, 'rate'))} submits a second, half of the results are there within"
        f" {rough(need(shown.figures, 'p50_ms'))} ms and 99 % within {rough(need(shown.figures, 'p99_ms'))} ms"
    )
    return Picture(name, title, Bars(rows, panels, "ms from submit to result"), _table(results), _note(results))


def _bar(result: Result, key: str, ink: Ink) -> Bar:
    value = number(result.figures, key)
    return Bar(None, "not measured") if value is None else Bar(value, f"{rough(value)} ms", ink=ink)


def _note(results: Sequence[Result]) -> str:
    situations = list(dict.fromkeys(situation(result) for result in results))
    arrivals = "even" if results[0].options.get("arrivals") == "even" else "random (Poisson)"
    return f"{'; '.join(situations)}; {arrivals} arrivals from one client"


def _table(results: Sequence[Result]) -> Table:
    columns = ["submits/s", "what", "50 % ms", "90 % ms", "99 % ms", "longest ms", "submit alone 50 % ms", "99 % ms"]
    columns += ["results", "errors", "idle: queries/s", "idle: worker CPU %"]
    keys = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "submit_p50_ms", "submit_p99_ms", "count", "errors")
    rows = [
        [
            rough(number(result.options, "rate")),
            situation(result),
            *(exact(number(result.figures, key)) for key in keys),
            exact(number(result.figures, "idle_queries_per_s")),
            exact(number(result.figures, "idle_worker_cpu_percent")),
        ]
        for result in results
    ]
    return Table(columns, rows, texts=(0, 1))

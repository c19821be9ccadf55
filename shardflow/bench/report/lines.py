"""Draws lines: panels above each other over one axis, each line named at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .canvas import WIDTH, Canvas, numbers
from .charts import Ink, Line, LinePanel, Lines

_LEFT = 0.85
_RIGHT = 1.75
_HEAD = 0.42
_FOOT = 0.5
_ONE = 3.3
_SEVERAL = 1.0
_NAME = 0.165


def draw(chart: Lines, colours: Mapping[Ink, str], title: str, footer: str) -> Any:
    """The figure."""
    height = _ONE if len(chart.panels) == 1 else _SEVERAL
    canvas = Canvas(len(chart.panels) * (_HEAD + height) + _FOOT, colours, title, footer)
    low, high = _reach(chart)
    for number, panel in enumerate(chart.panels):
        top = _HEAD + number * (_HEAD + height)
        axes = canvas.axes(_LEFT, top, WIDTH - _LEFT - _RIGHT, height)
        canvas.text(0.16, top - 0.25, panel.axis, Ink.TEXT, size=8.5, weight="bold")
        last = number == len(chart.panels) - 1
        _horizontal(axes, chart, low, high, last, colours)
        _vertical(axes, panel)
        axes.grid(axis="y", color=colours[Ink.GRID], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["bottom"].set_visible(True)
        axes.spines["bottom"].set_color(colours[Ink.SOFT])
        _spans(axes, chart, colours, number == 0)
        for line in panel.lines:
            _line(axes, line, colours)
        _names(axes, panel, height, colours)
    return canvas.figure


def _reach(chart: Lines) -> tuple[float, float]:
    xs = [x for panel in chart.panels for line in panel.lines for x in line.xs]
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    if chart.log:
        return low / 1.15, high * 1.05
    return 0.0, high if high > 0 else 1.0


def _horizontal(axes: Any, chart: Lines, low: float, high: float, named: bool, colours: Mapping[Ink, str]) -> None:
    if chart.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
    if chart.ticks is not None:
        axes.xaxis.set_major_locator(FixedLocator(list(chart.ticks)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    elif not chart.log:
        numbers(axes.xaxis, 10)
    if named:
        axes.set_xlabel(chart.axis, size=8.5, color=colours[Ink.SOFT], loc="left", labelpad=4)
    else:
        axes.tick_params(labelbottom=False)


def _vertical(axes: Any, panel: LinePanel) -> None:
    values = [value for line in panel.lines for part in (line.ys, line.low or (), line.high or ()) for value in part]
    if panel.limit is not None:
        values.append(panel.limit)
    most = max(values, default=1.0)
    if not panel.log:
        axes.set_ylim(0, most * 1.12 if most > 0 else 1)
        numbers(axes.yaxis, 5)
        return
    least = min((value for value in values if value > 0), default=1.0)
    axes.set_yscale("log")
    axes.set_ylim(least / 1.6, max(most, least) * 1.6)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _spans(axes: Any, chart: Lines, colours: Mapping[Ink, str], named: bool) -> None:
    for span in chart.spans:
        axes.axvspan(span.start, span.end, color=colours[Ink.OTHERS], alpha=0.2, linewidth=0)
        if named:
            axes.annotate(
                span.text,
                ((span.start + span.end) / 2, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                size=8,
                color=colours[Ink.SOFT],
            )


def _line(axes: Any, line: Line, colours: Mapping[Ink, str]) -> None:
    axes.plot(
        line.xs,
        line.ys,
        color=colours[line.ink],
        linewidth=1.3 if line.dashed else 1.9,
        linestyle=(0, (5, 3)) if line.dashed else "-",
        marker="o" if line.points else None,
        markersize=5,
        zorder=2 if line.dashed else 3,
        clip_on=not line.points,
        solid_joinstyle="round",
    )
    if line.low is not None and line.high is not None:
        down = [max(0.0, y - low) for y, low in zip(line.ys, line.low, strict=True)]
        up = [max(0.0, high - y) for y, high in zip(line.ys, line.high, strict=True)]
        if any(down) or any(up):
            axes.errorbar(
                line.xs,
                line.ys,
                yerr=[down, up],
                fmt="none",
                color=colours[line.ink],
                linewidth=1,
                capsize=3,
                zorder=4,
            )
    # The last point has its name behind it.
    for x, y, text in zip(line.xs[:-1], line.ys, line.labels or (), strict=False):
        axes.annotate(
            text,
            (x, y),
            xytext=(7, -11),
            textcoords="offset points",
            size=8.5,
            color=colours[Ink.TEXT],
            annotation_clip=False,
            zorder=5,
        )


def _names(axes: Any, panel: LinePanel, height: float, colours: Mapping[Ink, str]) -> None:
    """Each line's name behind its last point, moved apart where they would cover each other."""
    gap = _NAME * (2 if any("\n" in line.name for line in panel.lines) else 1)
    ends = [(line.ys[-1], line.name, line.ink) for line in panel.lines if line.ys and line.name]
    if panel.limit is not None:
        axes.axhline(panel.limit, color=colours[Ink.SECOND], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        ends.append((panel.limit, panel.limit_text, Ink.SECOND))
    down = axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    places = sorted(
        (
            (float(down.transform(axes.transData.transform((right, end)))[1]), name, ink)
            for end, name, ink in ends
            if end == end
        ),
        key=lambda place: place[0],
    )
    for y, (_, name, ink) in zip(spread([place for place, *_ in places], gap / height), places, strict=True):
        axes.annotate(
            name,
            (1.0, y),
            xycoords="axes fraction",
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            weight="bold",
            color=colours[ink],
            annotation_clip=False,
        )


def spread(places: list[float], gap: float) -> list[float]:
    """Ascending places moved as little as needed to lie `gap` apart; groups stay around their middle."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], gap) - _end(groups[-2], gap) < gap:
            last = groups.pop()
            groups[-1].extend(last)
    return [_start(group, gap) + number * gap for group in groups for number in range(len(group))]


def _start(group: list[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _end(group: list[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2

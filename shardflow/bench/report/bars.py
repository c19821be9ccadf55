"""Draws bars: one panel beside the other, their names and notes at the left, values and ranges at their ends."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .canvas import WIDTH, Canvas, numbers, short
from .charts import BarPanel, Bars, Ink, Row

_NAMES = 2.55
#: The most that names without notes may take, and the letters that fit there.
_LONG_NAMES, _LONG_LETTERS = 4.1, 48
_NAME_LETTER = 0.088
#: Ranges shorter than this, in inches, would be a blot.
_BLOT = 0.04
_GAP = 0.36
#: Powers of ten before the first point.
_BEFORE = 0.2
_RIGHT = 0.12
_HEAD = 0.34
_FOOT = 0.46
_ROW = 0.34
_NOTE_LINE = 0.155
_NOTE_LETTERS = 40
_LETTER = 0.066
_THICK = 0.22


def draw(chart: Bars, colours: Mapping[Ink, str], title: str, footer: str) -> Any:
    """The figure."""
    notes = [textwrap.wrap(row.note, _NOTE_LETTERS, max_lines=3, placeholder=" …") for row in chart.rows]
    heights = [_ROW + len(lines) * _NOTE_LINE for lines in notes]
    body = sum(heights)
    canvas = Canvas(_HEAD + body + _FOOT, colours, title, footer)
    places, top = [], 0.0
    for row, lines, height in zip(chart.rows, notes, heights, strict=True):
        places.append(top + height / 2)
        _name(canvas, row, lines, _HEAD + top + height / 2)
        top += height
    names = _NAMES
    if not any(notes):
        names = min(_LONG_NAMES, 0.25 + max(len(row.name) for row in chart.rows) * _NAME_LETTER)
    width = (WIDTH - 0.16 - names - _RIGHT - _GAP * (len(chart.panels) - 1)) / len(chart.panels)
    for number, panel in enumerate(chart.panels):
        left = 0.16 + names + number * (width + _GAP)
        axes = canvas.axes(left, _HEAD, width, body)
        axes.set_ylim(body, 0)
        axes.set_yticks([])
        canvas.text(left, 0.06, panel.title, size=9.5, weight="bold")
        _scale(axes, chart, chart.panels if chart.shared else [panel], width)
        _bars(axes, chart, panel, places, colours, width)
        axes.set_xlabel(chart.axis, size=8, color=colours[Ink.SOFT], loc="left", labelpad=3)
    return canvas.figure


def _name(canvas: Canvas, row: Row, lines: list[str], middle: float) -> None:
    top = middle - (0.14 + len(lines) * _NOTE_LINE) / 2
    name = textwrap.shorten(row.name, _LONG_LETTERS if not lines else _NOTE_LETTERS, placeholder=" …")
    canvas.text(0.16, top, name, size=9.5, weight="bold")
    for number, line in enumerate(lines):
        canvas.text(0.16, top + 0.175 + number * _NOTE_LINE, line, Ink.SOFT, size=7.8)


def _scale(axes: Any, chart: Bars, panels: Sequence[BarPanel], width: float) -> None:
    """An axis long enough that what is written behind each bar of these panels stays within them."""
    bars = [bar for panel in panels for bar in panel.bars]
    ends = [(max(bar.value, bar.high or 0.0), bar.text) for bar in bars if bar.value is not None]
    ends += [(panel.limit, panel.limit_text) for panel in panels if panel.limit is not None]
    room = [(end, width / max(width * 0.3, width - 0.14 - len(text) * _LETTER)) for end, text in ends]
    if not chart.log:
        most = max((end * more for end, more in room), default=0.0)
        axes.set_xlim(0, most if most > 0 else 1)
        numbers(axes.xaxis, 3 if len(chart.panels) > 1 else 6)
        return
    lows = [bar.low if bar.low else bar.value for bar in bars if bar.value]
    first = math.log10(min(lows, default=1.0) or 1.0) - _BEFORE
    last = max((first + (math.log10(end) - first) * more for end, more in room if end > 0), default=first + 1.0)
    axes.set_xscale("log")
    axes.set_xlim(10**first, 10 ** max(last, first + 1.0))
    # No lines where nothing but what is written behind the bars can be.
    most = max((end for end, _ in ends), default=1.0) or 1.0
    axes.xaxis.set_major_locator(
        FixedLocator([10.0**power for power in range(math.ceil(first), math.ceil(math.log10(most)) + 1)])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _inches(axes: Any, low: float, high: float, width: float) -> float:
    """How long that range is on these axes."""
    points = axes.transAxes.inverted().transform(axes.transData.transform([(low, 0.0), (high, 0.0)]))
    return float(points[1][0] - points[0][0]) * width


def _bars(
    axes: Any, chart: Bars, panel: BarPanel, places: list[float], colours: Mapping[Ink, str], width: float
) -> None:
    axes.grid(axis="x", color=colours[Ink.GRID], linewidth=0.8)
    axes.set_axisbelow(True)
    start = axes.get_xlim()[0]
    axes.axvline(start, color=colours[Ink.SOFT], linewidth=1.0, zorder=3)
    if panel.limit is not None:
        axes.axvline(panel.limit, color=colours[Ink.SECOND], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        place = (panel.limit, 1.0)
        offset = {"xytext": (3, 3), "textcoords": "offset points"}
        axes.annotate(
            panel.limit_text, place, xycoords=axes.get_xaxis_transform(), size=8, color=colours[Ink.SECOND], **offset
        )
    for bar, y in zip(panel.bars, places, strict=True):
        end = start
        if bar.value is not None:
            end = max(bar.value, bar.high or 0.0)
            if chart.log:
                axes.plot([bar.value], [y], "o", markersize=7, color=colours[bar.ink], zorder=4)
            else:
                axes.barh([y], [bar.value], _THICK, color=colours[bar.ink], zorder=2)
            if bar.low is not None and bar.high is not None and _inches(axes, bar.low, bar.high, width) > _BLOT:
                axes.errorbar(
                    [bar.value],
                    [y],
                    xerr=[[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]],
                    color=colours[Ink.TEXT],
                    linewidth=1.0,
                    capsize=2.5,
                    zorder=5,
                )
        axes.annotate(
            bar.text,
            (end, y),
            xytext=(5 if bar.value is not None else 4, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=colours[Ink.TEXT if bar.value is not None else Ink.SOFT],
            weight="bold" if bar.ink is Ink.OURS and bar.value is not None else "normal",
            annotation_clip=False,
            bbox={"facecolor": colours[Ink.PAPER], "edgecolor": "none", "pad": 0.6},
            zorder=6,
        )

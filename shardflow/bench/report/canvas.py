"""What all drawings share: a figure laid out in inches, with a title and a footer, and quiet axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .charts import Ink

#: Inches.
WIDTH = 9.4
_MARGIN = 0.16
_TITLE_LINE = 0.27
_FOOTER_LINE = 0.17
_TITLE_LETTERS = 84
_FOOTER_LETTERS = 152


class Canvas:
    """A figure whose body has a given height; places are inches from the left and from the body's top."""

    def __init__(self, height: float, colours: Mapping[Ink, str], title: str, footer: str) -> None:
        head = balanced(title, _TITLE_LETTERS)
        foot = textwrap.wrap(footer, _FOOTER_LETTERS)
        self.colours = colours
        self._top = _MARGIN + (len(head) * _TITLE_LINE + 0.12 if head else 0.0)
        bottom = len(foot) * _FOOTER_LINE + 0.1 if foot else 0.0
        self._height = self._top + height + bottom + _MARGIN
        self.figure = Figure(figsize=(WIDTH, self._height))
        for number, text in enumerate(head):
            y = _MARGIN + number * _TITLE_LINE
            self._text(_MARGIN, y, text, size=13, weight="bold", color=colours[Ink.TEXT])
        for number, text in enumerate(foot):
            y = self._top + height + 0.1 + number * _FOOTER_LINE
            self._text(_MARGIN, y, text, size=8, color=colours[Ink.SOFT])

    def _text(self, x: float, y: float, text: str, **look: Any) -> None:
        self.figure.text(x / WIDTH, 1 - y / self._height, text, ha="left", va="top", **look)

    def text(self, x: float, y: float, text: str, ink: Ink = Ink.TEXT, **look: Any) -> None:
        """Text whose upper left corner is there."""
        self._text(x, self._top + y, text, color=self.colours[ink], **look)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes without a frame, with grey numbers."""
        bottom = self._height - self._top - top - height
        axes = self.figure.add_axes((left / WIDTH, bottom / self._height, width / WIDTH, height / self._height))
        axes.set_facecolor("none")
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0, labelsize=8, colors=self.colours[Ink.SOFT])
        return axes


def balanced(text: str, most: int) -> list[str]:
    """The text in as few lines of at most so many letters as it takes, none much shorter than the others."""
    lines = textwrap.wrap(text, most)
    for width in range(most - 1, most // 2, -1):
        narrower = textwrap.wrap(text, width, break_long_words=False)
        if len(narrower) > len(lines) or any(len(line) > width for line in narrower):
            break
        lines = narrower
    return lines


def short(value: float) -> str:
    """A power of ten as it stands at an axis: 100, 10k, 1M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def numbers(axis: Any, most: int) -> None:
    """At most so many numbers at round places, with separators."""
    axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))

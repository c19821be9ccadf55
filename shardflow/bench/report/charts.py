"""What a report shows, before anything is drawn: charts, the tables beside them, and the sections they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .files import Result


class Ink(Enum):
    """A colour by its meaning. The first four tell lines apart, also for readers who see few colours."""

    OURS = "ours"
    SECOND = "second"
    THIRD = "third"
    FOURTH = "fourth"
    OTHERS = "others"
    REFERENCE = "reference"
    TEXT = "text"
    SOFT = "soft"
    GRID = "grid"
    PAPER = "paper"


LINES = (Ink.OURS, Ink.SECOND, Ink.THIRD, Ink.FOURTH)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: its value, the lowest and highest run, what is written behind it. Without a value only the text."""

    value: float | None
    text: str
    low: float | None = None
    high: float | None = None
    ink: Ink = Ink.OTHERS


@dataclass(frozen=True, slots=True)
class Row:
    """What a row of bars is about, and a note in smaller letters under its name."""

    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class BarPanel:
    """Bars of one situation, one for each row of the chart; `limit` is a line that they may not pass."""

    title: str
    bars: Sequence[Bar]
    limit: float | None = None
    limit_text: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars from zero; with `log`, points on a scale where each line is ten times the one before.

    `shared`: all panels have one scale, so that bars of different panels compare.
    """

    rows: Sequence[Row]
    panels: Sequence[BarPanel]
    axis: str
    log: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line through points, named at its end; `low` and `high` are the range of the runs at each point."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    ink: Ink
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    points: bool = False
    labels: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class LinePanel:
    """Lines that share an axis, which starts at zero unless `log`; `limit` is a line with a name of its own."""

    axis: str
    lines: Sequence[Line]
    log: bool = False
    limit: float | None = None
    limit_text: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the horizontal axis that is shaded, and what happened then."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Panels above each other over one horizontal axis. `ticks` are the only places named there, where given."""

    panels: Sequence[LinePanel]
    axis: str
    ticks: Sequence[float] | None = None
    log: bool = False
    spans: Sequence[Span] = ()


Chart = Bars | Lines


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a picture. The columns at the places `texts` hold words, all others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[int] = (0,)


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart with its table. `name` is its file's, `title` says the finding, `note` how it was measured."""

    name: str
    title: str
    chart: Chart
    table: Table
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark: its pictures, the results they come from, and what a reader must be warned of."""

    title: str
    pictures: Sequence[Picture]
    results: Sequence[Result]
    text: str = ""
    warnings: Sequence[str] = field(default=())

"""Draws charts with matplotlib: as PNG on white paper, or as SVG whose colours and letters are the page's.

In the SVG every colour is a variable of the page's style, so that one drawing serves light and dark.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ...errors import ShardflowError
from .charts import Bars, Chart, Ink, Picture

#: Told apart by readers who see few colours, too (after Okabe and Ito, https://jfly.uni-koeln.de/color/).
LIGHT = {
    Ink.OURS: "#0072b2",
    Ink.SECOND: "#c75200",
    Ink.THIRD: "#00896b",
    Ink.FOURTH: "#a8568a",
    Ink.OTHERS: "#a3acb8",
    Ink.REFERENCE: "#5f6b7a",
    Ink.TEXT: "#1a1d21",
    Ink.SOFT: "#5a626c",
    Ink.GRID: "#e2e6ea",
    Ink.PAPER: "#ffffff",
}
DARK = {
    Ink.OURS: "#56b4e9",
    Ink.SECOND: "#f0904a",
    Ink.THIRD: "#3cc8a0",
    Ink.FOURTH: "#dc9cc8",
    Ink.OTHERS: "#707a87",
    Ink.REFERENCE: "#a9b3bf",
    Ink.TEXT: "#e8eaed",
    Ink.SOFT: "#a7aeb7",
    Ink.GRID: "#333940",
    Ink.PAPER: "#16191d",
}
#: Stand in for the page's variables until the SVG is written.
_MARKS = {ink: f"#0101{number:02x}" for number, ink in enumerate(Ink, 0x10)}
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "path.simplify": True,
}
#: The text of a PNG that says what it shows.
ORIGIN = "shardflow-figures"
_DPI = 170
_COLOURS = 96


class NoMatplotlib(ShardflowError):
    """Pictures need matplotlib: pip install 'shardflow[report]'"""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def check() -> None:
    """Raises NoMatplotlib where it is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise NoMatplotlib from error


def png(picture: Picture, footer: str, path: Path) -> None:
    """Writes the picture with its title; `footer` says in small letters how and where it was measured."""
    import matplotlib
    from PIL import Image  # matplotlib needs it, too
    from PIL.PngImagePlugin import PngInfo

    with matplotlib.rc_context(_SETTINGS):
        figure = _draw(picture.chart, LIGHT, picture.title, footer)
        file = io.BytesIO()
        figure.savefig(file, dpi=_DPI, facecolor=LIGHT[Ink.PAPER], metadata={"Software": None})
    # A third of the size: few colours are all that such a drawing has.
    few = Image.open(file).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    about = PngInfo()
    about.add_text(ORIGIN, digest(picture))
    few.save(path, optimize=True, pnginfo=about)


def digest(picture: Picture) -> str:
    """Says which figures a picture shows: its PNG has it as its text `ORIGIN`, so that an old one can be told."""
    return hashlib.sha256(repr(picture).encode()).hexdigest()[:16]


def svg(picture: Picture) -> str:
    """The chart alone as an element for a page, which gives it its title and its colours."""
    import matplotlib

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": picture.name}):
        file = io.StringIO()
        figure = _draw(picture.chart, _MARKS, "", "")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(file.getvalue(), picture)


def _draw(chart: Chart, colours: Mapping[Ink, str], title: str, footer: str) -> Any:
    from . import bars, lines

    if isinstance(chart, Bars):
        return bars.draw(chart, colours, title, footer)
    return lines.draw(chart, colours, title, footer)


def _for_page(text: str, picture: Picture) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.S)
    own = re.escape(picture.name)
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{own}-", text)
    text = text.replace("'DejaVu Sans', sans-serif", "var(--letters)")
    for ink, mark in _MARKS.items():
        text = text.replace(mark, f"var(--{ink.value})")
    label = quoteattr(f"{picture.title}. The figures are in the table beside it.")
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label={_escaped(label)}>', text, count=1
    )


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\")

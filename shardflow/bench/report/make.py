"""Makes the page and the pictures out of result files. One result that cannot be shown stops no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...errors import ShardflowError
from . import compare, drawing, endurance, latency, page, scaleout, throughput, world
from .charts import Section
from .files import Result, Unread, Unusable, load
from .words import durability, machine

#: Benchmark → its section, in the order of the page.
SECTIONS: Mapping[str, Callable[[Sequence[Result]], Section]] = {
    "throughput": throughput.section,
    "latency": latency.section,
    "compare": compare.section,
    "compare-sweep": compare.sweep,
    "scaleout": scaleout.section,
    "soak": endurance.soak,
    "horizon": endurance.horizon,
    "million": world.million,
    "sleepers": world.sleepers,
}

#: What figures of another kind than expected may lead to.
_STRANGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class NothingToShow(ShardflowError):
    """None of the files is a result that can be shown."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was written, and the files that could not be shown."""

    page: Path
    pictures: Sequence[Path]
    shown: Sequence[Path]
    unread: Sequence[Unread]


def make(paths: Sequence[Path], out: Path, png: Path | None) -> Made:
    """Writes the page to `out`, and the pictures into the folder `png` where one is given.

    Raises NoMatplotlib, NothingToShow (with the reasons), and OSError where a file cannot be written.
    """
    drawing.check()
    sections, unread = gather(paths)
    sections, drawn = _drawn(sections, unread)
    if not sections:
        reasons = "".join(f"\n  {each.path}: {each.reason}" for each in unread) or " there are no .json files"
        raise NothingToShow(f"nothing can be shown:{reasons}")
    out.parent.mkdir(parents=True, exist_ok=True)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    out.write_text(page.html(sections, drawn, unread, when), encoding="utf-8")
    pictures = _pictures(sections, png) if png is not None else []
    shown = [result.path for section in sections for result in section.results]
    return Made(out, pictures, shown, unread)


def _drawn(sections: Sequence[Section], unread: list[Unread]) -> tuple[list[Section], dict[str, str]]:
    """The sections that can be drawn, and each picture as SVG by its name. What cannot be drawn goes to `unread`."""
    good: list[Section] = []
    drawn: dict[str, str] = {}
    for section in sections:
        try:
            drawn |= {picture.name: drawing.svg(picture) for picture in section.pictures}
            good.append(section)
        except _STRANGE:
            make_section = SECTIONS[section.results[0].benchmark]
            rest = []
            for result in section.results:
                try:
                    for picture in make_section([result]).pictures:
                        drawing.svg(picture)
                    rest.append(result)
                except _STRANGE as error:
                    unread.append(Unread(result.path, f"its figures cannot be drawn: {_told(error)}"))
            if rest:
                good.append(make_section(rest))
                drawn |= {picture.name: drawing.svg(picture) for picture in good[-1].pictures}
    return good, drawn


def _pictures(sections: Sequence[Section], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for section in sections:
        for picture in section.pictures:
            path = folder / f"{picture.name}.png"
            drawing.png(picture, _footer(picture.note, section.results), path)
            written.append(path)
    return written


def gather(paths: Sequence[Path]) -> tuple[list[Section], list[Unread]]:
    """The sections that the files give, and the files that give none."""
    results, unread = load(paths)
    by_name: dict[str, list[Result]] = {}
    for result in results:
        if result.benchmark in SECTIONS:
            by_name.setdefault(result.benchmark, []).append(result)
        else:
            unread.append(Unread(result.path, f"the benchmark {result.benchmark!r} is not known here"))
    sections = []
    for name, make_section in SECTIONS.items():
        good = []
        for result in by_name.get(name, []):
            try:
                make_section([result])
            except Unusable as reason:
                unread.append(Unread(result.path, str(reason)))
            except _STRANGE as error:
                unread.append(Unread(result.path, f"its figures cannot be read: {_told(error)}"))
            else:
                good.append(result)
        if good:
            sections.append(make_section(good))
    return sections, unread


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _footer(note: str, results: Sequence[Result]) -> str:
    """How and where, under a picture that stands alone."""
    places = list(dict.fromkeys(place for result in results if (place := machine(result))))
    kept = list(dict.fromkeys(text for result in results if (text := durability(result))))
    return ". ".join(part for part in (note, "; ".join([*places[:2], *kept])) if part)

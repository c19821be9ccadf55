"""Makes the pictures and the figures of the documentation from the result files, so that they say what was measured.

In README.md and docs/performance.md everything between `<!-- figures: NAME -->` and `<!-- end of figures -->` is made
here; `picture NAME` is a picture, which lies in docs/pictures. With `--check` nothing is written, and what differs is
named: then the exit code is 1.

    python benchmarks/figures.py
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from _blocks import BLOCKS, picture
from _promises import Results

from shardflow.bench.report.charts import Picture
from shardflow.bench.report.drawing import ORIGIN, digest
from shardflow.bench.report.files import load
from shardflow.bench.report.make import gather, make

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
_BLOCK = re.compile(r"(<!-- figures: (?P<name>[^>]+?) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def read(folder: Path) -> Results:
    """The results in a folder, by their files' names."""
    return {result.path.stem: result for result in load([folder])[0]}


def drawings(folder: Path) -> dict[str, Picture]:
    """The pictures that the results in a folder give, by their names."""
    return {each.name: each for section in gather([folder])[0] for each in section.pictures}


def filled(document: Path, text: str, results: Results, pictures: Mapping[str, Picture]) -> str:
    """The text with what the results say in its blocks. Raises KeyError for a block that nobody knows."""
    folder = os.path.relpath(PICTURES, document.parent)

    def block(found: re.Match[str]) -> str:
        name, _, which = found["name"].partition(" ")
        made = picture(which, pictures, folder, results) if name == "picture" else BLOCKS[name](results)
        return f"{found[1]}{made}\n{found[3]}" if made else f"{found[1]}{found[3]}"

    return _BLOCK.sub(block, text)


def stale(results: Path = RESULTS, pictures: Path = PICTURES) -> list[str]:
    """What does not say what the results say: documents, and pictures that are old, missing or too many."""
    known, drawn = read(results), drawings(results)
    found = [
        str(each.relative_to(ROOT))
        for each in DOCUMENTS
        if (text := each.read_text(encoding="utf-8")) != filled(each, text, known, drawn)
    ]
    there = {path.stem: path for path in pictures.glob("*.png")}
    for name in sorted(there.keys() | drawn.keys()):
        if name not in drawn or name not in there or _says(there[name]) != digest(drawn[name]):
            found.append(f"docs/pictures/{name}.png")
    return found


def _says(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get(ORIGIN))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, only name what is out of date")
    given = parser.parse_args(arguments)
    if given.check:
        for name in (old := stale()):
            print(f"does not say what the results say: {name}")
        return 1 if old else 0
    with tempfile.TemporaryDirectory() as scratch:
        made = make([RESULTS], Path(scratch) / "report.html", PICTURES)
    for path in set(PICTURES.glob("*.png")) - set(made.pictures):
        path.unlink()
    for each in made.unread:
        print(f"not shown: {each.path.name}: {each.reason}", file=sys.stderr)
    known, drawn = read(RESULTS), drawings(RESULTS)
    for document in DOCUMENTS:
        document.write_text(filled(document, document.read_text(encoding="utf-8"), known, drawn), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

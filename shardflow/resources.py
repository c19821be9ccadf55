"""Finds the folders that are shipped beside the package: `migrations` and `benchmarks`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `name`: inside an installed wheel, or at the top of the checkout this package runs from.

    Raises FileNotFoundError where neither has it.
    """
    for place in (_PACKAGE / "_bundled" / name, _PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the folder {name!r} is missing beside the package at {_PACKAGE}")

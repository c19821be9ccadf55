"""Reads result files. What cannot be read is answered with its reason and stops nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGEST = 20_000_000
#: What only the answer of one benchmark has, for files that do not say which it was.
_SIGNS = {
    "throughput": ("workflows_per_s", "submit_per_s", "verified"),
    "latency": ("p50_ms", "p99_ms", "late_p99_ms"),
    "sleepers": ("at_once", "one_by_one"),
}
_HEAD = ("benchmark", "command", "time", "environment", "options", "figures", "runs", "series")


class Unusable(Exception):
    """A result says nothing that could be shown; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Result:
    """One file. `figures` has all that is not said of the run's circumstances; `data` is the file as it is."""

    path: Path
    benchmark: str
    command: str
    time: str
    environment: Mapping[str, Any]
    options: Mapping[str, Any]
    figures: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that is not shown, and why."""

    path: Path
    reason: str


def load(paths: Iterable[Path]) -> tuple[list[Result], list[Unread]]:
    """The results in these files, and in the `.json` files of these folders, in the order of their names."""
    results: list[Result] = []
    unread: list[Unread] = []
    for path in _files(paths):
        try:
            results.append(_result(path, _object(path)))
        except Unusable as reason:
            unread.append(Unread(path, str(reason)))
    return results, unread


def _files(paths: Iterable[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        for each in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            found[each] = None
    return list(found)


def _object(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise Unusable(f"larger than {_LARGEST // 1_000_000} MB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(error.strerror or "cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise Unusable("is not JSON") from error
    if not isinstance(value, dict):
        raise Unusable("is not a JSON object")
    return value


def _result(path: Path, data: Mapping[str, Any]) -> Result:
    figures = {**_mapping(data, "figures"), **{key: data[key] for key in data if key not in _HEAD}}
    benchmark = data.get("benchmark") or next(
        (name for name, signs in _SIGNS.items() if all(sign in figures for sign in signs)), None
    )
    if not isinstance(benchmark, str):
        raise Unusable("does not say which benchmark it is from")
    runs = data.get("runs")
    return Result(
        path,
        benchmark,
        str(data.get("command") or ""),
        str(data.get("time") or ""),
        _mapping(data, "environment"),
        _mapping(data, "options"),
        figures,
        [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else [],
        data,
    )


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}

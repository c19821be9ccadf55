"""Result files of benchmarks: one JSON object a file, which says by which command and when it came about.

A file is there whole or not at all, and its command names no folder of the machine that wrote it.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: The parts of a result that stand for themselves; what else a benchmark answers belongs to its figures.
PARTS = ("environment", "options", "figures", "runs", "series")


def parts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark's flat answer as the parts of a result file: what is no part by its name becomes a figure."""
    known = {name: answer[name] for name in PARTS if name in answer}
    rest = {name: value for name, value in answer.items() if name not in PARTS}
    return {**known, "figures": {**known.get("figures", {}), **rest}} if rest else known


def write(path: Path, benchmark: str, data: Mapping[str, Any], *, argv: Sequence[str] | None = None) -> None:
    """Writes the result file of `benchmark`, in place of an older one.

    Arguments: `data`, its parts (environment, options, figures, …); `argv`, the command line (the process's own).
    Raises OSError where the file cannot be written.
    """
    head = {
        "benchmark": benchmark,
        "command": command(sys.argv if argv is None else argv),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(_finite({**head, **data}), file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def command(argv: Sequence[str]) -> str:
    """The command line as somebody else would type it: programs by name, files without this machine's folders."""
    program, *arguments = argv or [""]
    return shlex.join([*_program(Path(program)), *map(_portable, arguments)])


def _program(program: Path) -> list[str]:
    if program.name == "__main__.py" and program.parent.name == "cli":
        return ["shardflow"]
    if program.name == "__main__.py":
        return ["python", _portable(str(program.parent))]
    if program.suffix == ".py" or program.is_dir():
        return ["python", _portable(str(program))]
    return [program.name]


def _portable(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if not value.startswith("/"):
        return argument
    here = Path.cwd()
    path = Path(value)
    return option + equals + (str(path.relative_to(here)) if path.is_relative_to(here) else path.name)

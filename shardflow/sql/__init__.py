"""Loads named SQL statements from files: one file per concern, one comment per statement saying what it guarantees.

A file is a sequence of blocks, each opened by a line `-- name: some_name`; comment lines follow, then one statement.
Text in braces, such as `{schema}`, is filled in by the storage layer, which knows how to quote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

_NAME = re.compile(r"^-- name: *([a-z_][a-z0-9_]*) *$")


def parse(text: str, source: str) -> dict[str, str]:
    """Splits the text of a file into its statements, in order, without comment lines and closing semicolons.

    Raises ValueError, naming `source`, for text before the first name, a name used twice, or a block that lacks
    a comment or a statement.
    """
    found: dict[str, str] = {}
    name, comments, lines = "", 0, list[str]()

    def close() -> None:
        body = "\n".join(lines).strip().removesuffix(";")
        if not name:
            if body:
                raise ValueError(f"{source}: a statement stands before the first '-- name:' line")
            return
        if name in found:
            raise ValueError(f"{source}: the name {name!r} is used twice")
        if not body or not comments:
            raise ValueError(f"{source}: {name!r} lacks its {'statement' if not body else 'comment'}")
        found[name] = body

    for line in text.splitlines():
        if match := _NAME.match(line):
            close()
            name, comments, lines = match[1], 0, []
        elif line.startswith("--"):
            comments += 1
        else:
            lines.append(line)
    close()
    return found


@cache
def load(concern: str) -> Mapping[str, str]:
    """The statements of `shardflow/sql/<concern>.sql` by name."""
    source = files(__name__).joinpath(f"{concern}.sql")
    return MappingProxyType(parse(source.read_text(encoding="utf-8"), f"{concern}.sql"))

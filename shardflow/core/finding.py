"""What a checkup finds: a severity, what was seen with its figures, what to do, and the command or SQL for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from .facts import Facts, Setting

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


class Severity(StrEnum):
    """`error`: work stands still, or may be lost. `warning`: it will, or is slower than it need be."""

    ERROR = "error"
    WARNING = "warning"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found on a shard, or about the whole cluster where `shard` is None.

    `remedy` says what to do, and is empty where all is well; `command` is what to type for it where that can be
    said: SQL for psql on that shard, or a command line.
    """

    severity: Severity
    check: str
    shard: str | None
    found: str
    remedy: str = ""
    command: str = ""


class Notes:
    """Collects the findings of one check of one shard; says that all is well only where nothing else was said."""

    def __init__(self, check: str, shard: str | None) -> None:
        self.findings: list[Finding] = []
        self._check = check
        self._shard = shard

    def error(self, found: str, remedy: str, command: str = "") -> None:
        self._add(Severity.ERROR, found, remedy, command)

    def warn(self, found: str, remedy: str, command: str = "") -> None:
        self._add(Severity.WARNING, found, remedy, command)

    def well(self, found: str) -> None:
        if not self.findings:
            self._add(Severity.OK, found)

    def _add(self, severity: Severity, found: str, remedy: str = "", command: str = "") -> None:
        self.findings.append(Finding(severity, self._check, self._shard, found, remedy, command))


def quoted(name: str) -> str:
    """A name for SQL, in double quotes where it needs them."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text for SQL."""
    return "'" + text.replace("'", "''") + "'"


def lasting(seconds: float) -> str:
    """A duration as people say it: '80 ms', '3.2 s', '12 min', '5 h', '3 days'."""
    size = abs(seconds)
    if size < 1:
        return f"{seconds * 1000:.1f} ms" if size < 0.01 else f"{seconds * 1000:.0f} ms"
    for limit, unit, name in ((100, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if size < limit:
            return f"{seconds / unit:.1f} {name}" if unit == 1 and size < 10 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def some(names: list[str], most: int = 3) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """'1 workflow', '2 workflows'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def change(facts: Facts, name: str, setting: Setting, value: str) -> tuple[str, str]:
    """The remedy and the command that make a setting `value`, where it comes from what `setting` says."""
    server = facts.server
    role, database = (quoted(server.role), quoted(server.database)) if server else ("ROLE", "DATABASE")
    anew = "take it back, then restart the workers, whose sessions keep the old value"
    match setting.source:
        case "user":
            return anew, f"ALTER ROLE {role} RESET {name};"
        case "database":
            return anew, f"ALTER DATABASE {database} RESET {name};"
        case "database user":
            return anew, f"ALTER ROLE {role} IN DATABASE {database} RESET {name};"
        case "global":
            return f"{anew} (as a superuser)", f"ALTER ROLE ALL RESET {name};"
        case "client":
            return "take it out of the options of the shard's dsn, or of PGOPTIONS", ""
        case "command line" | "environment variable":
            return "start the server without it on its command line", ""
    return "change it, as a superuser", f"ALTER SYSTEM SET {name} = {value}; SELECT pg_reload_conf();"

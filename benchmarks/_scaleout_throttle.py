"""Holds each Postgres server of ours to a share of one core, so that the servers are what limits a small machine.

The truest way is a CPU quota of the kernel's control groups, which needs root. Without it, every commit waits for a
fixed time, which limits turns instead of work: see `DELAY_MICROSECONDS`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql

from shardflow.bench.arena import Ground
from shardflow.bench.processes import BenchFailed

#: The kernel deals the quota out once in a period. A shorter one is no smoother: a process is only stopped at a tick.
PERIOD_MICROSECONDS = 100_000
#: Groups are called so, with the process that made them and a number.
NAME = "shardflow-scaleout-"
#: What a commit waits for its flush, where no quota can be had. Postgres takes no more.
DELAY_MICROSECONDS = 100_000
#: A worker's places where commits wait: they limit how much a turn does, so that a machine's cores are not the limit.
DELAY_CONCURRENCY = 200


@dataclass(frozen=True, slots=True)
class Periods:
    """Periods of the quota in which the servers had something to do, and those in which they used it up."""

    all: int
    used_up: int


class Throttle(Protocol):
    """`kind` says what slows the servers; they are slow inside of `held`."""

    kind: str

    def held(self) -> contextlib.AbstractContextManager[None]: ...

    def periods(self, servers: int) -> Periods | None:
        """Of the first so many servers, so far; None where nobody counts them."""


class Unheld:
    """The servers are as fast as they are."""

    kind = "none"

    @contextmanager
    def held(self) -> Iterator[None]:
        yield

    def periods(self, servers: int) -> Periods | None:
        return None


class DelayedCommits:
    """Each commit waits before its flush. It needs a superuser, which the servers' account is."""

    kind = "commit_delay"

    def __init__(self, dsns: Sequence[str]) -> None:
        self._dsns = dsns

    @contextmanager
    def held(self) -> Iterator[None]:
        # Without siblings asked for, a commit waits also where it is the only one.
        self._set({"commit_delay": str(DELAY_MICROSECONDS), "commit_siblings": "0"})
        try:
            yield
        finally:
            self._set({"commit_delay": None, "commit_siblings": None})

    def _set(self, settings: dict[str, str | None]) -> None:
        for dsn in self._dsns:
            with psycopg.connect(dsn, autocommit=True) as conn:
                for name, value in settings.items():
                    change = (
                        sql.SQL("ALTER SYSTEM RESET {}") if value is None else sql.SQL("ALTER SYSTEM SET {} = {}")
                    )
                    parts = [sql.Identifier(name)] + ([] if value is None else [sql.Literal(value)])
                    conn.execute(change.format(*parts))
                conn.execute("SELECT pg_reload_conf()")

    def periods(self, servers: int) -> Periods | None:
        return None


@dataclass(frozen=True, slots=True)
class Controller:
    """Where groups with a CPU quota are made: `base` is an existing group; `version` of the kernel's interface."""

    base: Path
    version: int

    def make(self, name: str) -> Path:
        """A new group; OSError where that is not allowed or without a quota."""
        path = self.base / name
        if self.version == 2:
            # A group has the controllers that its parent hands down.
            (self.base / "cgroup.subtree_control").write_text("+cpu")
        path.mkdir()
        try:
            self.limit(path, None)
        except OSError:
            path.rmdir()
            raise
        return path

    def limit(self, group: Path, share: float | None) -> None:
        """Holds a group to a share of one core; None: as much as it likes."""
        quota = None if share is None else round(share * PERIOD_MICROSECONDS)
        if self.version == 2:
            (group / "cpu.max").write_text(f"{'max' if quota is None else quota} {PERIOD_MICROSECONDS}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (group / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))

    def remove(self, group: Path) -> None:
        """Gives what is in the group to its parent, and ends it."""
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has ended
                (self.base / "cgroup.procs").write_text(pid)
        group.rmdir()


def find_controller(proc: Path = Path("/proc/self")) -> Controller | None:
    """The kernel's CPU controller as this process sees it: version 1 where mounted, else version 2; None without."""
    with contextlib.suppress(OSError):
        own = dict(_own_groups((proc / "cgroup").read_text()))
        unified = None
        for line in (proc / "mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            mount, (kind, _, options) = Path(before.split()[4]), after.split()[:3]
            if kind == "cgroup" and "cpu" in options.split(","):
                base = mount / own.get("cpu", "").lstrip("/")
                return Controller(base if base.is_dir() else mount, 1)
            if kind == "cgroup2" and "cpu" in (mount / "cgroup.controllers").read_text().split():
                # Only the topmost group may have both processes and groups.
                unified = Controller(mount, 2)
        return unified
    return None


def _own_groups(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            yield name, path


class Quotas:
    """A control group for each server, in which all of its processes are."""

    def __init__(self, controller: Controller, groups: Sequence[Path], share: float) -> None:
        self.kind = f"cgroup v{controller.version}"
        self._controller = controller
        self._groups = groups
        self._share = share

    @contextmanager
    def held(self) -> Iterator[None]:
        self._limit(self._share)
        try:
            yield
        finally:
            self._limit(None)

    def _limit(self, share: float | None) -> None:
        for group in self._groups:
            self._controller.limit(group, share)

    def periods(self, servers: int) -> Periods | None:
        total = used_up = 0
        for group in self._groups[:servers]:
            counted = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
            total += int(counted.get("nr_periods", 0))
            used_up += int(counted.get("nr_throttled", 0))
        return Periods(total, used_up)


@contextmanager
def quotas(controller: Controller, postmasters: Sequence[int], share: float) -> Iterator[Quotas]:
    """Groups for these servers, which end with the block. Raises OSError where they cannot be made."""
    groups: list[Path] = []
    for group in stale(controller):
        with contextlib.suppress(OSError):
            group.rmdir()
    try:
        for number, postmaster in enumerate(postmasters, 1):
            groups.append(controller.make(f"{NAME}{os.getpid()}-{number}"))
            # The postmaster first: what it starts from then on is in the group of its own accord.
            for pid in [postmaster, *_children(postmaster)]:
                with contextlib.suppress(ProcessLookupError):
                    (groups[-1] / "cgroup.procs").write_text(str(pid))
        yield Quotas(controller, groups, share)
    finally:
        for group in groups:
            controller.remove(group)


def stale(controller: Controller) -> list[Path]:
    """The groups that a killed process has left."""
    made = [path for path in controller.base.glob(f"{NAME}*") if path.is_dir()]
    return [path for path in made if not Path("/proc", path.name.removeprefix(NAME).partition("-")[0]).exists()]


def _children(parent: int) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(entry.name))
    return found


@contextmanager
def throttle(place: Ground, kind: str, share: float) -> Iterator[Throttle]:
    """What slows the servers of `place` for the block.

    Arguments: `kind`, "auto" (a quota, else commits that wait; nothing for servers that are not ours), "cgroup",
    "delay" or "none"; `share`, of a core, for a quota. Raises BenchFailed where that kind cannot be had.
    """
    if place.servers is None and kind not in ("auto", "none"):
        raise BenchFailed("only servers of our own are slowed down: leave out --throttle, or --config")
    if place.servers is None or kind == "none":
        yield Unheld()
        return
    if kind != "delay":
        controller = find_controller()
        with contextlib.ExitStack() as stack:
            try:
                if controller is None:
                    raise OSError("there is no CPU controller")
                made = stack.enter_context(quotas(controller, place.postmasters, share))
            except OSError as error:
                if kind == "cgroup":
                    raise BenchFailed(f"no CPU quota can be set here: {error}") from error
            else:
                yield made
                return
    yield DelayedCommits([shard.dsn for shard in place.shards])

"""The processes and files of embedded Postgres servers, and the watchdog that ends them with their owner.

Run as a script this module reads its standard input, the read end of a pipe that the owner holds. At the end
of that input, however the owner died, it stops every server still announced there and removes the directory
unless that is to be kept. It imports the standard library only, so that it starts fast and from any folder.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

LOCK = "shardflow-embedded.lock"
AWAY = "away"
PASSWORD = "password"

_OURS = re.compile(r"pg\d+(\.new|\.conf|\.log)?|pwfile|" + PASSWORD)
_PROGRAMS = ("postgres", "initdb")
_HAS_PROC = os.path.exists("/proc/self/stat")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll `condition` until it holds or `seconds` have passed; tell whether it held."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def is_alive(pid: int) -> bool:
    """Tell whether a process with this id runs; one that only waits to be reaped does not."""
    if _HAS_PROC:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
    return _ps("stat", pid)[:1] not in ("", "Z")


def postmaster_file(data: Path) -> list[str]:
    """Return the lines of `data`'s postmaster.pid, or none where it is missing."""
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return []


def postmaster_pid(data: Path) -> int | None:
    """Return the id of the live postmaster that provably runs in `data`, or None."""
    lines = postmaster_file(data)
    if not lines or not lines[0].strip().isdigit():
        return None
    pid = int(lines[0])
    return pid if is_alive(pid) and _runs_in(pid, data) else None


def members(data: Path, postmaster: int | None = None) -> list[int]:
    """Return the ids of the live Postgres processes of `data`, without `postmaster`.

    Arguments: `data`, an absolute path without symbolic links; `postmaster`, whose children are listed where
    the system has no /proc.
    """
    if _HAS_PROC:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        return [pid for pid in pids if pid != postmaster and _runs_in(pid, data) and is_alive(pid)]
    if postmaster is None:
        return []
    listing = _output(["ps", "-A", "-o", "pid=,ppid="])
    pairs = [line.split() for line in listing.splitlines()]
    return [int(pair[0]) for pair in pairs if len(pair) == 2 and pair[1] == str(postmaster)]


def resume(data: Path, postmaster: int) -> None:
    """Let go on what a SIGSTOP has suspended: a suspended process takes part in no shutdown."""
    for pid in [*members(data, postmaster), postmaster]:
        _signal(pid, signal.SIGCONT)


def kill_all(data: Path, postmaster: int | None) -> None:
    """End every Postgres process of `data` at once by SIGKILL, and free the shared memory they leave.

    Arguments: `data`, the data directory; `postmaster`, its live postmaster's id, if there is one.
    """
    if postmaster is not None:
        _signal(postmaster, signal.SIGSTOP)  # no new children while the present ones are listed
    pids = members(data, postmaster)
    for pid in [*pids, *([postmaster] if postmaster is not None else [])]:
        _signal(pid, signal.SIGKILL)
    gone = wait_until(lambda: not any(is_alive(pid) for pid in pids), 10)
    if gone and postmaster is not None and wait_until(lambda: not is_alive(postmaster), 10):
        _free_shared_memory(data)


def end_servers(datas: Iterable[Path], fast: bool, announced: bool = False) -> None:
    """Stop whatever runs in these data directories, and return when all of it is gone.

    Arguments: `fast`, try an orderly shutdown with a checkpoint first; `announced`, a server may have been
    launched so lately that its postmaster.pid is still to come.
    """
    every = list(datas)
    if announced:
        wait_until(lambda: all(postmaster_pid(data) for data in every), 2)
    stages = [(signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0)] if fast else [(signal.SIGQUIT, 10.0)]
    for number, seconds in stages:
        pids = [pid for data in every if (pid := postmaster_pid(data))]
        for pid in pids:
            _signal(pid, number)
        if wait_until(lambda pids=pids: not any(is_alive(pid) for pid in pids), seconds):  # type: ignore[misc]
            break
    for data in every:
        kill_all(data, postmaster_pid(data))


def _end_initdb(datas: list[Path]) -> None:
    """Let an `initdb` that is under way come to its end: killed, it would leave shared memory behind."""
    wait_until(lambda: not any(members(data) for data in datas), 15)
    for data in datas:
        kill_all(data, None)


def remove(directory: Path, home: Path) -> None:
    """Remove what embedded servers put into `home`, and both directories if nothing else is in them."""
    wait_until(lambda: _emptied(home), 10)
    if home != directory:
        _unlink(directory / AWAY)
        _rmdir(home)
    _unlink(directory / LOCK)
    _rmdir(directory)


def _emptied(home: Path) -> bool:
    entries = [entry for entry in _listdir(home) if _OURS.fullmatch(entry)]
    for entry in entries:
        path = home / entry
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            _unlink(path)
    return not entries


def _listdir(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass


def _rmdir(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        pass


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _runs_in(pid: int, data: Path) -> bool:
    """Tell whether this is a process of Postgres that works in `data`, where Postgres goes at its start."""
    if _HAS_PROC:
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
            return program in _PROGRAMS and os.readlink(f"/proc/{pid}/cwd") == str(data)
        except OSError:
            return False
    command = _ps("command", pid)
    return "postgres" in command and f"-D {data} " in command


def _ps(column: str, pid: int) -> str:
    return _output(["ps", "-ww", "-o", f"{column}=", "-p", str(pid)]).strip()


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _free_shared_memory(data: Path) -> None:
    """Remove the System V segment that postmaster.pid names: Postgres would do so at its next start only."""
    lines = postmaster_file(data)
    words = lines[6].split() if len(lines) > 6 else []
    if len(words) == 2 and words[1].isdigit():
        ipc_rmid = 0
        ctypes.CDLL(None).shmctl(ctypes.c_int(int(words[1])), ctypes.c_int(ipc_rmid), None)


def _read_until_owner_is_gone(owner: int) -> tuple[set[str], bool]:
    """Follow the owner's announcements: `+ NAME` before a launch, `- NAME` after an end, at last `bye`.

    Returns the names still announced, and whether there was a `bye`. The owner's id is watched too, because a
    process that it forked may hold the pipe open longer than it lives.
    """
    names: set[str] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], 1.0)
        chunk = os.read(0, 65536) if ready else b""
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            word, _, name = line.decode().partition(" ")
            if word == "bye":
                return names, True
            (names.add if word == "+" else names.discard)(name)
        if (ready and not chunk) or (not ready and os.getppid() != owner):
            return names, False


def main(arguments: list[str]) -> int:
    """Watch over one set of servers.

    Arguments: the owner's process id, its directory, the folder of its files, and "keep" or "remove".
    """
    owner, directory, home, fate = int(arguments[0]), Path(arguments[1]), Path(arguments[2]), arguments[3]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    names, orderly = _read_until_owner_is_gone(owner)
    if orderly:
        return 0
    keep = fate == "keep"
    end_servers([home / name for name in sorted(names)], fast=keep, announced=True)
    _end_initdb([home / entry for entry in _listdir(home) if entry.endswith(".new")])
    if not keep:
        remove(directory, home)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

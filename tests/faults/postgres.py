"""What can be done to an embedded server: freeze it, fill its disk, cut its power, shift its clock, fail over.

Disks of their own are mounted over the data directory, so that path, account and watchdog stay what they are. What a
machine cannot do is skipped with the reason.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shardflow.embedded import Server, watch
from shardflow.embedded.binaries import find_account, find_binaries, runnable, spawn_options

#: linux/ext4.h: _IOR('X', 125, __u32), and the flag that throws away what was not written.
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Polls until the condition holds; answers what it answered."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return answer


def ask(dsn: str, query: str) -> Any:
    """The first value of the first row, in a transaction of its own; None where there is no row."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=20) as conn:
        cursor = conn.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


# -- hanging


def freeze(server: Server) -> None:
    """Stops the postmaster and every backend by SIGSTOP: connections stay open, nothing is answered."""
    os.kill(server.pid, signal.SIGSTOP)  # first: it makes no more children
    for pid in watch.members(server.data, server.pid):
        os.kill(pid, signal.SIGSTOP)


def thaw(server: Server) -> None:
    """Lets a frozen server go on."""
    watch.resume(server.data, server.pid)


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    freeze(server)
    try:
        yield
    finally:
        thaw(server)


# -- only reading


def read_only(server: Server, answer: bool) -> None:
    """Makes all transactions read only, as an operator or a full disk's guardian does; or undoes that."""
    with psycopg.connect(server.dsn, autocommit=True, options="-c default_transaction_read_only=off") as conn:
        conn.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if answer else 'off'}")
        conn.execute("SELECT pg_reload_conf()")


# -- disks


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _as_root(*programs: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def _mount(arguments: list[str | Path], target: Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments), str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine does not mount: {' '.join(map(str, arguments))}: {done.stderr.strip()}")


def _move_onto(server: Server, arguments: list[str | Path]) -> None:
    """Copies the data of a server that is down onto a disk, and mounts that where the data was."""
    scratch = server.data.with_name(f"{server.name}.disk")
    scratch.mkdir()
    _mount(arguments, scratch)
    shutil.rmtree(scratch / "lost+found", ignore_errors=True)
    _run("cp", "-a", f"{server.data}/.", scratch)
    _run("mount", "--bind", scratch, server.data)
    _run("umount", scratch)
    scratch.rmdir()


def _unmount(server: Server) -> None:
    until(
        lambda: (
            not os.path.ismount(server.data)
            or subprocess.run(["umount", server.data], capture_output=True, check=False).returncode == 0
        ),
        "the disk is unmounted",
    )


@contextmanager
def on_tmpfs(server: Server, megabytes: int) -> Iterator[None]:
    """The server's data lies on a disk of that size, in memory; `resize` changes it."""
    _as_root("mount", "umount")
    server.stop()
    _move_onto(server, ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs"])
    try:
        server.start()
        yield
    finally:
        server.kill()
        _unmount(server)


def resize(server: Server, megabytes: int) -> None:
    """Gives the disk of `on_tmpfs` another size."""
    _run("mount", "-o", f"remount,size={megabytes}m", server.data)


class Power:
    """The power of a server whose data lies on an ext4 disk of its own."""

    def __init__(self, server: Server, image: Path) -> None:
        self._server = server
        self._arguments: list[str | Path] = ["-t", "ext4", "-o", "loop,data=ordered", image]

    def cut(self) -> None:
        """What was not written to the disk is gone, and so is every process."""
        folder = os.open(self._server.data, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH.to_bytes(4, "little"))
        finally:
            os.close(folder)
        self._server.kill()
        _unmount(self._server)

    def settle(self) -> None:
        """Brings all to the disk that is in memory now."""
        ask(self._server.dsn, "CHECKPOINT")
        os.sync()

    def back(self) -> None:
        """Mounts the disk again, which replays its journal, and starts the server, which recovers."""
        _run("mount", *self._arguments, self._server.data)
        self._server.start()


@contextmanager
def on_ext4(server: Server, image: Path, megabytes: int = 600) -> Iterator[Power]:
    """The server's data lies on an ext4 disk in the file `image`; the server is started."""
    _as_root("mount", "umount", "mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", image)
    server.stop()
    power = Power(server, image)
    _move_onto(server, power._arguments)
    try:
        server.start()
        yield power
    finally:
        server.kill()
        _unmount(server)


# -- failing over


def make_standby(primary: Server, standby: Server) -> None:
    """Makes the second server, whose own data is thrown away, a streaming standby of the first."""
    account = find_account()
    binaries = runnable(find_binaries(), account)
    standby.stop("immediate")
    shutil.rmtree(standby.data)
    standby.data.mkdir(mode=0o700)
    if account is not None:
        os.chown(standby.data, account.uid, account.gid)
    command = [str(binaries.path / "pg_basebackup"), "-D", str(standby.data), "-d", primary.dsn, "-R", "-X", "stream"]
    done = subprocess.run(
        [*command, "-c", "fast"], **spawn_options(account), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    standby.start()
    until(
        lambda: ask(primary.dsn, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"), "it streams"
    )


def synchronous(primary: Server, answer: bool) -> None:
    """Whether a commit on the primary waits for its standby."""
    with psycopg.connect(primary.dsn, autocommit=True) as conn:
        conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{'*' if answer else ''}'")
        conn.execute("SELECT pg_reload_conf()")
    wanted = "sync" if answer else "async"
    until(
        lambda: ask(primary.dsn, "SELECT sync_state FROM pg_stat_replication") == wanted, f"the standby is {wanted}"
    )


def stall_replication(primary: Server) -> None:
    """Freezes the primary's sender: from now on its standby gets nothing."""
    os.kill(ask(primary.dsn, "SELECT pid FROM pg_stat_replication"), signal.SIGSTOP)


def promote(standby: Server) -> None:
    """Makes the standby a primary, and waits until it is one."""
    assert ask(standby.dsn, "SELECT pg_promote(true, 60)")
    until(lambda: not ask(standby.dsn, "SELECT pg_is_in_recovery()"), "the standby is promoted")


def either(first: Server, second: Server, database: str = "postgres") -> str:
    """A DSN that names both servers and means whichever can be written to."""
    user, _, _ = first.dsn.rpartition("@")
    hosts = f"127.0.0.1:{first.port},127.0.0.1:{second.port}"
    return f"{user}@{hosts}/{database}?target_session_attrs=read-write"


# -- the clock


class Clock:
    """The wall clock of servers whose programs lie in `binaries`, which is to be given to `Servers`."""

    def __init__(self, folder: Path) -> None:
        library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
        if library is None:
            pytest.skip("libfaketime is not installed (Debian: faketime)")
        account = find_account()
        real = runnable(find_binaries(), account).path
        self.binaries = folder / "bin"
        self.binaries.mkdir(parents=True)
        self._offset = folder / "offset"
        self.shift(0)
        # The monotonic clock stays true, as it does when somebody sets the time of a machine.
        faked = (
            f"export LD_PRELOAD='{library}' FAKETIME_TIMESTAMP_FILE='{self._offset}' FAKETIME_NO_CACHE=1"
            " FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DONT_RESET=1\n"
        )
        for program, lines in (("postgres", faked), ("initdb", "")):
            script = self.binaries / program
            script.write_text(f"#!/bin/sh\n{lines}exec '{real / program}' \"$@\"\n")
            script.chmod(0o755)
        self.binaries.chmod(0o755)
        folder.chmod(0o755)

    def shift(self, seconds: float) -> None:
        """Moves the servers' clock that far from the true time, at once."""
        fresh = self._offset.with_suffix(".new")
        fresh.write_text(f"{seconds:+g}\n")
        fresh.chmod(0o644)
        fresh.rename(self._offset)

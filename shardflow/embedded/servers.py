"""A set of Postgres servers that lives as long as its owner.

The directory is held by a lock that the owner and its watchdog share, so it is free only when both are done
with it.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from shardflow.embedded import watch
from shardflow.embedded.binaries import (
    Account,
    can_enter,
    find_account,
    find_binaries,
    runnable,
    shared_folder,
    spawn_options,
)
from shardflow.embedded.server import Plant, Server, check_settings, check_version, make_data
from shardflow.errors import EmbeddedError, InvalidInput

_logger = logging.getLogger("shardflow.embedded")

_WATCHDOG_SECONDS = 90.0


class Servers:
    """`count` Postgres servers, "pg1" and so on, started by `start` or by entering the context.

    They end with `stop`, with the context, with the interpreter, and when this process is killed.

    Arguments: `count`, at least 1; `directory`, for data and logs, made if missing (default: a temporary one,
    always new); `keep`, leave the directory in place at the end, to go on with the same data, password and,
    where they are free, ports another time (without it, data kept earlier is removed too); `settings`,
    Postgres settings that replace the defaults; `binaries`, the folder of `postgres` and `initdb` (default:
    see `find_binaries`).

    Started by root, the servers run as $SHARDFLOW_PG_USER, `postgres` or `nobody`. Where this user cannot get
    into `directory`, the files lie in a folder under /var/tmp (to keep) or the temporary folder, which the
    link `away` in `directory` names.
    Raises InvalidInput for a bad count or setting.
    """

    def __init__(
        self,
        count: int,
        *,
        directory: Path | str | None = None,
        keep: bool = False,
        settings: Mapping[str, str] | None = None,
        binaries: Path | str | None = None,
    ) -> None:
        if count < 1:
            raise InvalidInput(f"the number of servers must be at least 1, not {count}")
        if keep and directory is None:
            raise InvalidInput("keep=True needs a directory: a temporary one would not be found again")
        self.count = count
        self.keep = keep
        self.directory: Path | None = None
        self._wanted = None if directory is None else Path(directory).expanduser().absolute()
        self._settings = check_settings(settings or {})
        self._binaries = binaries
        self._servers: list[Server] = []
        self._owner = 0
        self._home: Path | None = None
        self._lock: int | None = None
        self._remove = False
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Server]:
        return iter(self._servers)

    def __getitem__(self, index: int) -> Server:
        return self._servers[index]

    def __len__(self) -> int:
        return len(self._servers)

    @property
    def dsns(self) -> list[str]:
        """The libpq URIs of all servers, in order."""
        return [server.dsn for server in self._servers]

    def start(self) -> None:
        """Start all servers and return when they accept connections.

        Raises EmbeddedError when there are no Postgres programs, when another process uses the directory,
        when it holds something else or data of another major version, or when a server does not come up.
        Nothing is left running then, and data that was there before is left as it was.
        """
        if self._lock is not None:
            raise EmbeddedError(f"these servers are started already, in {self.directory}")
        account = find_account()
        plant = Plant(runnable(find_binaries(self._binaries), account), account, self._settings)
        self._owner = os.getpid()
        self._servers, self._home, self._remove = [], None, self._wanted is None
        try:
            self._open(account)
            self._start_all(plant)
            self._remove = not self.keep
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedError(f"the embedded servers could not be started: {error}") from error
            raise
        atexit.register(self.stop)

    def stop(self) -> None:
        """Stop all servers and, unless they are kept, remove their files; stopped ones are left alone.

        A process forked from the owner does nothing here.
        """
        if self._lock is None or self._owner != os.getpid():
            return
        atexit.unregister(self.stop)
        try:
            with ThreadPoolExecutor(max(1, len(self._servers))) as pool:
                list(pool.map(self._end, self._servers))
        finally:
            self._dismiss_watchdog()
            if self.directory and self._home and self._remove:
                watch.remove(self.directory, self._home)
            os.close(self._lock)
            self._lock = None

    def _end(self, server: Server) -> None:
        try:
            server.stop("fast" if self.keep else "immediate")
        except EmbeddedError:
            _logger.warning("embedded server killed: it did not stop", extra={"server": server.name})
            server.kill()

    def _start_all(self, plant: Plant) -> None:
        assert self._home is not None
        home, names = self._home, [f"pg{number}" for number in range(1, self.count + 1)]
        existing = [name for name in names if (home / name).exists()]
        for name in existing:
            check_version(home / name, plant.binaries)
        watch.end_servers([home / name for name in existing], fast=True)
        self._remove = not self.keep and not existing
        password = _password(home)
        self._watchdog = self._start_watchdog()
        make_data(home, [name for name in names if name not in existing], password, plant)
        self._servers = [Server(name, home, password, plant, self._announce) for name in names]
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(Server.start_anywhere, self._servers))

    def _open(self, account: Account | None) -> None:
        """Make and lock the directory, and decide where in it the files lie."""
        directory = self._wanted
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="shardflow-", dir=shared_folder(account)))
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmbeddedError(f"the directory {directory} cannot be made: {error}") from error
        self.directory = directory = directory.resolve()
        foreign = [entry for entry in os.listdir(directory) if entry not in (watch.LOCK, watch.AWAY)]
        if foreign and not (directory / watch.LOCK).exists():
            raise EmbeddedError(
                f"{directory} holds other files; name an empty or a new directory for the embedded servers"
            )
        self._lock = _lock(directory)
        self._home = _home(directory, account, self.keep)
        self._home.chmod(0o710 if account else 0o700)
        if account:
            os.chown(self._home, -1, account.gid)

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        assert self._lock is not None
        fate = "keep" if self.keep else "remove"
        options = {**spawn_options(None), "stdin": subprocess.PIPE, "pass_fds": (self._lock,)}
        command = [sys.executable, "-I", "-S", watch.__file__]
        return subprocess.Popen(
            [*command, str(os.getpid()), str(self.directory), str(self._home), fate],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            **options,
        )

    def _announce(self, line: str) -> None:
        """Tell the watchdog; one that is gone is only logged, because `stop` does not need it.

        Raises EmbeddedError when a server is to be launched of a set that is stopped: nobody would end it.
        """
        if self._lock is None:
            raise EmbeddedError("this set of embedded servers is stopped: start the set, not a server")
        if self._watchdog is None or self._watchdog.stdin is None or self._watchdog.stdin.closed:
            return
        try:
            self._watchdog.stdin.write(line.encode() + b"\n")
        except OSError:
            _logger.warning("the watchdog of the embedded servers is gone", extra={"owner": self._owner})

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is None:
            return
        self._announce("bye")
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        try:
            self._watchdog.wait(_WATCHDOG_SECONDS)
        except subprocess.TimeoutExpired:
            self._watchdog.kill()
            self._watchdog.wait()
        self._watchdog = None


def _lock(directory: Path) -> int:
    """Lock the directory; returns the descriptor that holds the lock.

    An owner that was killed leaves the lock to its watchdog for a moment: that is waited for.
    """
    path = directory / watch.LOCK
    deadline = _WATCHDOG_SECONDS
    taken: list[int] = []

    def attempt() -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            if owner.isdigit() and watch.is_alive(int(owner)):
                raise EmbeddedError(
                    f"{directory} is in use by process {owner}; stop that one, or name another directory"
                ) from None
            return False
        # The former holder may have removed the file between our opening and locking it.
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            os.close(descriptor)
            return False
        taken.append(descriptor)
        return True

    if not watch.wait_until(attempt, deadline):
        raise EmbeddedError(f"{directory} is still locked {deadline:.0f} s after its owner ended: {path}")
    os.ftruncate(taken[0], 0)
    os.pwrite(taken[0], f"{os.getpid()}\n".encode(), 0)
    return taken[0]


def _home(directory: Path, account: Account | None, lasting: bool) -> Path:
    """Return the folder for the files: `directory`, or one elsewhere if `account` cannot get in there."""
    away = directory / watch.AWAY
    if away.is_symlink():
        target = Path(os.readlink(away))
        if target.is_dir() and not target.is_symlink() and target.stat().st_uid == os.geteuid():
            return target
        _logger.warning("the files of the embedded servers are gone", extra={"directory": str(target)})
        away.unlink()
    if account is None or can_enter(account, directory) or _opens_up(directory, account):
        return directory
    home = Path(tempfile.mkdtemp(prefix="shardflow-", dir=shared_folder(account, lasting)))
    away.symlink_to(home)
    _logger.info("embedded servers lie elsewhere: their user cannot enter the directory", extra={"home": str(home)})
    return home


def _opens_up(directory: Path, account: Account) -> bool:
    """Give the account's group passage through the directory itself, and tell whether it can enter now."""
    mode, group = stat.S_IMODE(directory.stat().st_mode), directory.stat().st_gid
    os.chown(directory, -1, account.gid)
    directory.chmod(0o710)
    if can_enter(account, directory):
        return True
    os.chown(directory, -1, group)
    directory.chmod(mode)
    return False


def _password(home: Path) -> str:
    path = home / watch.PASSWORD
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text().strip()

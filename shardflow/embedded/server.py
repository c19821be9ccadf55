"""One Postgres server of a set: its data directory, its port and its postmaster.

Everything that root writes lies outside of the data directory, which belongs to the account that runs the
server: the configuration and the log lie beside it.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shardflow.embedded import watch
from shardflow.embedded.binaries import Account, Binaries, spawn_options
from shardflow.errors import EmbeddedError, InvalidInput

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_READY_SECONDS = 120.0
_STOP_SECONDS = 120.0
_CLASH_SECONDS = 20.0
_PORT_CLASH = ("could not create any TCP/IP sockets", "Address already in use")
_MEMORY_CLASH = "pre-existing shared memory block"

# Below the usual ranges of outgoing ports: a port of those may be taken while its server is down.
_PORTS = range(15433, 32000)

_DEFAULTS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    # Files in the data directory: a killed server leaves nothing in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    "checkpoint_timeout": "15min",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
_FIXED = frozenset(
    {
        "config_file",
        "data_directory",
        "external_pid_file",
        "hba_file",
        "ident_file",
        "listen_addresses",
        "port",
        "unix_socket_directories",
    }
)


@dataclass(frozen=True)
class Plant:
    """How a set's servers are run: the programs, the account (None: the present user) and the settings."""

    binaries: Binaries
    account: Account | None
    settings: Mapping[str, str]


class _Clash(EmbeddedError):
    """Something else holds what the server needs: its port, or shared memory of its killed predecessor."""

    def __init__(self, message: str, port: bool) -> None:
        super().__init__(message)
        self.port = port


def check_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings with names in lower case; InvalidInput names a malformed or unchangeable one."""
    checked = {}
    for name, value in settings.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) or re.search(r"[\n\r\0]", str(value)):
            raise InvalidInput(f"not a Postgres setting: {name!r} = {value!r}")
        if name.lower() in _FIXED:
            raise InvalidInput(f"the Postgres setting {name!r} is fixed for embedded servers")
        checked[name.lower()] = str(value)
    return checked


class Server:
    """One Postgres server on 127.0.0.1.

    Attributes: `name`, as "pg1"; `port`; `dsn`, a libpq URI with the password, to the database `postgres`;
    `data`, the data directory; `log`, the server's log file. `Servers` makes them.
    """

    def __init__(self, name: str, home: Path, password: str, plant: Plant, announce: Callable[[str], None]) -> None:
        self.name = name
        self.data = home / name
        self.log = home / f"{name}.log"
        self._conf = home / f"{name}.conf"
        self._password = password
        self._plant = plant
        self._announce = announce
        self._process: subprocess.Popen[bytes] | None = None
        self.port = self._last_port() or _free_port()

    def __repr__(self) -> str:
        return f"Server({self.name!r}, port={self.port}, data={str(self.data)!r})"

    @property
    def dsn(self) -> str:
        """The libpq URI of the database `postgres`, password included."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    @property
    def running(self) -> bool:
        """Whether the postmaster is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id; EmbeddedError when the server does not run."""
        if self._process is None or not self.running:
            raise EmbeddedError(f"server {self.name} does not run: start() it first")
        return self._process.pid

    def start(self) -> None:
        """Start the server on the same port and return when it accepts connections.

        A running one is left alone.

        Raises EmbeddedError, with the end of the log, when it does not come up.
        """
        self._start(other_ports=False)

    def start_anywhere(self) -> None:
        """Start as `start` does, on another port if something else has taken this one."""
        self._start(other_ports=True)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and return when all of its processes are gone; a stopped one is left alone.

        Arguments: `mode`, as of pg_ctl: "smart" waits for clients to leave, "fast" disconnects them,
        "immediate" leaves the work to recovery.
        Raises EmbeddedError when the server is still up after two minutes.
        """
        if mode not in _SIGNALS:
            raise InvalidInput(f"unknown stop mode {mode!r}: one of {', '.join(_SIGNALS)}")
        if self._process is not None and self.running:
            watch.resume(self.data, self._process.pid)
            self._process.send_signal(_SIGNALS[mode])
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise EmbeddedError(
                    f"server {self.name} did not stop ({mode}) within {_STOP_SECONDS:.0f} s; "
                    f"use a harsher mode or kill(). {self._log_tail(0)}"
                ) from None
        self._ended()

    def kill(self) -> None:
        """End the postmaster and all of its children by SIGKILL, and return when they are gone."""
        process = self._process
        if process is not None and process.poll() is None:
            watch.kill_all(self.data, process.pid)
            process.wait(_STOP_SECONDS)
        self._ended()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop, then start on the same port; arguments and errors are theirs."""
        self.stop(mode)
        self.start()

    def _ended(self) -> None:
        """Record that the postmaster is gone, and end children that outlived it."""
        watch.kill_all(self.data, None)
        if self._process is not None:
            self._process.wait(_STOP_SECONDS)
            self._process = None
            self._announce(f"- {self.name}")

    def _start(self, other_ports: bool) -> None:
        if self.running:
            return
        self._ended()
        self._launch_in_time(time.monotonic() + _CLASH_SECONDS, other_ports)

    def _launch_in_time(self, deadline: float, other_ports: bool) -> None:
        while True:
            try:
                self._launch()
                return
            except _Clash as clash:
                if time.monotonic() > deadline:
                    raise EmbeddedError(str(clash)) from None
                if clash.port and other_ports:
                    self.port = _free_port()
                else:
                    time.sleep(0.1)

    def _launch(self) -> None:
        self._announce(f"+ {self.name}")
        self._write_conf()
        logged = self.log.stat().st_size if self.log.exists() else 0
        command = [str(self._plant.binaries.path / "postgres"), "-D", str(self.data)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-c", f"config_file={self._conf}"],
                stdout=log,
                stderr=log,
                **spawn_options(self._plant.account),
            )
        try:
            self._wait_ready(self._process, logged)
        except BaseException:
            self.kill()
            raise

    def _wait_ready(self, process: subprocess.Popen[bytes], logged: int) -> None:
        def settled() -> bool:
            return process.poll() is not None or self._ready(process.pid)

        if not watch.wait_until(settled, _READY_SECONDS):
            raise EmbeddedError(
                f"server {self.name} accepts no connections after {_READY_SECONDS:.0f} s. {self._log_tail(logged)}"
            )
        if process.poll() is None:
            return
        tail = self._log_tail(logged)
        message = f"server {self.name} on port {self.port} ended at its start. {tail}"
        port = any(text in tail for text in _PORT_CLASH)
        raise _Clash(message, port) if port or _MEMORY_CLASH in tail else EmbeddedError(message)

    def _ready(self, pid: int) -> bool:
        lines = watch.postmaster_file(self.data)
        return len(lines) > 7 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _write_conf(self) -> None:
        settings = {
            **_DEFAULTS,
            **self._plant.settings,
            "cluster_name": f"shardflow {self.name}",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
        }
        lines = [f"include '{_quoted(str(self.data / 'postgresql.conf'))}'", f"port = {self.port}"]
        lines += [f"{name} = '{_quoted(value)}'" for name, value in settings.items()]
        self._conf.write_text("\n".join(lines) + "\n")
        self._conf.chmod(0o644)

    def _last_port(self) -> int | None:
        try:
            found = re.search(r"^port = (\d+)$", self._conf.read_text(), re.MULTILINE)
        except OSError:
            return None
        return int(found.group(1)) if found else None

    def _log_tail(self, offset: int) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(offset)
                lines = log.read().decode(errors="replace").splitlines()[-15:]
        except OSError:
            lines = []
        return "\n  ".join([f"The end of its log {self.log}:", *lines])


def make_data(home: Path, names: list[str], password: str, plant: Plant) -> None:
    """Make the data directories `names` in `home`: one `initdb`, then copies of it.

    Each is made under another name and renamed when it is whole.
    Raises EmbeddedError, with the output of `initdb`.
    """
    if not names:
        return
    first, *others = names
    fresh = _empty_data(home, first, plant)
    secret = home / "pwfile"
    secret.unlink(missing_ok=True)
    secret.touch(0o600)
    secret.write_text(password + "\n")
    try:
        if plant.account:
            shutil.chown(secret, plant.account.uid)
        command = [str(plant.binaries.path / "initdb"), "-D", str(fresh), "--username=postgres", "--no-sync"]
        command += ["--locale=C", "--encoding=UTF8", "--auth=scram-sha-256", f"--pwfile={secret}"]
        _run([*command, "--no-instructions"], plant, fresh)
    finally:
        secret.unlink()
    for name in others:
        _run(["cp", "-R", f"{fresh}/.", str(_empty_data(home, name, plant))], plant, Path("/"))
    for name in names:
        (home / f"{name}.new").rename(home / name)


def check_version(data: Path, binaries: Binaries) -> None:
    """Raise EmbeddedError unless the data directory was made by the major version of `binaries`."""
    try:
        made_by = (data / "PG_VERSION").read_text().strip()
    except OSError as error:
        raise EmbeddedError(f"{data} is not a readable Postgres data directory: {error}") from error
    if made_by != str(binaries.major):
        raise EmbeddedError(
            f"{data} was made by Postgres {made_by}, but the programs in {binaries.path} are "
            f"{binaries.version}; name those of Postgres {made_by} in SHARDFLOW_PG_BIN, or remove the data"
        )


def _empty_data(home: Path, name: str, plant: Plant) -> Path:
    fresh = home / f"{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if plant.account:
        shutil.chown(fresh, plant.account.uid, plant.account.gid)
    return fresh


def _run(command: list[str], plant: Plant, folder: Path) -> None:
    options = {**spawn_options(plant.account), "cwd": folder}
    try:
        subprocess.run(command, **options, capture_output=True, text=True, timeout=300, check=True)
    except subprocess.CalledProcessError as error:
        raise EmbeddedError(f"{command[0]} failed ({error.returncode}): {error.stdout}{error.stderr}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedError(f"{command[0]} failed: {error}") from error


def _free_port() -> int:
    """Return a port that nothing listens on now; a server that finds it taken later tries another."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedError("no free port found on 127.0.0.1")


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")

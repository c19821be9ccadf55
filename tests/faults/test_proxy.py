"""The proxy does to connections what it is told, at the very message, and nothing else."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from faults.proxy import Proxy, Trap, cut, kill, reset, silence
from faults.proxy_link import Flow, Way
from faults.proxy_wire import Frames, application

from shardflow.embedded import Servers

UNTIL = 60.0
COMMAND_OK = psycopg.pq.ExecStatus.COMMAND_OK


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + UNTIL
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {UNTIL} s: {what}"
        time.sleep(0.005)
    return answer


@pytest.fixture
def direct(servers: Servers) -> Iterator[psycopg.Connection[Any]]:
    """A connection past the proxy, with an empty table `seen`."""
    with psycopg.connect(servers[0].dsn, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS seen")
        conn.execute("CREATE TABLE seen (n int)")
        yield conn


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    with Proxy(servers[0].port) as started:
        yield started


@pytest.fixture
def through(servers: Servers, proxy: Proxy) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Connects through the proxy, under a name."""
    made: list[psycopg.Connection[Any]] = []

    def connect(name: str = "a", **more: Any) -> psycopg.Connection[Any]:
        dsn = proxy.dsn(servers[0].dsn)
        made.append(psycopg.connect(dsn, autocommit=True, application_name=name, **more))
        return made[-1]

    yield connect
    for conn in made:
        conn.close()


@contextmanager
def aside(proxy: Proxy) -> Iterator[ThreadPoolExecutor]:
    """A thread for a call that waits for an answer; where the test fails, it does not wait for ever."""
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool
        except BaseException:
            proxy.reset()
            raise


def seen(direct: psycopg.Connection[Any]) -> list[int]:
    return [row[0] for row in direct.execute("SELECT n FROM seen ORDER BY n").fetchall()]


Connect = Callable[..., psycopg.Connection[Any]]


def test_it_passes_everything_on(proxy: Proxy, through: Connect) -> None:
    conn = through()
    big = "x" * 3_000_000
    assert conn.execute("SELECT %s::text", (big,)).fetchone() == (big,)
    with conn.pipeline():
        answers = [conn.execute("SELECT %s::int", (n,)) for n in range(500)]
    assert [answer.fetchone() for answer in answers] == [(n,) for n in range(500)]
    assert proxy.names() == ["a"]
    conn.close()
    until(lambda: proxy.names() == [], "the connection is gone here too")


def test_it_declines_encryption_which_it_could_not_read(through: Connect) -> None:
    assert through(sslmode="prefer", gssencmode="disable").execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="SSL"):
        through(sslmode="require")


def test_delay_makes_each_message_late(proxy: Proxy, through: Connect) -> None:
    conn = through()
    proxy.set(Way.UP, delay=0.15)
    proxy.set(Way.DOWN, delay=0.1)
    began = time.monotonic()
    conn.execute("SELECT 1")
    assert time.monotonic() - began >= 0.25
    assert through("late").execute("SELECT 1").fetchone() == (1,), "a new connection is treated likewise"
    proxy.heal()
    until(lambda: _seconds(conn) < 0.1, "without delay again")


def test_no_message_waits_for_the_delay_of_the_one_before() -> None:
    query = b"Q" + struct.pack("!I", 5) + b"\0"
    with socket.create_server(("127.0.0.1", 0)) as door, Proxy(door.getsockname()[1]) as proxy:
        proxy.set(Way.UP, delay=1.5)
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            began = time.monotonic()
            client.sendall(_startup("raw"))
            for number in range(1, 51):  # each comes by itself
                client.sendall(query)
                until(lambda number=number: proxy.held() == number + 1, "it has come")
                if time.monotonic() > began + 0.7:
                    break
            server, _ = door.accept()
            with server:
                left = len(_startup("raw")) + number * len(query)
                while left:
                    left -= len(server.recv(left))
            assert number > 3
            assert 1.5 <= time.monotonic() - began < 1.5 * number


def _seconds(conn: psycopg.Connection[Any]) -> float:
    began = time.monotonic()
    conn.execute("SELECT 1")
    return time.monotonic() - began


@pytest.mark.parametrize("way", list(Way))
def test_what_is_held_comes_when_it_heals(
    proxy: Proxy, through: Connect, direct: psycopg.Connection[Any], way: Way
) -> None:
    conn = through()
    proxy.set(way, Flow.HOLD)
    with aside(proxy) as pool:
        insert = pool.submit(conn.execute, "INSERT INTO seen VALUES (1)")
        if way is Way.DOWN:
            until(lambda: seen(direct) == [1], "the server heard it")
        else:
            until(proxy.held, "the proxy has it")
            assert seen(direct) == []
        assert not insert.done()
        proxy.heal()
        insert.result(UNTIL)
    assert seen(direct) == [1]


@pytest.mark.parametrize("way", list(Way))
def test_what_is_dropped_never_comes_and_both_ends_stay_open(
    proxy: Proxy, through: Connect, direct: psycopg.Connection[Any], way: Way
) -> None:
    conn = through("lost")
    pid = conn.info.backend_pid
    proxy.set(way, Flow.DROP, name="lost")
    with aside(proxy) as pool:
        insert = pool.submit(conn.execute, "INSERT INTO seen VALUES (1)")
        if way is Way.DOWN:
            until(lambda: seen(direct) == [1], "the server heard it")
        until(lambda: proxy.lost("lost"), "the proxy has it")
        proxy.heal()
        assert through("other").execute("SELECT 1").fetchone() == (1,)
        assert seen(direct) == ([1] if way is Way.DOWN else [])
        assert not insert.done()
        alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        assert direct.execute(alive, (pid,)).fetchone() == (1,)
        proxy.cut("lost")
        with pytest.raises(psycopg.OperationalError):
            insert.result(UNTIL)
        until(lambda: direct.execute(alive, (pid,)).fetchone() == (0,), "the server was told, too")


def test_a_silent_connection_does_not_tell_the_server_that_the_client_has_gone(
    proxy: Proxy, through: Connect, direct: psycopg.Connection[Any]
) -> None:
    conn = through()
    pid = conn.info.backend_pid
    conn.execute("BEGIN")
    conn.execute("INSERT INTO seen VALUES (1)")
    assert proxy.silence() == 1
    conn.close()
    probe = through("probe")
    assert probe.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() == (
        "idle in transaction",
    )


def test_reset_is_an_rst_at_both_ends(servers: Servers, proxy: Proxy, direct: psycopg.Connection[Any]) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
        raw.sendall(_startup("raw"))
        assert raw.recv(1) == b"R"
        assert proxy.reset("raw") == 1
        with pytest.raises(ConnectionResetError):
            _read_to_the_end(raw)
    until(lambda: proxy.names() == [], "it is gone")


def _read_to_the_end(raw: socket.socket) -> None:
    while raw.recv(65_536):
        pass


def _startup(name: str) -> bytes:
    words = [b"user", b"postgres", b"database", b"postgres", b"application_name", name.encode(), b"", b""]
    body = struct.pack("!I", 196608) + b"\0".join(words)
    return struct.pack("!I", 4 + len(body)) + body


def test_refusing_leaves_those_alone_that_are_there(proxy: Proxy, through: Connect) -> None:
    conn = through()
    port = proxy.port
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        through("late")
    assert conn.execute("SELECT 1").fetchone() == (1,)
    proxy.accept()
    assert proxy.port == port
    assert through("late").execute("SELECT 1").fetchone() == (1,)


def test_connections_are_told_apart_by_name(proxy: Proxy, through: Connect) -> None:
    one, other = through("app one"), through("app two")
    assert proxy.cut("app o") == 1
    with pytest.raises(psycopg.OperationalError):
        one.execute("SELECT 1")
    assert other.execute("SELECT 1").fetchone() == (1,)
    proxy.set(Way.DOWN, Flow.DROP, name="app three")
    proxy.set(Way.UP, delay=0.01)  # a wider rule changes no more of a narrower one than it says
    assert through("app four").execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        through("app three", connect_timeout=2)


@pytest.mark.parametrize("act", [cut, reset], ids=["cut", "reset"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("way", list(Way))
def test_a_trap_acts_at_its_message(
    proxy: Proxy,
    through: Connect,
    direct: psycopg.Connection[Any],
    way: Way,
    before: bool,
    act: Callable[..., None],
) -> None:
    """A simple query is one message up, and two down: it is complete, and ready for the next."""
    conn = through()
    number = 4 if way is Way.UP else 3 * 2 + 1
    other = proxy.trap(Trap(way, 1, act, name="nobody"))
    trap = proxy.trap(Trap(way, number, act, name="a", before=before))
    done = 0
    while done < 10 and conn.pgconn.exec_(f"INSERT INTO seen VALUES ({done})".encode()).status == COMMAND_OK:
        done += 1
    assert trap.fired.wait(UNTIL)
    assert trap.seen == number
    assert not other.fired.is_set()
    assert trap.kind == ("Q" if way is Way.UP else "C")
    assert done == 3
    arrived = {(Way.UP, True): [0, 1, 2]}.get((way, before), [0, 1, 2, 3])
    if act is reset and (way, before) == (Way.UP, False):
        assert seen(direct) in ([0, 1, 2], arrived), "an RST may overtake what was sent"
    else:
        until(lambda: seen(direct) == arrived, f"{arrived} arrived")


def test_a_message_that_is_cut_off_was_preceded_by_all_others(
    proxy: Proxy, through: Connect, direct: psycopg.Connection[Any]
) -> None:
    """Of a pipeline that is sent as one piece, the server gets exactly the messages before the trap's."""
    conn = through(prepare_threshold=None)
    each = 4  # Parse, Bind, Describe, Execute
    trap = proxy.trap(Trap(Way.UP, 2 * each + 1, silence))
    with aside(proxy) as pool:

        def two() -> None:
            with conn.pipeline():
                conn.execute("BEGIN")
                conn.execute("INSERT INTO seen VALUES (1)")
                conn.execute("COMMIT")

        sent = pool.submit(two)
        pid = conn.info.backend_pid
        state = "SELECT state, query FROM pg_stat_activity WHERE pid = %s"

        def half() -> bool:
            row = direct.execute(state, (pid,)).fetchone()
            return row is not None and row[0] in ("active", "idle in transaction") and row[1].startswith("INSERT")

        assert trap.fired.wait(UNTIL)
        assert trap.kind == "P"
        until(half, "the server waits for the rest of the batch")
        assert seen(direct) == []
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            sent.result(UNTIL)
    until(lambda: direct.execute(state, (pid,)).fetchone() is None, "the server gave it up")
    assert seen(direct) == []


CHILD = """
import psycopg, sys
with psycopg.connect(sys.argv[1], autocommit=True, application_name="doomed") as conn:
    print("connected", flush=True)
    sys.stdin.readline()
    for n in range(50):
        conn.pgconn.exec_(b"INSERT INTO seen VALUES (%d)" % n)
        print(n, flush=True)
"""


@pytest.mark.parametrize(("way", "answered", "written"), [(Way.UP, 6, 6), (Way.DOWN, 6, 7)])
def test_a_process_is_killed_at_the_message(
    servers: Servers, proxy: Proxy, direct: psycopg.Connection[Any], way: Way, answered: int, written: int
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, proxy.dsn(servers[0].dsn)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: proxy.names() == ["doomed"], "it has connected")
        number = 7 if way is Way.UP else 6 * 2 + 1
        assert child.stdin is not None
        assert child.stdout is not None
        # Down, the messages of the log-in are over when the child says so.
        assert child.stdout.readline() == "connected\n"
        trap = Trap(way, number, kill(child.pid), name="doomed")
        proxy.trap(trap)
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.wait(UNTIL) == -9
        assert trap.fired.wait(UNTIL)
        assert child.stdout.read().split() == [str(n) for n in range(answered)]
    finally:
        child.kill()
        child.wait()
    until(lambda: not _idle(direct, "doomed"), "the server knows")
    assert seen(direct) == list(range(written))


def _idle(direct: psycopg.Connection[Any], name: str) -> bool:
    row = direct.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state = 'idle'", (name,)
    ).fetchone()
    return bool(row and row[0])


def test_a_server_that_is_away_closes_the_door(servers: Servers) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Proxy(port) as proxy, pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.dsn(servers[0].dsn), connect_timeout=20)


def test_leaving_the_proxy_ends_its_thread_and_its_connections(
    servers: Servers, direct: psycopg.Connection[Any]
) -> None:
    with Proxy(servers[0].port) as proxy:
        conn = psycopg.connect(proxy.dsn(servers[0].dsn), application_name="left")
        proxy.set(Way.UP, Flow.HOLD)
    assert "proxy" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT 1")
    until(lambda: not _idle(direct, "left"), "the server knows")


def test_messages_are_found_however_the_stream_is_cut() -> None:
    typed = [kind.encode() + struct.pack("!I", 4 + len(body)) + body for kind, body in [("P", b""), ("B", b"xyz")]]
    ssl = struct.pack("!II", 8, 80877103)
    stream = ssl + _startup("name") + b"".join(typed)
    for size in (1, 2, 3, 5, 7, 11, len(stream)):
        frames = Frames(typed=False)
        found = [m for at in range(0, len(stream), size) for m in frames.feed(stream[at : at + size])]
        assert [m.kind for m in found] == ["ssl", "startup", "P", "B"]
        assert b"".join(m.data for m in found) == stream
    assert application(_startup("name")) == "name"
    assert application(struct.pack("!II", 9, 196608) + b"\0") == ""
    with pytest.raises(ValueError, match="not a message"):
        Frames(typed=True).feed(b"P\0\0\0\1")

"""Workers killed, and connections cut, at every moment of transactional steps and of what a relay delivers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from faults import booking
from faults.nursery import Process
from faults.proxy import Act, Trap, cut, reset
from faults.proxy_link import Flow, Link, Way
from faults.proxy_sweep import Point, Sweep, spread, sweeping
from faults.proxy_wire import Message
from faults.stage import until
from faults.worker_main import books
from support.lab import Lab

from shardflow.core.options import Options
from shardflow.definitions import Call
from shardflow.delivery.submission import make_item, pack
from shardflow.storage import caller
from shardflow.storage.shard import Shard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: Workflows of a case.
COUNT = 8


@dataclass(frozen=True)
class Marked(Point):
    """The `number`th message that contains the text."""

    text: bytes = b""

    def counts(self, message: Message) -> bool:
        return self.text in message.data

    def __str__(self) -> str:
        return f"message {self.number} {self.way.value} with {self.text!r}"


#: The function's last write has been answered; nothing has committed.
WRITTEN = Marked(Way.DOWN, 1, text=b"UPDATE 1")
#: The server has committed; the answer goes no further.
COMMITTED = Marked(Way.DOWN, 1, text=b"COMMIT\0")
#: A delivery's answer: its submits are one statement each, without a COMMIT.
DELIVERED = Marked(Way.DOWN, 1, text=b"SELECT ")
#: The fence has been passed, and all has been sent but the COMMIT.
COMMIT = Marked(Way.UP, 1, kinds="P", text=b"COMMIT\0")


class Bookings(Sweep):
    """Cases of workflows with transactional steps, with faults in the connections of these."""

    line = "shardflow transaction"
    count = COUNT

    def submit(self, count: int = COUNT, longest: float = 0.0) -> str:
        self.cases += 1
        ids = [f"case{self.cases}-{n}" for n in range(count)]
        self._client.submit_many(books.call(id).set(id=id) for id in ids)
        return f"case{self.cases}-"

    def trap(self, point: Point, act: Act) -> Trap:
        return self.proxy.trap(Trap(point.way, point.number, act, self.line, where=point.counts))

    def _judge(self, left: int, fault: str) -> bool:
        self.hit += left > 0
        return left > 0

    def freeze_at(self, point: Point, *, silent: bool) -> bool:
        """Freezes a worker at a message, which `silent` keeps from arriving; another ends the work; then wakes it up
        and gives both more. Whether work was left."""
        prefix = self.submit(self.count)
        frozen: list[Process] = []
        known = threading.Event()

        def act(link: Link) -> None:
            assert known.wait(60)
            frozen[0].send(signal.SIGSTOP)
            if silent:
                link.silence()

        trap = self.trap(point, act)
        frozen.append(self.worker())
        known.set()
        until(trap.fired.is_set, f"{prefix}: {point}")
        left = self.count - self.ended(prefix)
        successor = self.on.start_worker()
        until(lambda: self.ended(prefix) == self.count, f"{prefix}: the successor ends it, frozen at {point}")
        frozen[0].send(signal.SIGCONT)
        more = self.submit(self.count)
        until(lambda: self.ended(more) == self.count, f"{more}: after the worker woke up")
        self.bury(frozen[0])
        self.bury(successor)
        return self._judge(left, f"freeze at {point}")

    def wrong(self) -> list[str]:
        """What is not as it should be: effects of a step that are not one, results that do not tell of them."""
        with psycopg.connect(self.on.config.shards[0].dsn, options="-c search_path=shardflow,public") as conn:
            found = [
                f"{id} {seq}: {n} effects"
                for id, seq, n in conn.execute(
                    """
                    SELECT w.id, k.seq, count(e.id) FROM workflow w CROSS JOIN generate_series(0, %s) AS k (seq)
                    LEFT JOIN effect e ON e.id = w.id AND e.seq = k.seq GROUP BY w.id, k.seq HAVING count(e.id) <> 1
                    """,
                    (booking.STEPS - 1,),
                )
            ]
            found += [
                f"{id} ended as {status}"
                for id, status in conn.execute("""
                    SELECT w.id, o.status FROM workflow w LEFT JOIN outcome o USING (wf)
                    WHERE o.status IS DISTINCT FROM 'succeeded'
                    """)
            ]
            given = [int(row[0]) for row in conn.execute("SELECT convert_from(output, 'UTF8') FROM step ORDER BY 1")]
            row = conn.execute("SELECT n FROM tally").fetchone()
        assert row is not None
        if sorted(given) != list(range(1, row[0] + 1)):
            found.append(f"the steps' values are not 1 to {row[0]}, each once: {sorted(given)}")
        return found


class Relayed(Bookings):
    """Cases of submissions that lie in the outbox, with faults in the connections by which they are delivered."""

    line = "shardflow client"

    def submit(self, count: int = COUNT, longest: float = 0.0) -> str:
        self.cases += 1
        ids = [f"case{self.cases}-{n}" for n in range(count)]
        shard = Shard(self.on.config.shards[0])
        with psycopg.connect(shard.config.dsn) as conn:
            for id in ids:
                call = Call(books, (id,), options=Options(id=id))
                item = make_item(call, self.on.config.slots, None)
                caller._run(conn, caller.post_submission(shard, id, pack(item)))
        return f"case{self.cases}-"


@contextmanager
def booked(
    lab: Lab, folder: Path, kind: type[Bookings] = Bookings, mutants: Sequence[str] = ()
) -> Iterator[Bookings]:
    with sweeping(lab, folder, mutants=mutants) as made:
        booking.make_tables(made.on.config.shards[0].dsn)
        yield kind(made.on, made.proxy, made._through, made._client)


OUTBOX = "SELECT count(*) FROM shardflow.outbox"


def there(relayed: Bookings) -> int:
    return relayed.on.ask(0, "SELECT count(*) FROM shardflow.workflow") or 0


def held_up(relayed: Bookings) -> Process:
    """A worker that has something to deliver, and whose deliveries do not come through."""
    relayed.proxy.set(Way.UP, Flow.HOLD, name=Relayed.line)
    relayed.submit()
    return relayed.worker()


def points(bookings: Bookings, way: Way, cases: int, kinds: str = "") -> list[Point]:
    return [Point(way, number, kinds) for number in spread(bookings.messages(way, kinds), cases)]


def test_workers_killed_in_transactions(lab: Lab, tmp_path: Path) -> None:
    with booked(lab, tmp_path) as bookings:
        for number in (1, 3, 7):
            assert bookings.kill_at(replace(WRITTEN, number=number))
            assert bookings.kill_at(replace(COMMITTED, number=number))
        share = bookings.over(points(bookings, Way.UP, 10), bookings.kill_at)
        share += bookings.over(points(bookings, Way.DOWN, 8), bookings.kill_at)
        print(f"{bookings.hit} kills in {bookings.cases} cases of {COUNT} workflows")
        assert bookings.wrong() == []
        assert bookings.cases * COUNT >= 200
        assert share >= 1.2


def test_connections_lost_in_transactions(lab: Lab, tmp_path: Path) -> None:
    with booked(lab, tmp_path) as bookings:
        for number in (1, 2, 5, 9):
            assert bookings.spoil_at(replace(COMMITTED, number=number), cut)
            assert bookings.spoil_at(replace(WRITTEN, number=number), reset)
        share = bookings.over(points(bookings, Way.UP, 8), lambda point: bookings.spoil_at(point, cut))
        print(f"{bookings.hit} faults in {bookings.cases} cases of {COUNT} workflows")
        assert bookings.wrong() == []
        assert share >= 0.6


def test_workers_frozen_in_transactions(lab: Lab, tmp_path: Path) -> None:
    """With the function's writes made and nothing committed; and with half of the commit sent, which keeps the
    lease."""
    with booked(lab, tmp_path) as bookings:
        assert bookings.freeze_at(replace(WRITTEN, number=3), silent=False)
        assert bookings.freeze_at(replace(COMMIT, number=3), silent=True)
        assert bookings.wrong() == []


def test_red_where_the_checkpoint_commits_after_the_writes(lab: Lab, tmp_path: Path) -> None:
    with booked(lab, tmp_path, mutants=["checkpoint_after_commit"]) as bookings:
        last = bookings.messages(Way.UP)
        for number in range(last, 0, -max(1, last // 23)):
            bookings.kill_at(Point(Way.UP, number))
            if any("2 effects" in each for each in bookings.wrong()):
                return
    pytest.fail("the mutant was not noticed")


def test_red_where_a_lost_answer_counts_as_no_commit(lab: Lab, tmp_path: Path) -> None:
    with booked(lab, tmp_path, mutants=["forget_what_is_recorded"]) as bookings:
        assert bookings.spoil_at(COMMITTED, cut)
        assert any("2 effects" in each for each in bookings.wrong())


def test_relays_killed(lab: Lab, tmp_path: Path) -> None:
    """Between the outbox row and its delivery, and between the delivery and the row's deletion."""
    with booked(lab, tmp_path, Relayed) as relayed:
        for number in (1, 2, 3):
            relayed.kill_at(replace(DELIVERED, number=number))
        relayed.over(points(relayed, Way.UP, 8), relayed.kill_at)
        assert relayed.hit >= 5
        worker = held_up(relayed)
        until(lambda: relayed.on.ask(0, OUTBOX + " WHERE lease > 0") == COUNT, "the worker takes them over")
        relayed.bury(worker)
        relayed.proxy.heal()
        successor = relayed.worker()
        until(lambda: relayed.outcomes() == relayed.cases * COUNT, "the successor delivers and ends them")
        until(lambda: relayed.on.ask(0, OUTBOX) == 0, "the outbox is empty")
        relayed.bury(successor)
        assert there(relayed) == relayed.cases * COUNT
        assert relayed.wrong() == []


@pytest.mark.parametrize("mutant", ["relay_under_new_ids", "delete_before_delivery"])
def test_red_where_the_relay_is_careless(lab: Lab, tmp_path: Path, mutant: str) -> None:
    with booked(lab, tmp_path, Relayed, [mutant]) as relayed:
        if mutant == "relay_under_new_ids":
            for number in range(1, 9):  # some answers are to other questions
                relayed.kill_at(replace(DELIVERED, number=number))
                if there(relayed) > relayed.cases * COUNT:
                    return
            pytest.fail("the mutant was not noticed")
        else:
            worker = held_up(relayed)
            until(lambda: relayed.on.ask(0, OUTBOX) == 0, "the mutant deletes")
            relayed.bury(worker)
            assert there(relayed) == 0

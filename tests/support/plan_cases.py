"""Every statement that reads tables: with what it is asked in the tests of its plan, and where it runs.

`CASES` has the statements that look things up, whatever there is; `WHOLE` those that read all of something, and why
that is right. The tests fail for a statement that is in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: Rows of every table that grows with the workflows. Behind them are workflows that are in one place only.
ROWS = 1_000_000
RUNNING, SUSPENDED, READY, ENDED = (ROWS + n * 1_000 for n in range(4))
EACH = 1_000


class Where(Enum):
    """Whose statement it is, which decides how it is planned."""

    TURN = "behind the fence of a turn"
    SESSION = "on a connection of a client or keeper, as the server likes"
    USER = "on a connection of a transaction, or the user's own"
    CLI = "on a new connection of the command line"
    WALK = "behind `query.walking`"
    SEARCH = "behind `query.searching`"
    BY_INDEX = "behind `checkup.by_index`"


@dataclass(frozen=True)
class Case:
    """A statement's parameters: their types, and their values as SQL. `most` is how many rows of a table or entries
    of an index it may touch; `samples`, that it takes some blocks of a table, at random."""

    types: str = ""
    values: str = ""
    where: Where = Where.SESSION
    most: int = 5_000
    samples: bool = False


def _some(first: int, count: int = 100, kind: str = "bigint") -> str:
    return "'{" + ",".join(str(first + n) for n in range(1, count + 1)) + f"}}'::{kind}[]"


def _ids(first: int, count: int = 100) -> str:
    return "'{" + ",".join(f"w{first + n}" for n in range(1, count + 1)) + "}'::text[]"


def _all(value: str, kind: str, count: int = 100) -> str:
    return f"array_fill({value}::{kind}, ARRAY[{count}])"


def _turn(types: str = "", values: str = "", most: int = 5_000) -> Case:
    return Case(types, values, Where.TURN, most)


_FITS = "text, text, timestamptz, timestamptz, text"
_ANY = "NULL, NULL, NULL, NULL, NULL"
_STRETCH = f"'{{1}}', '{{{ROWS}}}'"
_MARKS = "'{empty,q0,q1}', '{0,-32768,-32768}', '{90000,0,0}'"
_EMPTY = "'{}'"


def _walk(types: str, values: str, most: int = 5_000) -> Case:
    return Case(types, values, Where.WALK, most)


CASES: dict[str, Case] = {
    # -- a worker's turn
    "turn.fence": _turn("bigint, integer, bigint", "1, 1, 1"),
    "turn.steps": _turn(
        "bigint[], bigint[], smallint[], text[], bytea[], text[]",
        f"{_some(RUNNING)}, {_all('7', 'bigint')}, {_all('1', 'smallint')}, {_all(chr(39) + 's' + chr(39), 'text')},"
        f" {_all('NULL', 'bytea')}, {_all('NULL', 'text')}",
    ),
    "turn.outcomes": _turn(
        "bigint[], text[], bytea[], text[], bigint",
        f"{_some(RUNNING)}, {_all(chr(39) + 'succeeded' + chr(39), 'text')}, {_all('NULL', 'bytea')},"
        f" {_all('NULL', 'text')}, 1",
    ),
    "turn.retries": _turn(
        "bigint[], bigint[], smallint[], text[], text[], float8[]",
        f"{_some(1)}, {_all('0', 'bigint')}, {_all('1', 'smallint')}, {_all(chr(39) + 's' + chr(39), 'text')},"
        f" {_all(chr(39) + 'e' + chr(39), 'text')}, {_all('1', 'float8')}",
    ),
    "turn.tried": _turn("bigint[], bigint[]", f"{_some(1)}, {_all('0', 'bigint')}"),
    "turn.receive": _turn("bigint[], bigint[]", f"{_some(1)}, {_all('5', 'bigint')}"),
    "turn.events": _turn(
        "bigint[], text[], bytea[]", f"{_some(1)}, {_all(chr(39) + 'k' + chr(39), 'text')}, {_all('NULL', 'bytea')}"
    ),
    "turn.cancel_children": _turn("bigint[], text[], bigint", f"{_some(RUNNING)}, '{{a,b}}', 1"),
    "turn.begin_anew": _turn("bigint[]", _some(RUNNING)),
    "turn.sweep": _turn(),
    "turn.suspend": _turn(
        "float8[], smallint[], text[], bigint[], text[], integer[], bigint[]",
        f"{_all('60', 'float8')}, {_all('0', 'smallint')}, {_all(chr(39) + 'x' + chr(39), 'text')},"
        f" {_all('0', 'bigint')}, {_all(chr(39) + 'go' + chr(39), 'text')}, {_all('NULL', 'integer')},"
        f" {_some(RUNNING)}",
    ),
    "turn.relayed": _turn("bigint[], bigint", f"{_some(1)}, 1"),
    "turn.overdue": _turn(),
    "turn.in_time": _turn(),
    "turn.adopt": _turn("bigint, integer, bigint", "1, 1000, 1000000"),
    "turn.outbox": _turn("bigint, bigint, integer, bigint", "1, 0, 1000, 1000000"),
    "turn.mail": _turn(
        "bigint[], bigint[], text[], bigint[], integer, bigint[], text[], bigint",
        "'{1,2,3}', '{1,2,3}', '{t,t,t}', '{0,0,0}', 1000, '{4,5}', '{w1,w2}', 1000000",
    ),
    "turn.over": _turn("bigint[]", _some(RUNNING)),
    "turn.cancelled": _turn(),
    "turn.drop_claims": _turn("bigint, bigint[]", "1, '{1,2}'"),
    "turn.keep_claim": _turn("bigint, bigint, bigint[], smallint[]", "1, 99, '{1,2}', '{0,0}'"),
    "turn.claim": _turn(
        "text[], smallint[], bigint[], integer, integer, bigint, bigint, bigint",
        f"{_MARKS}, 500, 500, 1, 99, 1000000",
    ),
    "turn.wake": _turn("timestamptz, integer", "NULL, 1000"),
    "turn.clock": _turn(),
    "limits.claim": _turn(
        "bigint, text[], smallint[], bigint[], integer, bigint, bigint", f"1000000, {_MARKS}, 500, 1, 98"
    ),
    "limits.states": _turn("text[], smallint[], bigint[]", _MARKS),
    "limits.have_begun": _turn("bigint, bigint[], float8[]", "1, '{1}', '{0.5}'"),
    "limits.settle": _turn(),
    "limits.limited": _turn(),
    # -- limits elsewhere
    "limits.declare": Case("text, text, bigint, integer, float8, integer", "'q9', 'running', 1, 10, NULL, 5"),
    "limits.give": Case("text, text, text, integer, integer", "'q0', 'running', 's1', 1, 5"),
    "limits.grants": Case("text", "'s0'"),
    "limits.accept": Case("text, text, text, bigint, integer", "'q0', 'running', 's1', 7, 1"),
    "limits.arrived": Case("text, text, text, bigint", "'q0', 'running', 's1', 7"),
    "limits.list": Case(),
    # -- leases
    "lease.open": Case("text, boolean, integer, text[], float8", f"'w', false, NULL, {_EMPTY}, 10"),
    "lease.cut_former": Case("bigint", "1"),
    "lease.settle": Case("bigint", "1"),
    "lease.resume": Case("integer, float8, bigint", "NULL, 10, 1"),
    "lease.look": Case("bigint, integer, float8, boolean, text[]", "1, 1, 10, true, '{empty,none}'"),
    "lease.expire_due": Case("bigint", "3"),
    "lease.expire_gone": Case("bigint", "3"),
    "lease.cut_off": Case("bigint, float8", "3, 1"),
    "lease.release": Case("bigint", "1"),
    "lease.held": Case("bigint", "1"),
    "lease.batches": Case("bigint", "1"),
    "lease.load": Case("bigint[]", _some(RUNNING)),
    "lease.checkpoints": Case("bigint[]", _some(RUNNING)),
    "lease.retries": Case("bigint[]", _some(1)),
    "lease.written": Case("bigint, bigint, bigint", "1, 0, 1"),
    "lease.list": Case(),
    # -- retention
    "retention.take": Case("text, float8, text, text", "'w', 10, 'succeeded', 'w'"),
    "retention.edge": Case("bigint, float8", "1, 0"),
    "retention.succeeded": Case(
        "bigint, bigint, bigint, text, float8, text, float8",
        f"{ENDED}, {ENDED + EACH}, 500, 'failed', -1, 'failed', -1",
    ),
    "retention.unlucky": Case(
        "text, bigint, bigint, bigint, float8, text, float8",
        f"'failed', {ENDED}, {ENDED + EACH}, 500, -1, 'failed', -1",
    ),
    "retention.advance": Case("bigint, bigint, float8, text, text", "1, 1, 1, 'succeeded', 'w'"),
    "retention.thorough": Case("float8, text, text", "1, 'succeeded', 'w'"),
    "retention.purge": Case("text[], float8", f"{_ids(ENDED)}, -1"),
    # -- submitting and messages
    "submit.ring": Case(),
    "submit.admit": Case("bigint", "1"),
    "submit.insert": Case(
        "text[], text[], text[], integer[], smallint[], bytea[]",
        "'{n1,n2,w7}', '{x,x,x}', '{q0,q0,q0}', '{1,1,1}', '{0,0,0}', '{a,b,c}'",
    ),
    "submit.insert_new": Case(
        "text[], text[], text[], integer[], smallint[], bytea[]",
        "'{n1,n2,w7}', '{x,x,x}', '{q0,q0,q0}', '{1,1,1}', '{0,0,0}', '{a,b,c}'",
    ),
    "submit.submit": Case(
        "bigint, text[], text[], text[], integer[], smallint[], bytea[]",
        "1, '{n1,n2,w7}', '{x,x,x}', '{q0,q0,q0}', '{1,1,1}', '{0,0,0}', '{a,b,c}'",
    ),
    "submit.insert_more": Case(
        "text[], text[], text[], integer[], smallint[], bytea[], text[], text[], float8[], integer[], text[], text[],"
        " text[], integer[], text[], text[]",
        "'{n1,n2,n3,n4}', '{x,x,x,x}', '{q0,q0,q0,q0}', '{1,1,1,1}', '{0,0,0,0}', '{a,b,c,d}',"
        " '{NULL,NULL,NULL,NULL}', '{NULL,NULL,NULL,NULL}', '{1,NULL,NULL,NULL}', '{NULL,1,NULL,NULL}',"
        " '{NULL,NULL,w7,NULL}', '{NULL,NULL,d5,NULL}', '{NULL,NULL,NULL,k7}', '{NULL,NULL,NULL,3}', '{n2}', '{w9}'",
    ),
    "submit.active": Case("text[]", "'{d1,d2,d3}'"),
    "submit.watch": Case("text[], text[], text", f"{_ids(SUSPENDED, 3)}, '{{w1,w1,w1}}', 't'"),
    "submit.deliver": Case(
        "text[], text[], text[], bytea[], text[]",
        f"{_ids(SUSPENDED)}, {_all(chr(39) + 'go' + chr(39), 'text')}, {_ids(0)}, {_all('NULL', 'bytea')},"
        f" {_all('NULL', 'text')}",
    ),
    "submit.event": Case("text, text", "'k', 'w77'"),
    "submit.existing": Case("text[]", _ids(0)),
    # -- control
    "control.cancel": Case("text[], text[]", f"{_ids(SUSPENDED)}, {_all('NULL', 'text')}"),
    "control.resume": Case("text[], boolean", f"{_ids(ENDED)}, false"),
    "control.source": Case("text", "'w77'"),
    "control.record": Case("bigint", "77"),
    "control.fork": Case(
        "text, text, text, integer, smallint, bytea, jsonb, float8, jsonb, jsonb, bigint[], smallint[], text[],"
        " bytea[], text[], float8[], text, text[]",
        "'f', 'x', 'q0', 1, 0, 'a', NULL, NULL, NULL, NULL, '{0,1}', '{1,1}', '{s,s}', '{a,a}', '{NULL,NULL}',"
        " '{0,0}', 'f', '{w1}'",
    ),
    "control.pause": Case("text[]", "'{q0}'"),
    "control.unpause": Case("text[]", "'{q8}'"),
    # -- reading
    "read.outcomes": Case("bigint[]", _some(0, 1_000)),
    "read.keys": Case("text[]", _ids(0)),
    "read.find": Case("text", "'w77'"),
    "read.steps": Case("text", "'w77'"),
    "read.waiting": Case("bigint", "77"),
    "read.failed_tries": Case("bigint", "77"),
    # -- lists
    "query.ranges": _walk("", ""),
    "query.edge": _walk("bigint[], bigint[], timestamptz, timestamptz", f"{_STRETCH}, now(), now()"),
    "query.all": _walk(f"bigint[], bigint[], {_FITS}, bigint, bigint, bigint", f"{_STRETCH}, {_ANY}, 500, 500, 51"),
    "query.ready": _walk(f"bigint[], bigint[], {_FITS}, bigint, bigint, bigint", f"{_STRETCH}, {_ANY}, 500, 500, 51"),
    "query.suspended": _walk(
        f"bigint[], bigint[], {_FITS}, bigint, bigint, bigint", f"{_STRETCH}, {_ANY}, 500, 500, 51"
    ),
    "query.ended": _walk(
        f"bigint[], bigint[], text[], {_FITS}, bigint, bigint, bigint",
        f"{_STRETCH}, '{{succeeded}}', {_ANY}, 500, 500, 51",
    ),
    "query.unlucky": _walk(
        f"bigint[], bigint[], text[], {_FITS}, bigint, bigint, bigint",
        f"{_STRETCH}, '{{dead,failed}}', {_ANY}, 500, 500, 51",
    ),
    "query.running": _walk(_FITS, _ANY),
    "query.some_ready": _walk(f"{_FITS}, bigint", f"{_ANY}, 501"),
    "query.some_tagged": Case(f"{_FITS}, text, bigint", f'{_ANY}, \'{{"tenant": "small"}}\', 2001', Where.SEARCH),
    "query.lanes": _walk("bigint", "101"),
    "query.ready_in": _walk(
        f"bigint[], bigint[], text[], smallint[], {_FITS}, bigint, bigint, bigint",
        f"{_STRETCH}, '{{q0,q1}}', '{{0,0}}', {_ANY}, 500, 500, 51",
    ),
    "query.suspects": _walk(f"{_FITS}, text[], smallint[], bigint", f"{_ANY}, '{{q0,q1}}', '{{0,0}}', 501"),
    "query.count_up_to": _walk("bigint, bigint, bigint, bigint", "501, 501, 501, 501"),
    "query.describe": _walk("bigint[]", f"{_some(0)}"),
    "query.held": _walk("bigint[]", f"{_some(0)}"),
    # -- doctor
    "checkup.frozen": Case(where=Where.CLI),
    "checkup.keys": Case("bigint, bigint, bigint, bigint", "1, 9999999999, 1, 9999999999", where=Where.CLI),
    "checkup.leases": Case("bigint", "10001", where=Where.CLI),
    "checkup.orphans": Case(where=Where.CLI),
    "checkup.receipts": Case("float8", "3600", where=Where.CLI),
    "checkup.queues": Case("bigint", "1001", Where.BY_INDEX),
    "checkup.overdue": Case("float8, bigint", "60, 1001", where=Where.CLI),
    "checkup.sample": Case("bigint, float8", "1000, 0.02", samples=True, where=Where.CLI),
    "checkup.outbox": Case("bigint", "1001", where=Where.CLI),
    # -- transactions
    "caller.unmoved": Case(where=Where.USER),
    "caller.owns": Case("integer", "1", where=Where.USER),
    "caller.post": Case("text, text, text, bytea", "'w1', 't', 'k', 'x'", where=Where.USER),
    "transaction.take": Case("bigint, integer, text, text", "1, 1, '1', '1:2'", where=Where.USER),
    "transaction.hold": Case("bigint, integer", "1, 1", where=Where.USER),
    "transaction.recorded": Case("bigint, bigint", "1, 0", where=Where.USER),
    "transaction.unmoved": Case(where=Where.USER),
    "transaction.record": Case(
        "text, bigint, bigint, bigint, smallint, text, bytea, text",
        f"'mine', {RUNNING + 1}, {RUNNING + 1}, 8, 1::smallint, 's', NULL, NULL",
        where=Where.USER,
    ),
    "transaction.tried": Case("bigint, bigint", "1, 0", where=Where.USER),
    # -- the registry and the rebalancer, whose tables have a row for each worker
    "registry.beat": Case(
        "text, text, integer, text, text, text, integer, integer, text[], text[], boolean, float8, boolean, boolean,"
        " bigint, integer, text[], text[], text[], bigint, bigint",
        f"'w', 'h', 1, 'a', '0', '', 10, 1, {_EMPTY}, {_EMPTY}, false, 10, false, false, 1, 0, {_EMPTY}, {_EMPTY},"
        f" {_EMPTY}, 0, 0",
    ),
    "registry.leave": Case("text", "'w'"),
    "registry.sweep": Case("float8", "3600"),
    "registry.workers": Case(),
    "registry.claimers": Case("bigint", "1"),
    "registry.set_claiming": Case("boolean, bigint, boolean", "true, 1, true"),
    "rebalance.stand": Case("text, bigint, float8", "'w', 1, 60"),
    "rebalance.resign": Case("text", "'w'"),
    "rebalance.elected": Case(),
    "rebalance.report": Case("text", "'shardflow'"),
    "rebalance.wish": Case("text[], text", f"{_EMPTY}, 'w'"),
    "rebalance.note": Case(
        "bigint, text, text[], text[], text[], text[], text[]", "1, 'w', '{k}', '{w}', '{NULL}', '{NULL}', '{r}'"
    ),
    "rebalance.prune": Case("bigint", "10000"),
    "rebalance.journal": Case("bigint", "100"),
    # -- schedules
    "schedule.look": Case(),
    "schedule.due": Case("float8, bigint", "180, 100"),
    "schedule.decided": Case("text[], timestamptz[], timestamptz[]", "'{s1}', '{now}', '{now}'"),
    "schedule.add_ticks": Case("text[], timestamptz[]", "'{s0}', '{now}'"),
    "schedule.take": Case("float8, bigint", "15, 500"),
    "schedule.submitted": Case(
        "text[], timestamptz[], integer[], text[]", "'{s1,s2}', '{now,now}', '{0,0}', '{a,b}'"
    ),
    "schedule.skipped": Case("text, timestamptz, integer", "'s1', 'now', 0"),
    "schedule.put_off": Case("float8, text, timestamptz, integer", "1, 's1', 'now', 0"),
    "schedule.ended": Case("text, text", "'w7', 'w7'"),
    "schedule.confirmed": Case("text[], timestamptz, float8", "'{s1,s2}', 'now', 180"),
    "schedule.insert": Case(
        "text, integer, text, text, text, text, bytea, boolean, text, text, text, boolean, boolean, timestamptz,"
        " timestamptz",
        "'x', 0, 'every 1d', 'UTC', 'w', 'q', '[]', false, '{}', 'skip', 'allow', false, false, NULL, 'now'",
    ),
    "schedule.locked": Case("text", "'s7'"),
    "schedule.replace": Case(
        "text, text, text, text, bytea, boolean, text, text, text, timestamptz, timestamptz, timestamptz, text",
        "'every 1d', 'UTC', 'w', 'q', '[]', false, '{}', 'skip', 'allow', NULL, 'now', 'now', 's7'",
    ),
    "schedule.confirm": Case("timestamptz, text", "'now', 's7'"),
    "schedule.pause": Case("boolean, timestamptz, timestamptz, text", "true, 'now', NULL, 's7'"),
    "schedule.delete": Case("text", "'s7'"),
    "schedule.find": Case("float8, text", "180, 's7'"),
    # -- what a cluster is made of
    "cluster.migrations": Case(),
    "cluster.record_migration": Case("integer, text, text", "9999, 'x', 'x'"),
    "cluster.identity": Case(),
    "cluster.slots": Case(),
    "cluster.write_slots": Case("integer[], text[], text[]", "'{1}', '{hint}', '{s1}'"),
}

#: Statements that read all of something.
WHOLE = {
    "query.count_all": "an exact count reads what it counts",
    "query.count_some": "an exact count reads what it counts",
    "query.next_ready": "only where there are very many lanes: reads what is ready",
    "control.queues": "counts what is ready, exactly",
    "read.counts": "an exact count, for the audits of benchmarks and the demo",
    "read.progress": "an exact count, for the progress bars of benchmarks and the demo",
    "checkup.misplaced": "only for what a sample did not find where it usually is: looks everywhere",
    "checkup.misplaced_all": "the deep checkup reads everything",
    "schedule.list": "shows every schedule",
}
#: Statements that are no queries, or are sent once in a shard's life.
ONCE = {
    "cluster.create_schema",
    "cluster.create_migrations",
    "cluster.write_identity",
    "cluster.start_keys",
    "query.fits",
}

"""The floor: what one process, one connection and one Postgres reach with no framework in between.

Each turn is one pipelined transaction: fence, steps and outcomes by ``unnest``, receipts of finished batches
deleted, the next batch claimed. Every commit is durable, and the rows are counted in the database afterwards.

The figure called *the floor* is written with psycopg as anybody would write it: its pipeline mode, Python lists, one
transaction in flight; all steps of a workflow and its outcome go in the turn after its claim. The *tight floor*
(``driver="libpq"``) speaks to libpq itself, encodes its arrays itself and keeps two transactions in flight. With
``sequential`` it sends a step only after the step before it has committed, as a worker must; batches at different
steps share a turn, so a turn carries as many rows, and only a workflow's latency grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

# Loaded by its path (from a wheel, say), this file still finds its two helpers.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _floor_driver import DriverFloor
from _layouts_load import payloads, workflow_ids
from _layouts_sql import EPOCH, FENCE_DDL, GENERATION, LAYOUT_D, LEASE, NO_MARK, Layout
from _layouts_wire import (
    BYTEA_ARRAY,
    INT2,
    INT4,
    INT4_ARRAY,
    INT8,
    INT8_ARRAY,
    TEXT,
    TEXT_ARRAY,
    FloorError,
    ServerMeter,
    Wire,
    bytes_array,
    int2,
    int4,
    int8,
    int_array,
    text_array,
)

SCHEMA = "shardflow_floor"
QUEUE = "default"
SUBMIT_BATCH = 1_000
BATCH = 1_000
LAYOUTS = {"d": LAYOUT_D}
STEP_NAMES = (b"reserve", b"charge", b"deliver")


@dataclass(slots=True)
class Batch:
    """Workflows claimed together, and how many of their steps have been sent."""

    number: int
    keys: list[Any]
    sent: int = 0


@dataclass(slots=True)
class Turn:
    """One transaction in flight: statements still to be answered, and the batches that it carries."""

    statements: list[str]
    carried: list[Batch]
    claims: int | None


@dataclass(slots=True)
class Drain:
    """The loop: claims batches and completes them until nothing is ready.

    ``depth`` turns are in flight at a time: with two, the next turn is encoded and sent while the server
    works, and a batch is completed in the second turn after its claim.
    """

    wire: Wire
    layout: Layout
    steps: int
    outputs: list[bytes]
    batch: int
    sequential: bool = False
    depth: int = 2
    mark: bool = True
    turns: int = 0
    claimed: int = 0
    progress: list[tuple[float, int]] = field(default_factory=list)
    _flying: deque[Turn] = field(default_factory=deque)
    _arrived: list[Batch] = field(default_factory=list)
    _low: tuple[int, int] = NO_MARK
    _empty: bool = False

    def run(self) -> int:
        """Drain the queue; return the number of workflows completed."""
        while not self._empty or self._arrived or self._flying:
            if self._arrived or not self._empty:
                self._send()
            while len(self._flying) >= self.depth or (self._flying and self._empty and not self._arrived):
                self._take()
        return self.claimed

    def _send(self) -> None:
        carried, self._arrived = self._arrived, []
        stepping = [each for each in carried if each.sent < self.steps]
        finished = [each for each in carried if not self.sequential or each.sent == self.steps]
        statements = ["begin", "fence"]
        self.wire.send("begin")
        self.wire.send("fence", int8(LEASE), int4(EPOCH), int8(GENERATION))
        if stepping:
            self._send_steps(stepping)
            statements.append("steps")
        if finished:
            self._send_outcomes(finished)
            statements.append("finish")
            if self.layout.release is not None:
                self.wire.send("release", int8(LEASE), int_array([each.number for each in finished]))
                statements.append("release")
        claims: int | None = None
        if not self._empty:
            claims = self.turns
            priority, seq = self._low
            self.wire.send(
                "claim",
                QUEUE.encode(),
                int4(self.batch),
                int8(LEASE),
                int8(claims),
                int2(priority),
                int8(seq),
            )
            statements.append("claim")
        self.wire.send("commit")
        statements.append("commit")
        self.wire.sync()
        self._flying.append(Turn(statements, stepping if self.sequential else [], claims))
        self.turns += 1

    def _send_steps(self, stepping: list[Batch]) -> None:
        keys: list[Any] = []
        seqs: list[int] = []
        for each in stepping:
            upto = each.sent + 1 if self.sequential else self.steps
            numbers = range(each.sent, upto)
            keys += each.keys if len(numbers) == 1 else [key for key in each.keys for _ in numbers]
            seqs += list(numbers) * len(each.keys)
            each.sent = upto
        names = [STEP_NAMES[seq % len(STEP_NAMES)] for seq in seqs]
        self.wire.send(
            "steps",
            self._keys(keys),
            int_array(seqs, wide=False),
            bytes_array(names, oid=TEXT),
            bytes_array(self._payloads(len(keys))),
        )

    def _send_outcomes(self, finished: list[Batch]) -> None:
        keys = [key for each in finished for key in each.keys]
        self.wire.send("finish", self._keys(keys), bytes_array(self._payloads(len(keys))))

    def _keys(self, keys: list[Any]) -> bytes:
        return text_array(keys) if self.layout.text_key else int_array(keys)

    def _payloads(self, count: int) -> list[bytes]:
        return (self.outputs * (count // len(self.outputs) + 1))[:count]

    def _take(self) -> None:
        turn = self._flying.popleft()
        rows = self.wire.receive(turn.statements, "claim")
        self._arrived += turn.carried
        if turn.claims is None:
            return
        if rows:
            self._arrived.append(Batch(turn.claims, [row[0] for row in rows]))
            self.claimed += len(rows)
            self.progress.append((time.perf_counter(), self.claimed))
            if self.mark:
                self._low = max((row[2], row[3]) for row in rows)
        self._empty = self._empty or not rows


def submit(wire: Wire, count: int, inputs: list[bytes], ids: str = "ordered") -> float:
    """Submit ``count`` workflows in bulk, one durable transaction a batch; return the seconds it took."""
    made = workflow_ids(count, ids)
    started = time.perf_counter()
    waiting = 0
    for first in range(0, count, SUBMIT_BATCH):
        numbers = range(first, min(first + SUBMIT_BATCH, count))
        slots = int_array([number * 2_654_435_761 >> 7 & 1023 for number in numbers], wide=False)
        body = bytes_array((inputs * (len(numbers) // len(inputs) + 1))[: len(numbers)])
        wire.send("submit", text_array(made[numbers.start : numbers.stop]), slots, body, QUEUE.encode())
        wire.sync()
        waiting += 1
        if waiting == 2:
            wire.receive(["submit"])
            waiting -= 1
    for _ in range(waiting):
        wire.receive(["submit"])
    return time.perf_counter() - started


def open_wire(dsn: str, layout: Layout, schema: str) -> Wire:
    """Connect, with durable commits, and prepare the statements of ``layout``."""
    keys = TEXT_ARRAY if layout.text_key else INT8_ARRAY
    statements: dict[str, tuple[str | None, tuple[int, ...]]] = {
        "begin": ("BEGIN", ()),
        "commit": ("COMMIT", ()),
        "fence": ("SELECT {s}.fence($1, $2, $3)", (INT8, INT4, INT8)),
        "submit": (layout.submit, (TEXT_ARRAY, INT4_ARRAY, BYTEA_ARRAY, TEXT)),
        "claim": (layout.claim, (TEXT, INT4, INT8, INT8, INT2, INT8)),
        "steps": (layout.steps, (keys, INT4_ARRAY, TEXT_ARRAY, BYTEA_ARRAY)),
        "finish": (layout.finish, (keys, BYTEA_ARRAY)),
        "release": (layout.release, (INT8, INT8_ARRAY)),
    }
    texts = {name: (text.replace("{s}", schema), types) for name, (text, types) in statements.items() if text}
    return Wire(dsn, texts, ("SET synchronous_commit = on", *layout.session))


@contextlib.contextmanager
def prepared_schema(dsn: str, layout: Layout, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """Create the layout in a schema of its own, yield a control connection, drop the schema at the end."""
    with psycopg.connect(dsn, autocommit=True) as control:
        control.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())
        control.execute(f"CREATE SCHEMA {schema}".encode())
        try:
            for statement in (*FENCE_DDL, *layout.ddl):
                control.execute(statement.replace("{s}", schema).encode())
            yield control
        finally:
            control.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


def answer_of(control: psycopg.Connection[Any], query: str, schema: str) -> int:
    """Return the one number that ``query`` answers."""
    row = control.execute(query.replace("{s}", schema).encode()).fetchone()
    if row is None:
        raise FloorError(f"no answer to {query}")
    return int(row[0])


def verify(control: psycopg.Connection[Any], layout: Layout, schema: str, workflows: int, steps: int) -> None:
    """Raise FloorError unless the database holds every outcome and step, and nothing ready or claimed."""
    found = [answer_of(control, query, schema) for query in (layout.done, layout.stepped, layout.held)]
    if found != [workflows, workflows * steps, 0]:
        raise FloorError(f"expected {workflows} outcomes, {workflows * steps} steps, 0 held; found {found}")


def run_floor(
    dsn: str,
    *,
    workflows: int,
    steps: int,
    payload: int = 100,
    batch: int = BATCH,
    layout: str | Layout = "d",
    sequential: bool = False,
    depth: int = 2,
    kind: str = "json",
    mark: bool = True,
    driver: str = "psycopg",
) -> dict[str, Any]:
    """Measure the floor on one server and return its figures.

    Args:
        dsn: a server whose user may create a schema; CPU figures need it to be local and otherwise idle.
        workflows: how many are submitted, then drained.
        steps: durable steps of each workflow.
        payload: bytes of each input, step output and output.
        batch: workflows claimed in a turn.
        layout: a name in ``LAYOUTS``, or a layout.
        sequential: send a step only after the step before it has committed.
        depth: turns in flight at a time.
        kind: ``json`` or ``random`` payloads.
        mark: claim from a low-water mark on.
        driver: ``psycopg`` for the floor, ``libpq`` for the tight one, to which ``sequential`` and ``depth`` belong.

    Raises:
        FloorError: a statement failed, or the rows at the end are not those that were to be written.
    """
    chosen = LAYOUTS[layout] if isinstance(layout, str) else layout
    bodies = payloads(payload, kind=kind)
    with prepared_schema(dsn, chosen, SCHEMA) as control:
        plain = DriverFloor(dsn, chosen, SCHEMA) if driver == "psycopg" else None
        wire = open_wire(dsn, chosen, SCHEMA)
        try:
            meter = ServerMeter(control)
            wal_start = meter.wal()
            if plain is not None:
                submit_seconds = plain.submit(workflows, bodies, QUEUE, SUBMIT_BATCH)
            else:
                submit_seconds = submit(wire, workflows, bodies)
            wal_submitted = meter.wal()
            drain = Drain(wire, chosen, steps, bodies, batch, sequential, depth, mark)
            server_start, python_start, started = meter.cpu(), time.process_time(), time.perf_counter()
            if plain is not None:
                drained, drain.turns = plain.drain(steps, bodies, QUEUE, batch, mark)
            else:
                drained = drain.run()
            seconds = time.perf_counter() - started
            python_seconds, server_end = time.process_time() - python_start, meter.cpu()
            wal_end = meter.wal()
        finally:
            wire.close()
            if plain is not None:
                plain.close()
        verify(control, chosen, SCHEMA, workflows, steps)
        if drained != workflows:
            raise FloorError(f"claimed {drained} of {workflows} workflows")
        version = control.info.server_version
    server_us = None
    if server_start is not None and server_end is not None:
        server_us = round((server_end - server_start) / workflows * 1e6, 2)
    return {
        "layout": chosen.name,
        "server_version": version,
        "workflows": workflows,
        "steps": steps,
        "payload_bytes": payload,
        "batch": batch,
        "driver": driver,
        "sequential": sequential,
        "depth": 1 if plain is not None else depth,
        "turns": drain.turns,
        "seconds": round(seconds, 3),
        "floor_workflows_per_s": round(workflows / seconds),
        "steps_per_s": round(workflows * steps / seconds),
        "submit_per_s": round(workflows / submit_seconds),
        "postgres_cpu_us_per_workflow": server_us,
        "python_cpu_us_per_workflow": round(python_seconds / workflows * 1e6, 2),
        "wal_bytes_per_workflow": round((wal_end - wal_start) / workflows),
        "wal_bytes_per_workflow_drain": round((wal_end - wal_submitted) / workflows),
        "verified": True,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the floor from the command line."""
    parser = argparse.ArgumentParser(description="The bare loop on one Postgres, with no framework.")
    parser.add_argument("--dsn", help="a server to use; without it an embedded one is started")
    parser.add_argument("--workflows", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--payload", type=int, default=100, help="bytes of each input and output")
    parser.add_argument("--batch", type=int, default=BATCH, help="workflows claimed in a turn")
    parser.add_argument("--depth", type=int, default=2, help="turns in flight")
    parser.add_argument("--driver", choices=("psycopg", "libpq"), default="psycopg", help="libpq: the tight floor")
    parser.add_argument("--sequential", action="store_true", help="a turn per step")
    parser.add_argument("--repeat", type=int, default=1, help="runs; the run with the median rate is reported")
    parser.add_argument("--json", action="store_true", help="JSON to stdout")
    options = parser.parse_args(arguments)
    with server(options.dsn) as dsn:
        runs = [
            run_floor(
                dsn,
                workflows=options.workflows,
                steps=options.steps,
                payload=options.payload,
                batch=options.batch,
                depth=options.depth,
                sequential=options.sequential,
                driver=options.driver,
            )
            for _ in range(options.repeat)
        ]
    result = sorted(runs, key=lambda run: int(run["floor_workflows_per_s"]))[len(runs) // 2]
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:32} {value}")
    return 0


@contextlib.contextmanager
def server(dsn: str | None, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield ``dsn``, or that of an embedded server which lives as long as the block."""
    if dsn is not None:
        yield dsn
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from shardflow.embedded import Servers

    with Servers(1, settings=settings) as servers:
        yield servers[0].dsn


if __name__ == "__main__":
    sys.exit(main())

"""The floor as one would write it: psycopg's pipeline mode and Python lists, one transaction in flight.

It sends the same statements as the tight floor of `floor.py`, which speaks to libpq itself, encodes arrays itself and
keeps two transactions in flight.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg
from _layouts_load import workflow_ids
from _layouts_sql import EPOCH, GENERATION, LEASE, NO_MARK, Layout

STEP_NAMES = ("reserve", "charge", "deliver")


class DriverFloor:
    """One connection of psycopg's, autocommit, with prepared statements.

    Arguments: `dsn`; `layout`; `schema`, where the layout's tables are.
    """

    def __init__(self, dsn: str, layout: Layout, schema: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.RawCursor)
        for setting in ("SET synchronous_commit = on", *layout.session):
            self.connection.execute(setting.encode())
        self._layout = layout
        self._schema = schema

    def _execute(self, text: str, values: Sequence[Any] = (), *, rows: bool = False) -> psycopg.Cursor[Any]:
        return self.connection.execute(text.replace("{s}", self._schema).encode(), values, prepare=True, binary=rows)

    def submit(self, count: int, inputs: list[bytes], queue: str, batch: int) -> float:
        """Submit `count` workflows, `batch` to a transaction; return the seconds it took."""
        made = workflow_ids(count)
        started = time.perf_counter()
        for first in range(0, count, batch):
            ids = made[first : first + batch]
            slots = [number * 2_654_435_761 >> 7 & 1023 for number in range(first, first + len(ids))]
            bodies = (inputs * (len(ids) // len(inputs) + 1))[: len(ids)]
            self._execute(self._layout.submit, (ids, slots, bodies, queue))
        return time.perf_counter() - started

    def drain(self, steps: int, outputs: list[bytes], queue: str, batch: int, mark: bool) -> tuple[int, int]:
        """Claim and complete until nothing is ready, all steps of a batch in the turn after its claim.

        Return workflows completed and turns taken.
        """
        keys: list[Any] = []
        low, done, turns, finished = NO_MARK, 0, 0, -1
        while True:
            with self.connection.pipeline():
                self._execute("BEGIN")
                self._execute("SELECT {s}.fence($1, $2, $3)", (LEASE, EPOCH, GENERATION))
                if keys:
                    self._complete(keys, steps, outputs)
                    self._execute(self._layout.release or "", (LEASE, [finished]))
                claim = (queue, batch, LEASE, turns, *low)
                claimed = self._execute(self._layout.claim, claim, rows=True)
                self._execute("COMMIT")
            done += len(keys)
            rows = claimed.fetchall()
            if not rows:
                return done, turns + 1
            keys, finished = [row[0] for row in rows], turns
            if mark:
                low = max((row[2], row[3]) for row in rows)
            turns += 1

    def _complete(self, keys: list[Any], steps: int, outputs: list[bytes]) -> None:
        if steps:
            repeated = [key for key in keys for _ in range(steps)]
            seqs = list(range(steps)) * len(keys)
            names = [STEP_NAMES[seq % len(STEP_NAMES)] for seq in seqs]
            bodies = (outputs * (len(repeated) // len(outputs) + 1))[: len(repeated)]
            # psycopg leaves the type of a text list to the server, which cannot tell it inside unnest().
            text = self._layout.steps.replace("unnest($3)", "unnest($3::text[])")
            self._execute(text, (repeated, seqs, names, bodies))
        bodies = (outputs * (len(keys) // len(outputs) + 1))[: len(keys)]
        self._execute(self._layout.finish, (keys, bodies))

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

"""What the timed scenarios run on: servers, a cluster, workers started by the command line, and looks at them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml
from support.work import ids_on

import shardflow
from shardflow.embedded import Servers
from shardflow.storage import cluster

TOP = Path(__file__).resolve().parents[2]

CLAIMED = (
    "SELECT w.id FROM {s}.claim c JOIN {s}.lease l USING (lease), unnest(c.wfs) u (wf) JOIN {s}.workflow w USING (wf)"
    " WHERE l.worker = %s AND NOT EXISTS (SELECT FROM {s}.outcome o WHERE o.wf = u.wf)"
)


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Polls until the condition answers something true, which is returned."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)
    return answer


@dataclass(frozen=True)
class Line:
    """A line of a journal: see `timing_app`; `pid` of the worker that wrote it."""

    kind: str
    id: str
    seq: str
    at: float
    pid: int


class Look:
    """Asks one shard by a connection of its own, which is made anew where it was lost."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._conn: psycopg.Connection[Any] | None = None

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]] | None:
        """The answer; None while the shard cannot be asked. `{s}` in the query is the schema."""
        try:
            if self._conn is None:
                self._conn = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
            answer = self._conn.execute(query.replace("{s}", "shardflow").encode(), parameters or None)
            return answer.fetchall() if answer.description else []
        except psycopg.OperationalError:
            self.close()
            return None

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None


class Rig:
    """A running cluster.

    Attributes: `config`; `path` of its file; `servers`, one per shard; `folder`, where logs and journals are.
    """

    def __init__(self, servers: Servers, path: Path, folder: Path) -> None:
        self.servers = servers
        self.path = path
        self.folder = folder
        self.config = shardflow.load_config(path)
        self.journals = folder / "journals"
        self.journals.mkdir()
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._looks = [Look(shard.dsn) for shard in self.config.shards]
        self._number = 0

    @property
    def shards(self) -> range:
        return range(len(self.config.shards))

    def start_worker(self) -> str:
        """Starts a worker process; answers its name."""
        self._number += 1
        name = f"w{self._number}"
        command = [sys.executable, "-m", "shardflow.cli", "worker", "run", "--config", str(self.path)]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.workers[name] = subprocess.Popen(
                [*command, "--name", name, "--grace", "10", "faults.timing_app:app"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=TOP,
                env={
                    **os.environ,
                    "PYTHONPATH": str(TOP / "tests"),
                    "SHARDFLOW_TIMING_JOURNAL": str(self.journals),
                },
            )
        return name

    def start_workers(self, count: int) -> list[str]:
        """Starts so many, and waits until every shard has what the configuration calls enough of them."""
        names = [self.start_worker() for _ in range(count)]
        enough = min(count, self.config.rebalance.min_group)
        until(lambda: all(len(self.holders(shard)) >= enough for shard in self.shards), "every shard is served")
        until(lambda: all(self.leases(name) for name in names), "every worker serves")
        return names

    def rows(self, shard: int, query: str, *parameters: object) -> list[tuple[Any, ...]] | None:
        """See `Look.rows`."""
        return self._looks[shard].rows(query, *parameters)

    def everywhere(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The answers of all shards that can be asked."""
        return [row for shard in self.shards for row in self.rows(shard, query, *parameters) or []]

    def holders(self, shard: int) -> set[str]:
        """The workers with a lease on the shard."""
        return {row[0] for row in self.rows(shard, "SELECT worker FROM {s}.lease") or []}

    def leases(self, name: str) -> list[int]:
        """The shards on which the worker has a lease."""
        return [shard for shard in self.shards if name in self.holders(shard)]

    def claimed(self, name: str) -> set[str]:
        """Ids of the workflows that the worker holds and that have not ended."""
        return {row[0] for row in self.everywhere(CLAIMED, name)}

    def left(self) -> int:
        """Workflows that have not ended; -1 while a shard does not answer."""
        query = "SELECT (SELECT count(*) FROM {s}.workflow) - (SELECT count(*) FROM {s}.outcome)"
        found = [self.rows(shard, query) for shard in self.shards]
        return -1 if None in found else sum(row[0][0] for row in found if row)

    def ends(self, shard: int) -> list[float]:
        """When the shard's workflows ended, in order, as seconds of the time of day."""
        query = "SELECT extract(epoch FROM finished_at)::float8 FROM {s}.outcome ORDER BY finished_at"
        return [row[0] for row in self.rows(shard, query) or []]

    def tag(self, shard: int) -> str:
        """What an id begins with that belongs to the shard."""
        return "{" + ids_on(self.config, shard, 1, "t")[0] + "}/"

    def journal(self) -> list[Line]:
        """What all workers wrote, in order of time."""
        found: list[Line] = []
        for path in self.journals.iterdir():
            for text in path.read_text().splitlines():
                kind, id, seq, at = text.split()
                found.append(Line(kind, id, seq, float(at), int(path.name)))
        return sorted(found, key=lambda line: line.at)

    def repeated(self) -> tuple[int, int]:
        """How many steps were started more than once, and how many workflows were begun more than once."""
        steps: Counter[tuple[str, str]] = Counter()
        begun: Counter[str] = Counter()
        for line in self.journal():
            if line.kind == "S":
                steps[line.id, line.seq] += 1
            elif line.kind == "B":
                begun[line.id] += 1
        return sum(n > 1 for n in steps.values()), sum(n > 1 for n in begun.values())

    def wrong(self) -> int:
        """Workflows that did not end as they should."""
        query = (
            "SELECT count(*) FROM {s}.outcome JOIN {s}.workflow w USING (wf)"
            " WHERE status <> 'succeeded'"
            " OR output <> convert_to((convert_from(w.input, 'utf8')::jsonb #> '{args,0}')::text, 'utf8')"
        )
        return sum(row[0] for row in self.everywhere(query))

    def close(self) -> None:
        for look in self._looks:
            look.close()
        for worker in self.workers.values():
            worker.kill()
            worker.wait()


@contextmanager
def rig(shards: int, **settings: Any) -> Iterator[Rig]:
    """A cluster of so many servers; `settings` go into its configuration."""
    with ExitStack() as stack:
        servers = stack.enter_context(Servers(shards, settings={"max_connections": "100"}))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timing-")))
        path = folder / "cluster.yaml"
        file = {"name": "timing", "shards": [{"name": s.name, "dsn": s.dsn} for s in servers], **settings}
        path.write_text(yaml.safe_dump(file))
        asyncio.run(cluster.init(shardflow.load_config(path)))
        made = Rig(servers, path, folder)
        stack.callback(made.close)
        yield made


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest of the values that so many of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def summary(values: Sequence[float]) -> dict[str, float | int | None]:
    """Count, median, p99 and the greatest, to be printed."""

    def short(value: float | None) -> float | None:
        return None if value is None else round(value, 3)

    return {
        "n": len(values),
        "p50": short(quantile(values, 0.5)),
        "p99": short(quantile(values, 0.99)),
        "max": short(max(values, default=None)),
    }


def windows(times: Sequence[float], first: float, last: float, width: float) -> list[int]:
    """How many of the times fall into each whole window of that width between the two."""
    counts = [0] * max(0, int((last - first) / width))
    for at in times:
        if 0 <= (place := int((at - first) // width)) < len(counts):
            counts[place] += 1
    return counts

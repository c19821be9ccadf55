"""Who takes part: what each can do, the settings it was found to be best with, what it keeps, how that is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class System:
    """One of those compared.

    `script`: the rival's module (None: ours). `best`: its knobs; `by_steps`: what differs at so many steps.
    `knobs`: other values to try, one or some at a time. `left`, `finished` and `steps_kept`: queries for what is not
    finished yet, and for what is found afterwards. `guess`: workflows per second, for a first run.
    """

    name: str
    script: str | None
    steps: tuple[int, ...]
    keeps: str
    guess: Mapping[int, float]
    best: Settings = field(default_factory=dict)
    by_steps: Mapping[int, Settings] = field(default_factory=dict)
    knobs: tuple[Settings, ...] = ()
    left: str = ""
    finished: str = ""
    steps_kept: str = ""
    remark: str = ""
    shards: bool = False

    def settings(self, steps: int, shards: int = 1) -> Settings:
        """The best ones at so many steps. With several servers each has its part of the processes."""
        best = {**self.best, **self.by_steps.get(steps, {})}
        if "processes" in best:
            best["processes"] = max(1, best["processes"] // shards)
        return best


DBOS = System(
    name="dbos",
    script="with_dbos",
    steps=(0, 1, 3),
    keeps="every workflow with input and result, every step with its result",
    guess={0: 600, 1: 300, 3: 100},
    best={
        "processes": 3,
        "style": "sync",
        "direct": 0,
        "loop": "asyncio",
        "worker_concurrency": 100,
        "polling_interval": 0.02,
        "pool": 3,
        "threads": 4,
        "pre_ping": False,
        "listen_notify": True,
        "switch_interval": None,
    },
    by_steps={0: {"processes": 2}},
    knobs=(
        {"processes": 1},
        {"processes": 1, "threads": 16, "pool": 20, "polling_interval": 0.005},
        {"processes": 2},
        {"processes": 4},
        {"threads": 2, "pool": 2},
        {"threads": 8},
        {"threads": 16, "pool": 20},
        {"polling_interval": 0.2},
        {"worker_concurrency": 300},
        {"style": "async"},
        {"direct": 2},
        {"pre_ping": True},
        {"listen_notify": False},
        {"switch_interval": 0.05},
    ),
    left="SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING', 'DELAYED')",
    finished="SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'",
    steps_kept="SELECT count(*) FROM dbos.operation_outputs",
    remark="bound by Python: each step takes two transactions and compiles its INSERT anew, under the interpreter's"
    " lock. So several processes, each with few threads and a small pool. Tried: one to four processes, 2 to 16"
    " threads, pools of 2 to 20, polls of 5 to 200 ms, 100 and 300 at once, async, direct calls, no LISTEN, pings,"
    " the lock's switch interval",
    shards=True,
)
ABSURD = System(
    name="absurd",
    script="with_absurd",
    steps=(0, 1, 3),
    keeps="every task and run with input and result, every step with its result",
    guess={0: 1_700, 1: 950, 3: 430},
    best={"processes": 1, "style": "async", "workers": 16, "concurrency": 1, "batch": 20, "poll_interval": 0.05},
    knobs=(
        {"processes": 2},
        {"processes": 2, "workers": 8},
        {"workers": 8},
        {"workers": 32},
        {"workers": 1, "concurrency": 50},
        {"style": "sync", "workers": 8},
        {"processes": 2, "style": "sync", "workers": 4},
        {"batch": 1},
        {"batch": 50},
        {"batch": 100},
    ),
    by_steps={0: {"processes": 2, "style": "sync", "workers": 4}},
    left="SELECT count(*) FROM absurd.t_bench WHERE state <> 'completed'",
    finished="SELECT count(*) FROM absurd.t_bench WHERE state = 'completed' AND completed_payload IS NOT NULL",
    steps_kept="SELECT count(*) FROM absurd.c_bench",
    remark="bound by Postgres, in its stored procedures: three quarters of the CPU. A second process gains with steps"
    " nothing. Tried: one and two processes, 1 to 32 workers, sync and async, claims of 1 to 100",
)
PGQUEUER = System(
    name="pgqueuer",
    script="with_pgqueuer",
    steps=(0,),
    keeps="a line of its log for each change of a job's status; neither input nor result",
    guess={0: 12_000},
    best={
        "processes": 2,
        "driver": "asyncpg",
        "loop": "uvloop",
        "batch": 2_000,
        "managers": 1,
        "max_concurrent": None,
    },
    knobs=(
        {"processes": 1},
        {"processes": 1, "managers": 2},
        {"processes": 3},
        {"driver": "psycopg"},
        {"loop": "asyncio"},
        {"batch": 100},
        {"batch": 500},
        {"batch": 1_000},
        {"managers": 2},
        {"max_concurrent": 2_000},
    ),
    left="SELECT count(*) FROM pgqueuer",
    finished="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
    remark="a job queue: no steps. Tried: one to three processes, one and two managers in each, batches of 100"
    " to 2,000",
)
PROCRASTINATE = System(
    name="procrastinate",
    script="with_procrastinate",
    steps=(0,),
    keeps="every job with its input and each of its events; no result",
    guess={0: 600},
    best={
        "processes": 1,
        "style": "async",
        "loop": "asyncio",
        "workers": 8,
        "concurrency": 20,
        "pool": 10,
        "autocommit": True,
        "own_pool": True,
    },
    knobs=(
        {"processes": 2},
        {"processes": 2, "workers": 4, "pool": 5},
        {"style": "sync"},
        {"loop": "uvloop"},
        {"workers": 1},
        {"workers": 4},
        {"workers": 16, "pool": 20},
        {"concurrency": 2},
        {"concurrency": 5},
        {"pool": 20},
        {"autocommit": False},
        {"own_pool": False},
    ),
    left="SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'",
    finished="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
    remark="a job queue: no steps. Tried: one and two processes, 1 to 16 workers, 2 to 20 at once",
)
AWA = System(
    name="awa",
    script="with_awa",
    steps=(0,),
    keeps="nothing for long: its segments are truncated within seconds",
    guess={0: 6_000},
    best={
        "processes": 1,
        "loop": "uvloop",
        "connections": 20,
        "max_workers": 1_024,
        "claim_batch": 128,
        "claimers": 1,
        "partitions": 4,
        "stripes": 1,
        "poll_ms": 200,
        "deadline_ms": 0,
        "completion_batch": None,
        "completion_shards": 1,
    },
    knobs=(
        {"processes": 2},
        {"loop": "asyncio"},
        {"max_workers": 256},
        {"max_workers": 4_096},
        {"claim_batch": 64},
        {"claim_batch": 512},
        {"claimers": 2},
        {"partitions": 1},
        {"partitions": 8},
        {"stripes": 2},
        {"poll_ms": 20},
        {"completion_batch": 2_048},
        {"completion_shards": 4},
    ),
    finished="SELECT coalesce((SELECT sum(completed_count) FROM awa.receipt_completion_batches), 0)"
    " + coalesce((SELECT sum(pruned_completed_count) FROM awa.queue_terminal_rollups), 0)"
    " + (SELECT count(*) FROM awa.done_entries WHERE state = 'completed')",
    remark="a job queue with an engine in Rust: no steps. Tried: one and two processes, claims of 64 to 512, more"
    " claimers, partitions, stripes and completion shards",
)
FLOOR = System(
    name="floor",
    script=None,
    steps=(0, 1, 3),
    keeps="what shardflow keeps, of these workflows",
    guess={0: 50_000, 1: 25_000, 3: 15_000},
    remark="a bare loop over shardflow's tables, no framework (benchmarks/floor.py)",
)
SHARDFLOW = System(
    name="shardflow",
    script=None,
    steps=(0, 1, 3),
    keeps="every workflow with input and result, every step with its result",
    guess={0: 40_000, 1: 25_000, 3: 14_000},
    shards=True,
)
SYSTEMS = {each.name: each for each in (DBOS, ABSURD, PGQUEUER, PROCRASTINATE, AWA, FLOOR, SHARDFLOW)}

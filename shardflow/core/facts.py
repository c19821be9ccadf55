"""What `shardflow doctor` asks a shard: plain records without a judgement.

A fact that could not be read is None, and `Facts.unreadable` says why; one that does not apply, such as the tables of
a schema that was never initialised, is None or empty without a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .slotmap import ShardView


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds: the server's clock minus this machine's, known to within `error`; the quickest round trip."""

    offset: float
    error: float
    round_trip: float


@dataclass(frozen=True, slots=True)
class Server:
    """The server and our session on it.

    `version` as 180004; `started` and `port` tell servers apart; `role` and `database` are the session's; `backends`,
    the different processes that answered on one connection; `announced`, the process the connection was told of.
    """

    version: int
    standby: bool
    role: str
    database: str
    started: float
    port: int
    backends: frozenset[int]
    announced: int


@dataclass(frozen=True, slots=True)
class Setting:
    """A Postgres setting as it is in our session, and where that comes from (`pg_settings.source`)."""

    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Connections:
    """How many sessions there are, and the limits (-1: none) of the role and of the database; commits that wait for a
    synchronous standby, and the longest in seconds."""

    used: int
    by_role: int
    role_limit: int
    by_database: int
    database_limit: int
    held_up: int
    held_up_seconds: float


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the shard, by the server's statistics. `vacuumed`: seconds ago, None for never."""

    name: str
    live: int
    dead: int
    vacuumed: float | None
    size: int
    indexes: int
    autovacuum: bool
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody's session with a transaction; `xids`: how many transactions the rows that it keeps are old."""

    pid: int
    application: str
    role: str
    state: str | None
    seconds: float | None
    xids: int | None
    standby: bool


@dataclass(frozen=True, slots=True)
class ReplicationSlot:
    """A replication slot, the age of the rows it keeps in transactions, and the bytes of WAL that it keeps."""

    name: str
    active: bool
    xids: int | None
    wal: int | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A transaction that was prepared for a two-phase commit and is still there."""

    gid: str
    owner: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """A session that waits for a lock, and those that hold it, in words."""

    pid: int
    application: str
    seconds: float
    by: tuple[int, ...]
    holders: str


@dataclass(frozen=True, slots=True)
class Ages:
    """How many transactions, and multixacts, the database's oldest rows are old: two thousand million is the end."""

    xids: int
    multixacts: int


@dataclass(frozen=True, slots=True)
class Keys:
    """The shard's key sequence: the next key, the highest of its range that is in use, and the range."""

    next: int
    used: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Migrated:
    """A migration that is not as this code knows it: "pending", "changed" or "unknown"."""

    version: int
    name: str
    state: str


@dataclass(frozen=True, slots=True)
class LeaseFact:
    """A lease; seconds until it ends. `alive`: whether its session is there, None where that cannot be told.

    `writer` is the backend of its commit loop and `writer_idle` how long that has been idle in a transaction.
    """

    lease: int
    worker: str
    left: float
    alive: bool | None
    claimed: int
    queues: tuple[str, ...]
    claiming: bool
    writer: int | None
    writer_idle: float | None

    @property
    def live(self) -> bool:
        """Its time is not over and its session is not closed."""
        return self.left > 0 and self.alive is not False


@dataclass(frozen=True, slots=True)
class Orphan:
    """Receipts of a lease that does not exist."""

    lease: int
    receipts: int
    workflows: int


@dataclass(frozen=True, slots=True)
class OldReceipt:
    """A receipt that has not changed for long, and workflows of it that have not ended."""

    lease: int
    worker: str
    seconds: float
    workflows: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue's ready workflows, counted up to a bound, and how long ago the oldest fresh one was submitted."""

    name: str
    ready: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class Overdue:
    """Suspended workflows whose time came a while ago, and how long ago for the first of them."""

    workflows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A workflow that is not where it should be: `claims` that name it, and `rows` of it in ready and wait."""

    id: str
    ended: bool
    claims: int
    rows: int


@dataclass(frozen=True, slots=True)
class Places:
    """The search for misplaced workflows: how many were looked at (None: all), and those that were found."""

    looked_at: int | None
    misplaced: tuple[Misplaced, ...]


@dataclass(frozen=True, slots=True)
class Outbox:
    """The outbox: its rows, counted up to a bound, and the age of the oldest in seconds."""

    rows: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that one shard answered."""

    shard: str
    schema: str
    pooler: bool
    clock: Clock | None = None
    server: Server | None = None
    settings: Mapping[str, Setting] | None = None
    connections: Connections | None = None
    sessions: tuple[Session, ...] | None = None
    blocked: tuple[Blocked, ...] | None = None
    replication: tuple[ReplicationSlot, ...] | None = None
    prepared: tuple[Prepared, ...] | None = None
    ages: Ages | None = None
    migrations: tuple[Migrated, ...] | None = None
    view: ShardView | None = None
    frozen: tuple[int, ...] | None = None
    tables: tuple[Table, ...] | None = None
    keys: Keys | None = None
    leases: tuple[LeaseFact, ...] | None = None
    orphans: tuple[Orphan, ...] | None = None
    receipts: tuple[OldReceipt, ...] | None = None
    queues: tuple[Queue, ...] | None = None
    overdue: Overdue | None = None
    places: Places | None = None
    outbox: Outbox | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Away:
    """A shard that did not answer: why; where it is, without secrets; whether it is only busy, or refuses us."""

    shard: str
    why: str
    dsn: str
    busy: bool = False
    refuses: bool = False

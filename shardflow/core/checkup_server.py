"""What is to be said of one shard's server and of our session on it: is it safe, and will it stay quick."""

from __future__ import annotations

from ..model import ClusterConfig
from .facts import Facts, Session
from .finding import Notes, change, counted, lasting, literal, quoted

#: Postgres versions (major) that this code was tried on.
OLDEST, NEWEST = 15, 18
#: Seconds: a round trip that makes every turn slow; a transaction that keeps dead rows; a commit without its standby.
SLOW, LONG, HELD_UP = 0.1, 300.0, 5.0
#: Transactions: rows so old keep a queue slow where the time cannot be seen; near the wraparound; nearer.
OLD_XIDS, AGING, AGED = 1_000_000, 500_000_000, 1_500_000_000
#: Milliseconds: statements, or sessions that wait, that the server ends sooner are ended in good order too.
SHORT = 10_000
#: Bytes of WAL that a slot without a reader may keep.
MUCH_WAL = 10 << 30


def latency(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.clock is None:
        return
    trip = facts.clock.round_trip
    if trip > SLOW:
        notes.warn(
            f"a round trip takes {lasting(trip)}, and every checkpoint waits for one",
            "run the workers nearer to the server; or raise their --concurrency, so that more share a round trip",
        )
    notes.well(f"answers in {lasting(trip)}")


def version(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.server is None:
        return
    major, minor = divmod(facts.server.version, 10_000)
    if major < OLDEST:
        notes.error(f"Postgres {major}.{minor} is older than {OLDEST}", f"upgrade the server to Postgres {NEWEST}")
    if major > NEWEST:
        notes.warn(
            f"shardflow was not tried on Postgres {major}.{minor}, only up to {NEWEST}",
            "take a newer shardflow where there is one",
            "pip install --upgrade shardflow",
        )
    notes.well(f"Postgres {major}.{minor}")


def writable(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.server is None or facts.settings is None:
        return
    if facts.server.standby:
        notes.error(
            "the server is a standby: nothing can be written",
            "let the dsn name all hosts with target_session_attrs=read-write; or, if the primary is gone for good,"
            " promote this one, as a superuser",
            "SELECT pg_promote();",
        )
    else:
        only = facts.settings.get("default_transaction_read_only")
        if only and only.value == "on":
            notes.error(
                "transactions only read (default_transaction_read_only)",
                *change(facts, "default_transaction_read_only", only, "off"),
            )
    notes.well("a primary that takes writes")


def durability(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    settings = facts.settings
    if settings is None:
        return
    for name, value, loss in (
        ("fsync", "off", "a crash of the machine loses acknowledged work and may ruin the whole database"),
        ("synchronous_commit", "off", "a crash loses workflows and checkpoints that were acknowledged"),
    ):
        if name in settings and settings[name].value == value:
            notes.error(f"{name} is {value}: {loss}", *change(facts, name, settings[name], '"on"'))
    pages = settings.get("full_page_writes")
    if pages and pages.value == "off":
        notes.warn(
            "full_page_writes is off: a crash of the machine may ruin tables, unless the file system tears no pages",
            *change(facts, "full_page_writes", pages, '"on"'),
        )
    commit, standbys = settings.get("synchronous_commit"), settings.get("synchronous_standby_names")
    if commit and commit.value == "local" and standbys and standbys.value:
        notes.warn(
            "synchronous_commit is local: commits do not wait for the synchronous standbys, so a failover loses work",
            *change(facts, "synchronous_commit", commit, '"on"'),
        )
    notes.well(f"fsync is on, synchronous_commit is {commit.value if commit else 'unknown'}")


def vacuuming(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    settings = facts.settings
    if settings is None:
        return
    for name in ("autovacuum", "track_counts"):
        if name in settings and settings[name].value == "off":
            notes.error(
                f"{name} is off: dead rows are not removed, and claims become slower without end",
                *change(facts, name, settings[name], '"on"'),
            )
    for table in facts.tables or ():
        if not table.autovacuum:
            name = f"{facts.schema}.{table.name}"
            notes.warn(
                f"autovacuum is off for {name}",
                "switch it on, as the owner",
                f"ALTER TABLE {name} RESET (autovacuum_enabled);",
            )
    notes.well("autovacuum is on")


def session(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    """Settings of the session; without a pooler most are our own, whatever the role has."""
    settings = facts.settings
    if settings is None:
        return
    level = settings.get("default_transaction_isolation")
    if level and level.value != "read committed":
        notes.error(
            f"transactions are {level.value}, and the guards need read committed",
            *change(facts, "default_transaction_isolation", level, "'read committed'"),
        )
    replication = settings.get("session_replication_role")
    if replication and replication.value == "replica":
        notes.error(
            "session_replication_role is replica: foreign keys are not checked, so receipts may outlive their lease",
            *change(facts, "session_replication_role", replication, "origin"),
        )
    for name, cost in (
        ("statement_timeout", "a migration or a large batch that takes longer never ends well"),
        ("transaction_timeout", "a migration or a large batch that takes longer never ends well"),
        ("lock_timeout", "whoever waits longer for a lock fails"),
        ("idle_session_timeout", "workers that wait for work lose their connections"),
    ):
        found = settings.get(name)
        if found and 0 < int(found.value) < SHORT:
            notes.warn(
                f"{name} is {lasting(int(found.value) / 1000)}: {cost}",
                *change(facts, name, found, "0"),
            )
    idle = settings.get("idle_in_transaction_session_timeout")
    if idle and facts.server and (idle.value == "0" or int(idle.value) > 1000 * max(60.0, 6 * config.lease.ttl)):
        length = "0" if idle.value == "0" else lasting(int(idle.value) / 1000)
        notes.warn(
            f"idle_in_transaction_session_timeout is {length}: a worker that hangs in a transaction keeps its locks",
            "take it out of the options of the shard's dsn, or of PGOPTIONS"
            if idle.source == "client"
            else "set it for the role, then let the pooler reconnect",
            ""
            if idle.source == "client"
            else f"ALTER ROLE {quoted(facts.server.role)} SET idle_in_transaction_session_timeout = '10s';",
        )
    notes.well("nothing in the session's settings is in the way")


def pooler(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    """A pooler makes up the process id that it tells at the connect, and lets several processes answer."""
    if facts.server is None:
        return
    several = len(facts.server.backends) > 1
    direct = not several and facts.server.announced in facts.server.backends
    if several and not facts.pooler:
        notes.error(
            "a transaction pooler stands in between: locks and LISTEN of a session do not work as workers need them",
            f"set pooler: true for shard {facts.shard} in the configuration, and restart workers and clients",
        )
    elif not direct and not facts.pooler:
        notes.warn(
            "a pooler stands in between",
            f"set pooler: true for shard {facts.shard} in the configuration, unless it pools whole sessions",
        )
    elif direct and facts.pooler:
        notes.warn(
            "the configuration says pooler: true, and the server itself answers: sleeping workers ask it ten times a"
            " second instead of listening",
            f"set pooler: false for shard {facts.shard} in the configuration, if its dsn leads past every pooler",
        )
    notes.well("a transaction pooler, as configured" if facts.pooler else "a direct connection")


def commits(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    found = facts.connections
    if found is None:
        return
    if found.held_up and found.held_up_seconds > HELD_UP:
        notes.error(
            f"{counted(found.held_up, 'commit')} waiting for a synchronous standby, one for"
            f" {lasting(found.held_up_seconds)}",
            "bring the standby back; or do without its copy, as a superuser",
            "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf();",
        )
    notes.well("no commit waits for a standby")


def locks(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.blocked is None:
        return
    for blocked in facts.blocked:
        ends = " ".join(f"SELECT pg_terminate_backend({pid});" for pid in blocked.by if pid > 0)
        notes.warn(
            f"process {blocked.pid} ({blocked.application or 'no name'}) has waited {lasting(blocked.seconds)} for a"
            f" lock of {blocked.holders or 'a prepared transaction'}",
            "end what holds it" if ends else "end the prepared transaction that holds it: see horizon",
            ends,
        )
    notes.well("nobody waits for a lock")


def holders(facts: Facts) -> list[Session]:
    """The sessions that have kept dead rows, or locks, for long."""
    return [
        each
        for each in facts.sessions or ()
        if (each.seconds is not None and each.seconds > LONG and (each.xids is not None or _idle(each)))
        or (each.seconds is None and (each.xids or 0) > OLD_XIDS)
    ]


def _idle(each: Session) -> bool:
    return (each.state or "").startswith("idle in transaction")


def horizon(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.sessions is None and facts.replication is None and facts.prepared is None:
        return
    for each in holders(facts):
        age = "" if each.xids is None else f"; it keeps dead rows of the last {counted(each.xids, 'transaction')}"
        since = "for long" if each.seconds is None else f"for {lasting(each.seconds)}"
        who = f"process {each.pid} ({each.application or 'no name'}, role {each.role or 'unknown'})"
        if each.standby:
            notes.warn(
                f"a standby with hot_standby_feedback, {who}, keeps dead rows{age}",
                "end the long query on that standby, or, there, as a superuser",
                "ALTER SYSTEM SET hot_standby_feedback = off; SELECT pg_reload_conf();",
            )
        else:
            notes.warn(
                f"{who} has a transaction open {since}{', ' + each.state if each.state else ''}{age}",
                "end it, or whatever runs it"
                + (
                    ""
                    if facts.server and each.role == facts.server.role
                    else f", as {quoted(each.role)} or a superuser"
                ),
                f"SELECT pg_terminate_backend({each.pid});",
            )
    for slot in facts.replication or ():
        old, much = (slot.xids or 0) > OLD_XIDS, (slot.wal or 0) > MUCH_WAL
        if old or (much and not slot.active):
            kept = [f"dead rows of the last {counted(slot.xids or 0, 'transaction')}"] if old else []
            kept += [f"{(slot.wal or 0) / (1 << 30):.1f} GiB of WAL"] if much else []
            notes.warn(
                f"the {'' if slot.active else 'inactive '}replication slot {slot.name} keeps {' and '.join(kept)}",
                "end the long query on its standby, or let its reader catch up"
                if slot.active
                else "let its reader catch up; if that is gone for good, drop the slot",
                "" if slot.active else f"SELECT pg_drop_replication_slot({literal(slot.name)});",
            )
    for prepared in facts.prepared or ():
        if prepared.seconds > LONG:
            notes.warn(
                f"the prepared transaction {prepared.gid} has been open for {lasting(prepared.seconds)}",
                f"end it as {quoted(prepared.owner)}, by ROLLBACK or COMMIT, whichever its coordinator decided",
                f"ROLLBACK PREPARED {literal(prepared.gid)};",
            )
    notes.well("no old transaction keeps dead rows")


def wraparound(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.ages is None:
        return
    age = max(facts.ages.xids, facts.ages.multixacts)
    if age > AGING:
        (notes.error if age > AGED else notes.warn)(
            f"the oldest rows are {age:,} transactions old; at 2,000,000,000 the server stops taking writes",
            "first end what horizon names, then vacuum this database, as a superuser",
            "VACUUM (FREEZE);",
        )
    notes.well(f"the oldest rows are {age:,} transactions old")


CHECKS = (
    latency,
    version,
    writable,
    durability,
    vacuuming,
    session,
    pooler,
    commits,
    locks,
    horizon,
    wraparound,
)

"""Decides what `shardflow doctor` tells: from the facts of all shards to findings, each with its remedy.

What concerns one shard is in `checkup_server` and `checkup_work`; here is what only all of them together show.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from statistics import median_low

from ..errors import ClusterError
from ..model import ClusterConfig
from . import checkup_server, checkup_work
from .facts import Away, Facts
from .finding import Finding, Notes, Severity, counted, lasting, literal, quoted
from .slotmap import ShardView, merge_views, slot_ranges

#: Seconds that clocks may differ.
SKEW = 1.0

#: What servers say at a connect, where libpq gives no SQLSTATE.
_FULL = ("too many clients", "too many connections", "remaining connection slots")
_REFUSED = ("authentication failed", "pg_hba.conf", "no password supplied", " does not exist", "permission denied")

_ORDER = list(Severity)


def examine(config: ClusterConfig, facts: Sequence[Facts], away: Sequence[Away] = ()) -> list[Finding]:
    """Everything found, the worst first; where a check found nothing wrong, one finding says so.

    `facts` are those of the shards that answered, `away` the others.
    """
    found: list[Finding] = []
    for gone in away:
        found += _reach(gone)
    for one in facts:
        for fact, why in one.unreadable.items():
            found += _unreadable(one, fact, why)
        for check in (*checkup_server.CHECKS, *checkup_work.CHECKS):
            notes = Notes(check.__name__, one.shard)
            check(notes, one, config)
            found += notes.findings
    found += _clocks(config, facts)
    found += _versions(facts)
    found += _connections(config, facts)
    found += _slots(config, facts, away)
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def _reach(gone: Away) -> list[Finding]:
    notes = Notes("reach", gone.shard)
    if gone.busy or any(words in gone.why for words in _FULL):
        notes.error(
            gone.why,
            "see who has its connections or holds its locks, as a superuser",
            "SELECT datname, usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3, 4"
            " ORDER BY 5 DESC;",
        )
    elif gone.refuses or any(words in gone.why for words in _REFUSED):
        notes.error(
            gone.why, "correct the user, password or database in the shard's dsn, or the server's pg_hba.conf"
        )
    else:
        notes.error(
            gone.why,
            "see whether the server runs and can be reached; meanwhile the other shards go on",
            f"pg_isready -d {shlex.quote(gone.dsn)}",
        )
    return notes.findings


def _unreadable(facts: Facts, fact: str, why: str) -> list[Finding]:
    notes = Notes(fact, facts.shard)
    role, schema = quoted(facts.server.role) if facts.server else "ROLE", facts.schema
    seen = f"could not be looked at: {why}"
    if "permission denied" in why:
        notes.warn(
            seen,
            "give the role its rights, as the schema's owner",
            f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"
            f" {schema} TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role};",
        )
    elif "does not exist" in why:
        notes.warn(seen, "apply the migrations that are missing", "shardflow migrate up")
    else:
        notes.warn(seen, "see the other findings, and ask again when the shard is less busy", "shardflow doctor")
    return notes.findings


def _clocks(config: ClusterConfig, facts: Sequence[Facts]) -> list[Finding]:
    """Each clock against the middle one of all; with one shard against this machine's."""
    clocks = {one.shard: one.clock for one in facts if one.clock is not None}
    offsets = [clock.offset for clock in clocks.values()]
    middle = median_low([0.0, *offsets]) if len(clocks) > 1 else 0.0
    error = min((clock.error for clock in clocks.values()), default=0.0)
    found: list[Finding] = []
    for shard, clock in clocks.items():
        notes = Notes("clock", shard)
        against = "this machine's" if len(clocks) == 1 else "the others"
        _skew(notes, config, "the server's clock", against, clock.offset - middle, clock.error)
        found += notes.findings
    if len(clocks) > 1:
        notes = Notes("clock", None)
        _skew(notes, config, "this machine's clock", "the shards'", -middle, error)
        found += notes.findings
    return found


def _skew(notes: Notes, config: ClusterConfig, whose: str, against: str, seconds: float, error: float) -> None:
    way = f"{whose} is {lasting(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'} {against}"
    way += f" (known to {lasting(error)})"
    sure = abs(seconds) - error
    if sure > max(SKEW, config.lease.ttl / 2):
        tell = notes.error
    elif sure > SKEW:
        tell = notes.warn
    else:
        notes.well(way)
        return
    tell(
        f"{way}: nothing is unsafe by that, but times are told wrong, and what waits for a time wakes early or late",
        "let that machine follow a time server, and look again",
        "timedatectl set-ntp true && timedatectl timesync-status",
    )


def _versions(facts: Sequence[Facts]) -> list[Finding]:
    majors: dict[int, list[str]] = defaultdict(list)
    for one in facts:
        if one.server is not None:
            majors[one.server.version // 10_000].append(one.shard)
    notes = Notes("versions", None)
    if len(majors) > 1:
        each = "; ".join(f"{major} on {', '.join(majors[major])}" for major in sorted(majors))
        notes.well(f"several versions of Postgres, which is well while you upgrade: {each}")
    return notes.findings


def _connections(config: ClusterConfig, facts: Sequence[Facts]) -> list[Finding]:
    """Several shards may share a server: each of them needs connections of its own."""
    servers: dict[tuple[float, int], list[Facts]] = defaultdict(list)
    for one in facts:
        if one.server is not None and one.settings and one.connections is not None and not one.pooler:
            servers[one.server.started, one.server.port].append(one)
    found: list[Finding] = []
    for sharing in servers.values():
        one = sharing[0]
        notes = Notes("connections", one.shard)
        assert one.settings is not None
        assert one.connections is not None
        assert one.server is not None
        values = one.settings
        most = int(values["max_connections"].value) if "max_connections" in values else 0
        kept = sum(
            int(values[name].value)
            for name in ("superuser_reserved_connections", "reserved_connections")
            if name in values
        )
        wanted = sum(_wanted(config, each) for each in sharing)
        role, database = quoted(one.server.role), quoted(one.server.database)
        have = one.connections
        limits = [
            (
                most - kept,
                have.used,
                "server",
                "raise max_connections, as a superuser, and restart the server; or lower pool.max_size",
                f"ALTER SYSTEM SET max_connections = {most + wanted};",
            ),
            (
                have.role_limit,
                have.by_role,
                "role",
                "lift the role's limit, as a superuser",
                f"ALTER ROLE {role} CONNECTION LIMIT -1;",
            ),
            (
                have.database_limit,
                have.by_database,
                "database",
                "lift the database's limit, as its owner",
                f"ALTER DATABASE {database} CONNECTION LIMIT -1;",
            ),
        ]
        names = ", ".join(each.shard for each in sharing)
        for limit, used, whose, remedy, command in limits:
            if limit >= 0 and limit - used < wanted:
                notes.warn(
                    f"{used} of the {whose}'s {limit} connections are used, and another worker and a client may take"
                    f" {wanted} more for {names}: 2 for a lease, {config.pool.max_size} for a pool",
                    remedy,
                    command,
                )
        notes.well(f"{have.used} of the server's {most - kept} connections are used")
        found += notes.findings
    return found


def _wanted(config: ClusterConfig, facts: Facts) -> int:
    """Connections that a shard may be asked for next: missing workers, or one more, and one more client."""
    live = sum(lease.live for lease in facts.leases or ())
    return 2 * max(1, config.rebalance.min_group - live) + config.pool.max_size


def _slots(config: ClusterConfig, facts: Sequence[Facts], away: Sequence[Away]) -> list[Finding]:
    """Every slot is to be held by exactly one shard (invariant I3)."""
    views = {one.shard: one.view for one in facts if one.view is not None and one.view.cluster == config.name}
    if not views:
        return []
    notes = Notes("slots", None)
    schemas = {one.shard: one.schema for one in facts}
    held: dict[int, list[str]] = {slot: [] for slot in range(config.slots)}
    for shard, view in views.items():
        for slot, state, _ in view.rows:
            if state in ("active", "frozen"):
                held.setdefault(slot, []).append(shard)
    disputed: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for slot, shards in held.items():
        if len(shards) > 1:
            disputed[tuple(shards)].append(slot)
    for holding, slots in disputed.items():
        schema = schemas[holding[1]]
        notes.error(
            f"{slot_ranges(slots)} held by {' and '.join(holding)}: the same id can run on each",
            f"stop all workers and clients, see on each which one has their workflows ({_where(schema)}), and let the"
            f" other give them up; if that is {holding[1]}, there",
            _rewrite(schema, slots, "hint", holding[0]),
        )
    unheld = [slot for slot, shards in held.items() if not shards]
    if unheld and not disputed:
        _unheld(notes, unheld, views, schemas, away)
    known = {shard.name for shard in config.shards}
    strangers = {name for view in views.values() for _, _, name in view.rows} - known
    if strangers:
        notes.error(
            f"the slot map names shards that the configuration lacks: {', '.join(sorted(strangers))}",
            "put them back into the configuration",
        )
    notes.well(f"all {counted(config.slots, 'slot')} held by exactly one shard")
    return notes.findings


def _unheld(
    notes: Notes, unheld: Sequence[int], views: dict[str, ShardView], schemas: dict[str, str], away: Sequence[Away]
) -> None:
    """Slots that no shard holds which answers; those of a shard that does not answer are told with it."""
    lost, first = list(unheld), next(iter(views))
    if away:
        try:
            owners = merge_views(list(views.values())).owners
        except ClusterError as error:
            notes.error(str(error), "bring the shards back that do not answer, and run `shardflow doctor` again")
            return
        lost = [slot for slot in unheld if slot < len(owners) and owners[slot] in views]
        if not lost:
            notes.well(f"{slot_ranges(unheld)} lie on shards that do not answer; all others have one shard each")
            return
    schema = schemas[first]
    notes.error(
        f"{slot_ranges(lost)} held by no shard: ids that belong there cannot be submitted",
        f"see which shard has their workflows ({_where(schema)}), and give them to it; if that is {first}, there",
        _rewrite(schema, lost, "active", first),
    )


def _where(schema: str) -> str:
    return f"SELECT slot, count(*) FROM {schema}.workflow GROUP BY slot"


def _rewrite(schema: str, slots: Sequence[int], state: str, owner: str) -> str:
    """SQL that writes these slots on one shard as a change of the slots must: alone, and with a new generation."""
    ranges: list[list[int]] = []
    for slot in sorted(slots):
        if ranges and slot == ranges[-1][1] + 1:
            ranges[-1][1] = slot
        else:
            ranges.append([slot, slot])
    which = " OR ".join(f"n BETWEEN {low} AND {high}" for low, high in ranges)
    return (
        f"BEGIN; SELECT pg_advisory_xact_lock(hashtextextended({literal(schema + ':map')}, 0)); INSERT INTO"
        f" {schema}.slot (slot, state, shard) SELECT n, '{state}', {literal(owner)} FROM"
        f" generate_series({ranges[0][0]}, {ranges[-1][1]}) AS n WHERE {which} ON CONFLICT (slot) DO UPDATE SET"
        f" state = excluded.state, shard = excluded.shard; UPDATE {schema}.shard SET generation = generation + 1;"
        " COMMIT;"
    )

"""What is to be said of one shard's tables: its schema and keys, its workers, and work that does not get on."""

from __future__ import annotations

import shlex

from ..model import ClusterConfig
from .checkup_server import holders
from .facts import Facts, Misplaced, Table
from .finding import Notes, counted, lasting, literal, quoted, some
from .lanes import SUSPECT, queue_of, said, version_of
from .slotmap import slot_ranges

#: Seconds: peers end a lease well within it; no fresh workflow should be ready for longer; no row be in the outbox.
TAKEN, WAITING, RELAYED = 5.0, 300.0, 60.0
#: Seconds since the last vacuum from which one is missing, and dead rows that are then too many.
UNVACUUMED, DEAD = 600.0, 100_000
#: Bytes from which a table may be bloated, and bytes for a row from which it is.
LARGE, WIDE = 256 << 20, 2048
#: Tables whose rows come and go.
CHURNING = ("ready", "claim", "lease", "wait", "worker", "election", "outbox")
#: Misplaced workflows that are told at most.
MISPLACED = 100
START = "shardflow worker run MODULE:ATTR"


def migrations(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.migrations is None:
        return
    by_state: dict[str, list[str]] = {}
    for each in facts.migrations:
        by_state.setdefault(each.state, []).append(f"{each.version:04d}_{each.name}")
    if facts.view is None and "pending" in by_state:
        return  # `identity` says that there is nothing yet
    if names := by_state.get("pending"):
        notes.error(
            f"{counted(len(names), 'migration')} not applied: {', '.join(names)}",
            "apply them",
            "shardflow migrate up",
        )
    if names := by_state.get("changed"):
        notes.error(
            f"applied with another text than this code has: {', '.join(names)}",
            "install the same shardflow everywhere, with the files that were applied",
        )
    if names := by_state.get("unknown"):
        notes.warn(
            f"the schema is ahead of this code: {', '.join(names)}",
            "take the newer shardflow on this machine",
            "pip install --upgrade shardflow",
        )
    notes.well("all migrations are applied")


def identity(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if "identity" in facts.unreadable or "slots" in facts.unreadable:
        return
    view = facts.view
    if view is None:
        notes.error(f"the schema {facts.schema} is not initialised", "initialise it", "shardflow cluster init")
        return
    if view.cluster != config.name:
        notes.error(
            f"the schema {facts.schema} belongs to the cluster {view.cluster!r}, not to {config.name!r}",
            "correct the cluster's name, the shard's dsn or its schema in the configuration",
        )
    if view.name != facts.shard:
        notes.error(
            f"the schema {facts.schema} was initialised as shard {view.name!r}",
            "correct the shard's name, its dsn or its schema in the configuration",
        )
    if view.slots != config.slots:
        notes.error(
            f"the cluster was made with {view.slots} slots, the configuration says {config.slots}",
            f"set slots: {view.slots} in the configuration: the number can never change",
        )
    notes.well(f"shard {view.name!r} of cluster {view.cluster!r}, generation {view.generation}")


def frozen(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.frozen is None:
        return
    if facts.frozen:
        schema = facts.schema
        notes.error(
            f"{slot_ranges(facts.frozen)} frozen, and still so at a second look: who moved them has stopped",
            "let the move go on; or, where none is under way, thaw them",
            f"BEGIN; SELECT pg_advisory_xact_lock(hashtextextended({literal(schema + ':map')}, 0)); UPDATE"
            f" {schema}.slot SET state = 'active' WHERE state = 'frozen'; UPDATE {schema}.shard SET generation ="
            " generation + 1; COMMIT;",
        )
    notes.well("no slot is frozen")


def rights(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.tables is None:
        return
    role = quoted(facts.server.role) if facts.server else "ROLE"
    lacking = [f"{', '.join(t.missing)} on {t.name}" for t in facts.tables if t.missing]
    if lacking:
        notes.error(
            f"the role {role} lacks {'; '.join(lacking)}",
            "give it that, as the tables' owner",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {facts.schema} TO {role};",
        )
    notes.well(f"the role {role} may read and write all tables")


def keys(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    found = facts.keys
    if found is None:
        return
    schema, end = facts.schema, found.end
    used = " UNION ALL ".join(
        f"SELECT max({column}) FROM {schema}.{table} WHERE {column} < {end}"
        for table, column in (("workflow", "wf"), ("ready", "seq"), ("lease", "lease"))
    )
    remedy = "move the sequence beyond all keys in use, with all workers and clients stopped"
    command = f"SELECT setval('{schema}.key', greatest({found.first}, (SELECT max(k) FROM ({used}) AS u (k))));"
    if not found.first <= found.next < end:
        notes.error(
            f"the next key, {found.next}, is not of the shard's own range, {found.first} to {end - 1}",
            remedy,
            command,
        )
    elif found.next <= found.used:
        notes.error(
            f"the next key is {found.next}, and {found.used} is in use: submits and leases fail (a failover without"
            " the sequence, or a restored copy)",
            remedy,
            command,
        )
    else:
        left = (end - found.next) / (end - found.first)
        if left < 0.1:
            notes.warn(
                f"{100 * left:.1f} % of the shard's keys are left",
                "plan a new shard, with a name of its own: the keys of this one will run out",
            )
        notes.well(f"{100 * (1 - left):.1f} % of the shard's keys are used")


def leases(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.leases is None:
        return
    served = any(each.live for each in facts.leases)
    for each in facts.leases:
        what = f"lease {each.lease} of {each.worker}"
        if each.left < -(TAKEN + config.lease.watch):
            command = f"SELECT {facts.schema}.end_lease({each.lease}, 1);"
            if each.writer is not None and each.writer_idle is not None:
                command = f"SELECT pg_terminate_backend({each.writer}); {command}"
            notes.warn(
                f"{what} ended {lasting(-each.left)} ago, and nobody has taken back"
                f" {counted(each.claimed, 'workflow')} that it held",
                "take them back" if served else "start a worker, which takes them back; or do it by hand",
                command,
            )
        elif each.writer_idle is not None and each.writer_idle > TAKEN:
            notes.warn(
                f"the commit loop of {what} (process {each.writer}) has been idle in a transaction for"
                f" {lasting(each.writer_idle)}: the worker hangs",
                "end its connection, so that a peer can take over",
                f"SELECT pg_terminate_backend({each.writer});",
            )
    notes.well(counted(sum(each.live for each in facts.leases), "live lease"))


def workers(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.leases is None or facts.queues is None:
        return
    claimers = [each for each in facts.leases if each.live and each.claiming]
    names = {each.worker for each in claimers}
    ready = sum(queue.ready for queue in facts.queues)
    slots = sum(state in ("active", "frozen") for _, state, _ in facts.view.rows) if facts.view else 0
    least = config.rebalance.min_group
    if not claimers and ready:
        notes.error(f"{counted(ready, 'workflow')} ready, and no worker claims here", "start a worker", START)
    elif not claimers and slots:
        notes.warn("no worker claims here", "start a worker", START)
    elif len(names) < least and slots:
        notes.warn(
            f"{counted(len(names), 'worker')} here, fewer than min_group ({least}): one that fails leaves a gap",
            "start another worker, best on another machine",
            START,
        )
    if claimers and all(each.queues for each in claimers):
        served = {queue for each in claimers for queue in each.queues}
        for queue in facts.queues:
            if queue.name.removesuffix(SUSPECT) not in served:
                name, version = queue_of(queue.name), version_of(queue.name)
                code = "workflows of that queue"
                if version is not None or any(queue_of(other) == name for other in served):
                    code = "workflows " + ("without a version" if version is None else f"of version {version!r}")
                    code += ", or `runs` it in a newer one"
                notes.error(
                    f"{counted(queue.ready, 'workflow')} ready in the queue {said(queue.name)!r}, which no worker"
                    " serves",
                    f"start a worker whose app has {code}",
                    f"{START} --queue {shlex.quote(name)}",
                )
    notes.well(f"{counted(len(names), 'worker')} here")


def claims(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    schema = facts.schema
    if facts.orphans:
        notes.error(
            f"{counted(sum(each.workflows for each in facts.orphans), 'workflow')} claimed by leases that do not"
            f" exist: {some([str(each.lease) for each in facts.orphans])}",
            "make the leases anew and end them, which puts the workflows back",
            f"INSERT INTO {schema}.lease (lease, worker, epoch, expires_at, session) SELECT DISTINCT lease, 'lost',"
            f" 0, now(), false FROM {schema}.claim c WHERE NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.lease ="
            f" c.lease); SELECT {schema}.end_lease(lease, 1) FROM {schema}.lease WHERE worker = 'lost';",
        )
    living = {each.lease for each in facts.leases or () if each.live}
    old = [each for each in facts.receipts or () if each.lease in living]
    for worker in dict.fromkeys(each.worker for each in old):
        mine = [each for each in old if each.worker == worker]
        held = sum(each.workflows for each in mine)
        notes.warn(
            f"{worker} has held {counted(held, 'workflow')} without a change for up to"
            f" {lasting(max(each.seconds for each in mine))}: {some([i for each in mine for i in each.ids])}",
            "see what they do; if they should have ended, stop that worker with SIGTERM, and others take them over",
            f"shardflow workflow show {shlex.quote(mine[0].ids[0])}" if mine[0].ids else "",
        )
    if facts.orphans is not None and facts.receipts is not None:
        notes.well("no claim is stuck")


def places(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.places is None:
        return
    found, schema = facts.places.misplaced, facts.schema
    lost = [each for each in found if not each.ended and not each.claims + each.rows]
    several = [each for each in found if not each.ended and each.claims + each.rows > 1]
    ended = [each for each in found if each.ended]
    absent = f"NOT EXISTS (SELECT FROM {schema}"
    report = "; and report it: it is a defect of shardflow, unless somebody changed the tables"
    if lost:
        notes.error(
            f"{_many(lost)} neither ready, claimed, suspended nor ended: {some([each.id for each in lost])}",
            "make them ready again" + report,
            f"INSERT INTO {schema}.ready (seq, wf, priority, replay, queue) SELECT nextval('{schema}.key'), wf,"
            f" priority, true, {schema}.lane(queue, options) FROM {schema}.workflow w WHERE id = ANY"
            f" (ARRAY[{_ids(lost)}]) AND"
            f" {absent}.outcome o WHERE o.wf = w.wf) AND {absent}.ready r WHERE r.wf = w.wf) AND"
            f" {absent}.wait s WHERE s.wf = w.wf) AND {absent}.claim c WHERE w.wf = ANY (c.wfs));",
        )
    if several:
        notes.error(
            f"{_many(several)} in more than one place: {some([each.id for each in several])}",
            "keep the claim, the suspension, or else the first entry" + report,
            f"DELETE FROM {schema}.ready r USING {schema}.workflow w WHERE w.wf = r.wf AND w.id = ANY"
            f" (ARRAY[{_ids(several)}]) AND (EXISTS (SELECT FROM {schema}.claim c WHERE r.wf = ANY (c.wfs)) OR EXISTS"
            f" (SELECT FROM {schema}.wait s WHERE s.wf = r.wf) OR EXISTS (SELECT FROM {schema}.ready o WHERE"
            f" o.wf = r.wf AND o.seq < r.seq));",
        )
    if ended:
        notes.error(
            f"{_many(ended)} ended and still ready or suspended: {some([each.id for each in ended])}",
            "take them out" + report,
            f"DELETE FROM {schema}.ready r WHERE EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = r.wf);"
            f" DELETE FROM {schema}.wait s WHERE EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = s.wf);",
        )
    seen = "all workflows" if facts.places.looked_at is None else counted(facts.places.looked_at, "sampled workflow")
    notes.well(f"{seen} where they should be")


def _many(found: list[Misplaced]) -> str:
    return counted(len(found), "workflow") + (" or more" if len(found) >= MISPLACED else "")


def _ids(found: list[Misplaced]) -> str:
    return ", ".join(literal(each.id) for each in found)


def ready(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.queues is None:
        return
    for queue in facts.queues:
        if queue.oldest is not None and queue.oldest > WAITING:
            notes.warn(
                f"the oldest of {counted(queue.ready, 'workflow')} ready in the queue {said(queue.name)!r} was"
                f" submitted {lasting(queue.oldest)} ago",
                "start more workers, or give them a higher --concurrency",
                START,
            )
    ages = [queue.oldest for queue in facts.queues if queue.oldest is not None]
    notes.well(f"the oldest was submitted {lasting(max(ages))} ago" if ages else "nothing fresh is waiting")


def suspended(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.overdue is None:
        return
    if facts.overdue.workflows:
        served = any(each.live for each in facts.leases or ())
        notes.warn(
            f"{counted(facts.overdue.workflows, 'suspended workflow')} should have woken, the first"
            f" {lasting(facts.overdue.seconds)} ago",
            "the workers wake too few, or hang: start more, or restart them with SIGTERM"
            if served
            else "start a worker, which wakes them",
            START,
        )
    notes.well("no suspended workflow is overdue")


def bloat(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    if facts.tables is None:
        return
    pinned = (
        bool(holders(facts)) or bool(facts.prepared) or any((s.xids or 0) > DEAD for s in facts.replication or ())
    )
    for table in facts.tables:
        if table.name not in CHURNING:
            continue
        name, size = f"{facts.schema}.{table.name}", table.size + table.indexes
        if table.dead > max(DEAD, 2 * table.live) and (pinned or _unvacuumed(table)):
            last = "never vacuumed" if table.vacuumed is None else f"vacuumed {lasting(table.vacuumed)} ago"
            notes.warn(
                f"{name} has {counted(table.dead, 'dead row')} and {table.live:,} live, {last}",
                "first end what horizon names, then vacuum"
                if pinned
                else "vacuum it, and see why autovacuum does not",
                f"VACUUM {name};",
            )
        elif size > max(LARGE, WIDE * table.live) and table.vacuumed is not None and table.dead < DEAD:
            notes.warn(
                f"{name} takes {size / (1 << 20):,.0f} MiB for {counted(table.live, 'row')}",
                "give the space back; if that frees too little, by VACUUM FULL with all workers stopped",
                f"VACUUM {name}; REINDEX TABLE CONCURRENTLY {name};",
            )
    dead = sum(table.dead for table in facts.tables if table.name in CHURNING)
    notes.well(f"{counted(dead, 'dead row')} in the tables whose rows come and go")


def _unvacuumed(table: Table) -> bool:
    return table.vacuumed is None or table.vacuumed > UNVACUUMED


def outbox(notes: Notes, facts: Facts, config: ClusterConfig) -> None:
    found = facts.outbox
    if found is None:
        return
    if found.oldest is not None and found.oldest > RELAYED:
        notes.warn(
            f"the oldest of {counted(found.rows, 'row')} in the outbox is {lasting(found.oldest)} old",
            "any worker with a lease here relays them: start one, and see whether all shards answer",
            START,
        )
    notes.well(f"{counted(found.rows, 'row')} in the outbox")


CHECKS = (
    migrations,
    identity,
    frozen,
    rights,
    keys,
    leases,
    workers,
    claims,
    places,
    ready,
    suspended,
    bloat,
    outbox,
)

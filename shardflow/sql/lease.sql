-- name: open
-- A new lease; its id was never used before. Parameters: worker, whether its session tells that it lives, backend of
-- its commit loop, queues, seconds to live.
INSERT INTO {schema}.lease (worker, session, writer, queues, expires_at)
VALUES (%s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s))
RETURNING lease, epoch

-- name: live
-- Holds the lock that tells peers that this session lives; it goes with the session. Shared, so that a new session of
-- the same worker need not wait for the server to notice that the old one is gone. Parameters: lease.
SELECT pg_advisory_lock_shared(hashtextextended({schema_text} || ':lease:' || %s::bigint, 0))

-- name: cut_former
-- Ends the backend that wrote under the lease before: it may wait for the rest of a batch that never comes, on a
-- connection whose end it was not told, and a resume would wait for it. Parameters: lease.
SELECT pg_terminate_backend(a.pid) FROM {schema}.lease l
JOIN pg_stat_activity a ON a.pid = l.writer AND a.application_name LIKE 'shardflow commit%%'
WHERE l.lease = %s AND a.pid <> pg_backend_pid()

-- name: settle
-- First half of a resume: waits until no transaction of the old connection is under way. Parameters: lease.
SELECT epoch FROM {schema}.lease WHERE lease = %s FOR UPDATE

-- name: resume
-- Second half: a new epoch shuts out whatever the old connection may yet send. Parameters: backend of the commit loop,
-- seconds, lease.
UPDATE {schema}.lease SET epoch = epoch + 1, writer = %s, expires_at = clock_timestamp() + make_interval(secs => %s)
WHERE lease = %s RETURNING epoch

-- name: look
-- All that a worker with nothing to do asks of its shard, in one query. Renews the lease where seconds are given; says whether
-- it is held and what the server's clock shows. To one that watches: whether nobody is elected here, when the next schedule
-- and the next tick are due, and the peers' leases that may be dead, past their time or with a closed session, a row each; a
-- lock that tells of a session is tried and dropped at once, so that two who look do not mistake each other for it. Where
-- lanes are given: whether there may be anything to do, as cheaply as can be asked, and in how many seconds the next suspended
-- workflow's time comes; the orders, which nobody needs, keep the planner from reading a whole table to find nothing in it.
-- Parameters: lease, epoch, seconds or NULL, whether to watch, lanes or NULL.
WITH given AS MATERIALIZED (
    SELECT %s::bigint AS lease, %s::integer AS epoch, %s::float8 AS ttl, %s::boolean AS watch, %s::text[] AS lanes
), renewed AS (
    UPDATE {schema}.lease l SET expires_at = clock_timestamp() + make_interval(secs => g.ttl) FROM given g
    WHERE l.lease = g.lease AND l.epoch = g.epoch AND g.ttl IS NOT NULL RETURNING l.lease
)
SELECT CASE WHEN g.ttl IS NULL THEN EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = g.lease AND l.epoch = g.epoch)
    ELSE EXISTS (SELECT FROM renewed) END AS held,
    clock_timestamp() AS clock,
    g.watch AND NOT EXISTS (
        SELECT FROM {schema}.election e WHERE e.expires_at > clock_timestamp()
            AND (e.lease IS NULL OR EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = e.lease))
    ) AS vacant,
    CASE WHEN g.watch THEN (SELECT min(next_at) FROM {schema}.schedule WHERE next_at IS NOT NULL) END AS schedule_at,
    CASE WHEN g.watch THEN (SELECT min(try_at) FROM {schema}.tick) END AS tick_at,
    CASE WHEN g.lanes IS NOT NULL THEN EXISTS (
        SELECT FROM unnest(g.lanes) AS q (queue), LATERAL (
            SELECT FROM {schema}.ready r WHERE r.queue = q.queue ORDER BY r.priority, r.seq LIMIT 1
        ) found
    ) OR EXISTS (SELECT FROM {schema}.cancel) OR EXISTS (
        SELECT FROM (
            SELECT r.wf, r.registered_at FROM {schema}.watcher r WHERE r.late ORDER BY r.registered_at LIMIT 1000
        ) late WHERE late.registered_at < now() - interval '60 s'
            OR (SELECT o.wf FROM {schema}.outcome o WHERE o.wf = late.wf) IS NOT NULL
    ) OR EXISTS (
        SELECT FROM (SELECT lease FROM {schema}.outbox ORDER BY lease LIMIT 1) first
        WHERE NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = first.lease)
    ) END AS found,
    CASE WHEN g.lanes IS NOT NULL THEN date_part('epoch', (
        SELECT wake_at FROM {schema}.wait WHERE wake_at IS NOT NULL ORDER BY wake_at LIMIT 1
    ) - now()) END AS due,
    p.lease, p.worker, p.expired, p.gone
FROM given g LEFT JOIN LATERAL (
    SELECT l.lease, l.worker, l.expires_at < clock_timestamp() AS expired,
        l.session AND CASE WHEN pg_try_advisory_lock(hashtextextended({schema_text} || ':lease:' || l.lease, 0))
            THEN pg_advisory_unlock(hashtextextended({schema_text} || ':lease:' || l.lease, 0)) ELSE false END AS gone
    FROM {schema}.lease l WHERE g.watch AND l.lease <> g.lease
) p ON p.expired OR p.gone

-- name: expire_due
-- Ends a lease that is past its time and puts its claims back, counted as a failure; nothing if it is not, or if a
-- transaction under it is under way: nobody waits for that. Parameters: lease.
SELECT {schema}.end_lease(dead.lease, 1) FROM (
    SELECT lease FROM {schema}.lease WHERE lease = %s AND expires_at < clock_timestamp() FOR UPDATE SKIP LOCKED
) dead

-- name: expire_gone
-- Ends a lease whose session is seen closed, likewise. Parameters: lease.
SELECT {schema}.end_lease(dead.lease, 1) FROM (
    SELECT lease FROM {schema}.lease
    WHERE lease = %s AND session AND pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':lease:' || lease, 0))
    FOR UPDATE SKIP LOCKED
) dead

-- name: cut_off
-- Ends the backends whose transactions keep a lease from being expired although its time is over: half of a batch that
-- a frozen worker has sent can wait there for the rest for ever, and so can a user's transaction.
-- Parameters: lease, seconds beyond its time.
SELECT pg_terminate_backend(a.pid) FROM {schema}.lease l
JOIN pg_stat_activity a ON a.pid = l.writer AND a.application_name LIKE 'shardflow commit%%'
    OR a.application_name = 'shardflow transaction ' || l.lease AND a.datname = current_database()
WHERE l.lease = %s AND l.expires_at < clock_timestamp() - make_interval(secs => %s)

-- name: release
-- Ends the caller's own lease in good order; what it still holds goes back uncounted. Parameters: lease.
SELECT {schema}.end_lease(%s, 0)

-- name: held
-- All that the lease's receipts name and that has no outcome yet. Parameters: lease.
SELECT c.batch, u.wf, u.attempt
FROM {schema}.claim c, unnest(c.wfs, c.attempts) AS u (wf, attempt)
WHERE c.lease = %s AND NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = u.wf)

-- name: batches
-- The receipts of the lease. Parameters: lease.
SELECT batch FROM {schema}.claim WHERE lease = %s

-- name: load
-- The submissions of these workflows. Parameters: wfs.
SELECT wf, id, name, input, {schema}.lane(queue, options), priority, options FROM {schema}.workflow WHERE wf = ANY(%s)

-- name: checkpoints
-- The checkpoints of these workflows in order. Parameters: wfs.
SELECT wf, seq, name, output, error, attempts, date_part('epoch', finished_at) FROM {schema}.step
WHERE wf = ANY(%s) ORDER BY wf, seq

-- name: retries
-- The steps of these workflows that have failed and are to be tried again. Parameters: wfs.
SELECT wf, seq, attempts, date_part('epoch', due_at) FROM {schema}.retry WHERE wf = ANY(%s)

-- name: clock
-- The server's clock, in seconds since 1970.
SELECT date_part('epoch', clock_timestamp())

-- name: written
-- Whether a turn's writes are there, asked of one of them: a turn commits whole or not at all.
-- Parameters: step wf, step seq, outcome wf.
SELECT EXISTS (SELECT FROM {schema}.step WHERE wf = %s AND seq = %s)
    OR EXISTS (SELECT FROM {schema}.outcome WHERE wf = %s)

-- name: list
-- All leases with what they hold.
SELECT l.lease, l.worker, l.epoch, l.opened_at, l.expires_at, l.expires_at < clock_timestamp() AS expired,
       coalesce(sum(cardinality(c.wfs)), 0)::bigint AS claimed, l.queues, l.claiming
FROM {schema}.lease l LEFT JOIN {schema}.claim c USING (lease) GROUP BY l.lease ORDER BY l.lease

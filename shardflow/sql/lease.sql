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

-- name: renew
-- Pushes the lease's end; answers nothing if it is gone or was resumed elsewhere. Parameters: seconds, lease, epoch.
UPDATE {schema}.lease SET expires_at = clock_timestamp() + make_interval(secs => %s)
WHERE lease = %s AND epoch = %s RETURNING date_part('epoch', clock_timestamp())

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

-- name: peers
-- Leases that may be dead: past their time, or with a closed session. The first row, without a lease, says whether nobody
-- is elected here. Parameters: own lease.
SELECT 0 AS lease, '' AS worker, false AS expired, NOT EXISTS (
    SELECT FROM {schema}.election e WHERE e.expires_at > clock_timestamp()
        AND (e.lease IS NULL OR EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = e.lease))
) AS gone
UNION ALL
SELECT lease, worker, expires_at < clock_timestamp() AS expired,
       session AND pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':lease:' || lease, 0)) AS gone
FROM {schema}.lease WHERE lease <> %s

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

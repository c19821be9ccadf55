-- name: fence
-- Fails the whole transaction with SF001 unless the lease is held at this epoch, with SF002 where the slots changed;
-- keeps the lease from being expired until the transaction ends. Parameters: lease, epoch, generation.
SELECT {schema}.fence(%s, %s, %s)

-- name: steps
-- Writes checkpoints; a second outcome for the same (workflow, sequence number) fails on the primary key.
-- Parameters, arrays of one length: wfs, seqs, attempts, names, outputs, errors.
INSERT INTO {schema}.step (wf, seq, attempts, name, output, error)
SELECT unnest(%s), unnest(%s), unnest(%s), unnest(%s), unnest(%s), unnest(%s)

-- name: outcomes
-- Ends workflows; a second end fails on the primary key.
-- Parameters, arrays of one length: wfs, statuses, outputs, errors.
INSERT INTO {schema}.outcome (wf, status, output, error)
SELECT unnest(%s), unnest(%s), unnest(%s), unnest(%s)

-- name: waits
-- Suspends workflows until a time of the server's clock.
-- Parameters, arrays of one length: wfs, seconds from now, attempts, reasons.
INSERT INTO {schema}.wait (wf, wake_at, attempt, reason)
SELECT wf, now() + make_interval(secs => delay), attempt, reason
FROM unnest(%s, %s, %s, %s) AS given (wf, delay, attempt, reason)

-- name: drop_claims
-- Drops receipts of which nothing is left, or whose rest is written anew by `keep_claim`. Parameters: lease, batches.
DELETE FROM {schema}.claim WHERE lease = %s AND batch = ANY(%s)

-- name: keep_claim
-- Writes one receipt for what is left of several. Parameters: lease, batch, wfs, attempts.
INSERT INTO {schema}.claim (lease, batch, wfs, attempts) VALUES (%s, %s, %s, %s)

-- name: claim
-- Takes ready workflows, in order, under one receipt; two claimers never take the same row, and none waits.
-- The low-water mark (priority, seq) of a queue lets the scan begin behind dead index entries.
-- The queues are read in the order given until there are enough. The lateral LIMIT, of a number that the planner
-- cannot see, keeps it at index lookups whatever the statistics say.
-- Parameters, arrays of one length: queues, mark priorities, mark seqs; then the limit twice, lease, batch.
WITH gone AS (
    DELETE FROM {schema}.ready
    WHERE ctid = ANY(ARRAY(
        SELECT next.place
        FROM unnest(%s, %s, %s) AS q (queue, mark_priority, mark_seq),
        LATERAL (
            SELECT r.ctid AS place FROM {schema}.ready r
            WHERE r.queue = q.queue AND (r.priority, r.seq) >= (q.mark_priority, q.mark_seq)
            ORDER BY r.priority, r.seq LIMIT (SELECT %s)
            FOR UPDATE SKIP LOCKED
        ) next
        LIMIT %s
    ))
    RETURNING wf, attempt, replay, queue, priority, seq
), receipt AS (
    INSERT INTO {schema}.claim (lease, batch, wfs, attempts)
    SELECT %s, %s, array_agg(wf), array_agg(attempt) FROM gone HAVING count(*) > 0
)
SELECT gone.wf, w.id, w.name, w.input, gone.attempt, gone.replay, gone.queue, gone.priority, gone.seq
FROM gone, LATERAL (
    SELECT id, name, input FROM {schema}.workflow WHERE wf = gone.wf LIMIT 1
) w
ORDER BY gone.queue, gone.priority, gone.seq

-- name: wake
-- Makes suspended workflows ready whose time has come, at most so many. Parameters: limit.
WITH due AS (
    DELETE FROM {schema}.wait WHERE wf = ANY(ARRAY(
        SELECT wf FROM {schema}.wait WHERE wake_at <= now() ORDER BY wake_at LIMIT %s FOR UPDATE SKIP LOCKED
    ))
    RETURNING wf, attempt
)
INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
SELECT nextval('{schema}.key'), w.wf, w.priority, due.attempt, true, w.queue
FROM due JOIN {schema}.workflow w ON w.wf = due.wf

-- name: hang_bell
-- Says that this session's worker is about to sleep; the lock ends with the session at the latest.
SELECT pg_advisory_lock_shared(hashtextextended({schema_text} || ':bell', 0))

-- name: take_bell
-- Says that this session's worker is awake.
SELECT pg_advisory_unlock_shared(hashtextextended({schema_text} || ':bell', 0))

-- name: probe
-- Whether there may be anything to do, as cheaply as can be asked. The orders, which nobody needs, keep the planner from
-- reading a whole table to find nothing in it. Parameters: queues.
SELECT EXISTS (
    SELECT FROM unnest(%s) AS q (queue), LATERAL (
        SELECT FROM {schema}.ready r WHERE r.queue = q.queue ORDER BY r.priority, r.seq LIMIT 1
    ) found
) OR EXISTS (
    SELECT FROM (SELECT FROM {schema}.wait WHERE wake_at <= now() ORDER BY wake_at LIMIT 1) due
)

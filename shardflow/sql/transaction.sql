-- name: take
-- Makes this transaction the only one that runs the step: answers whether it is, and whether the lease is held now.
-- The two settings last for the transaction: one tells peers what keeps a lease, the other tells `record` that the
-- transaction is still this one. Parameters: lease, what `record` compares, workflow and number, lease, epoch.
SELECT pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':step:' || mine.step, 0)),
       EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = %s AND l.epoch = %s),
       set_config('application_name', 'shardflow transaction ' || mine.lease, true),
       set_config('shardflow.step', mine.step, true)
FROM (SELECT %s::text AS lease, %s::text AS step) mine

-- name: hold
-- The fence of a transaction that sees everything as it was at its begin, when the lease was held: fails where it has been ended
-- since, and keeps it from now on. A renewal is no matter, and a resume is the same worker's. Parameters: lease, epoch.
SELECT FROM {schema}.lease WHERE lease = %s AND epoch = %s FOR KEY SHARE

-- name: end_former
-- Ends the transactions that run the step on other connections: of a connection that was lost, or of a former holder. What they
-- have committed is found afterwards, and more they cannot. Parameters: workflow and number.
SELECT pg_terminate_backend(l.pid) FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid::bigint << 32 | l.objid::bigint = hashtextextended({schema_text} || ':step:' || %s, 0)

-- name: recorded
-- The step's checkpoint. Parameters: workflow, number.
SELECT name, output, error, attempts FROM {schema}.step WHERE wf = %s AND seq = %s

-- name: now_or_never
-- Has what the user's constraints put off until the commit checked now, before the fence.
SET CONSTRAINTS ALL IMMEDIATE

-- name: unmoved
-- Fails a transaction that sees the slots as they were where they have changed since. Behind `admit`, so that nobody changes them
-- from now on.
SELECT FROM {schema}.shard FOR SHARE

-- name: record
-- Writes the checkpoint. Without a workflow, and so not at all, where the transaction is not the one that began the step;
-- without a number, likewise, where the workflow has ended meanwhile.
-- Parameters: workflow and number as one text, workflow, workflow, number, attempts, name, output, error.
INSERT INTO {schema}.step (wf, seq, attempts, name, output, error)
VALUES (CASE WHEN current_setting('shardflow.step', true) = %s THEN %s::bigint END,
    CASE WHEN NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = %s) THEN %s::bigint END, %s, %s, %s, %s)

-- name: tried
-- Forgets the failed tries of the step. Parameters: workflow, number.
DELETE FROM {schema}.retry WHERE wf = %s AND seq = %s

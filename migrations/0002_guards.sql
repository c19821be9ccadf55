-- The guards that every write passes through, and the doorbell.

-- name: admit
-- Refuses a write that was routed by another slot map than the shard's present one (invariant I3).
-- The advisory lock is held shared until the transaction ends, so a change of the slots waits for it.
CREATE FUNCTION {schema}.admit(believed bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    present bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended({schema_text} || ':map', 0));
    SELECT generation INTO present FROM {schema}.shard;
    IF present IS DISTINCT FROM believed THEN
        RAISE EXCEPTION 'map_changed: the shard is at generation %, the caller believes %', present, believed
            USING ERRCODE = 'SF002';
    END IF;
END
$$;

-- name: fence
-- Refuses a write of a worker whose lease is gone or was resumed by a newer connection (invariant I2).
-- FOR KEY SHARE makes the expiry, which deletes the row, wait for this transaction; renewals go through.
-- The planner settings last for the transaction, also behind a pooler: on tables that were never analysed the claim
-- would otherwise read and sort the whole backlog (benchmarks/LOG.md).
CREATE FUNCTION {schema}.fence(held bigint, held_epoch integer, believed bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    present integer;
BEGIN
    PERFORM set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_sort', 'off', true),
            set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true);
    PERFORM {schema}.admit(believed);
    SELECT epoch INTO present FROM {schema}.lease WHERE lease = held FOR KEY SHARE;
    IF present IS DISTINCT FROM held_epoch THEN
        RAISE EXCEPTION 'lease_lost: lease % at epoch % is not held any more', held, held_epoch
            USING ERRCODE = 'SF001';
    END IF;
END
$$;

-- name: bell
-- Wakes the shard's workers if one is known to sleep: a sleeper holds the bell's lock shared. The lock is only
-- tried and dropped at once, so that submitters do not wait for each other.
CREATE FUNCTION {schema}.ring() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    bell bigint := hashtextextended({schema_text} || ':bell', 0);
BEGIN
    IF pg_try_advisory_lock(bell) THEN
        PERFORM pg_advisory_unlock(bell);
    ELSE
        PERFORM pg_notify({bell_text}, '');
    END IF;
END
$$;

-- name: end_lease
-- Ends a lease and puts back what it still held, in the caller's transaction. Deleting the lease row waits for
-- batches in flight, so their checkpoints are visible to whoever claims next. `counted` is 1 where the holder
-- failed, 0 where it left in good order. Returns the number of workflows put back, or NULL if the lease was gone.
CREATE FUNCTION {schema}.end_lease(gone bigint, counted integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    back bigint;
BEGIN
    PERFORM 1 FROM {schema}.lease WHERE lease = gone FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    WITH receipt AS (
        DELETE FROM {schema}.claim WHERE lease = gone RETURNING wfs, attempts
    ), held AS (
        SELECT u.wf, u.attempt FROM receipt, unnest(receipt.wfs, receipt.attempts) AS u (wf, attempt)
    )
    INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
    SELECT nextval('{schema}.key'), b.wf, b.priority, b.attempt, true, b.queue
    FROM (
        SELECT h.wf, w.priority, least(h.attempt + counted, 32767) AS attempt, w.queue
        FROM held h JOIN {schema}.workflow w USING (wf)
        WHERE NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = h.wf)
        ORDER BY h.wf
    ) b;
    GET DIAGNOSTICS back = ROW_COUNT;
    DELETE FROM {schema}.lease WHERE lease = gone;
    IF back > 0 THEN
        PERFORM {schema}.ring();
    END IF;
    RETURN back;
END
$$;

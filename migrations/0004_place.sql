-- Workflows that come back from a lease keep their place in the queue.

-- name: end_lease
-- As before, but what a lease still held goes back to where it was submitted, its key, and not behind the whole backlog:
-- a dead worker's workflows go on at once. One under which leases have ended again and again goes to the end, so that a
-- workflow that kills its workers does not stand in front of all others for ever.
CREATE OR REPLACE FUNCTION {schema}.end_lease(gone bigint, counted integer) RETURNS bigint LANGUAGE plpgsql AS $$
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
    SELECT CASE WHEN b.attempt > 3 THEN nextval('{schema}.key') ELSE b.wf END, b.wf, b.priority, b.attempt, true, b.queue
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

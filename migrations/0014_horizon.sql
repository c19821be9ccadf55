-- Long transactions elsewhere: what is asked in every turn steps over no rows that were deleted since they began.

-- name: permit_lease
-- The lease whose claim holds the workflow; NULL in what was claimed before this was kept.
ALTER TABLE {schema}.permit ADD COLUMN lease bigint;

-- name: permit_uncounted
-- Counts those.
CREATE INDEX permit_uncounted ON {schema}.permit (queue) WHERE lease IS NULL;

-- name: permit_queue_gone
-- The others are counted in `held`.
DROP INDEX {schema}.permit_queue;

-- name: held
-- How many permits of a queue a lease has. Each change makes a new version, and the newest one is the last in the index: it is
-- found at once, however many older ones cannot be removed. Nobody writes it but who has the lease, or ends it.
CREATE TABLE {schema}.held (
    queue text COLLATE "C" NOT NULL,
    lease bigint NOT NULL,
    version bigint NOT NULL,
    permits bigint NOT NULL,
    PRIMARY KEY (queue, lease, version)
);

-- name: hold
-- A lease has so many permits of a queue more, or less.
CREATE FUNCTION {schema}.hold(of_queue text, holder bigint, more bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {schema}.held h SET version = h.version + 1, permits = h.permits + more
    WHERE h.queue = of_queue AND h.lease = holder AND h.version = (
        SELECT newest.version FROM {schema}.held newest WHERE newest.queue = of_queue AND newest.lease = holder
        ORDER BY newest.version DESC LIMIT 1
    );
    IF NOT FOUND THEN
        INSERT INTO {schema}.held (queue, lease, version, permits) VALUES (of_queue, holder, 1, more);
    END IF;
END
$$;

-- name: in_use
-- As before; running workflows as their leases count them.
CREATE OR REPLACE FUNCTION {schema}.in_use(of_queue text, of_kind text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF of_kind = 'running' THEN
        RETURN (
            SELECT coalesce(sum(newest.permits), 0) FROM {schema}.lease l, LATERAL (
                SELECT h.permits FROM {schema}.held h WHERE h.queue = of_queue AND h.lease = l.lease
                ORDER BY h.version DESC LIMIT 1
            ) newest
        ) + (SELECT count(*) FROM {schema}.permit p WHERE p.queue = of_queue AND p.lease IS NULL);
    END IF;
    RETURN (SELECT coalesce(sum(f.starts), 0) FROM {schema}.fresh f WHERE f.queue = of_queue)
        + (SELECT coalesce(sum(b.starts), 0) FROM {schema}.begun b WHERE b.queue = of_queue AND b.over_at > clock_timestamp());
END
$$;

-- name: claim_limited
-- As before; permits say whose they are, and are counted.
CREATE OR REPLACE FUNCTION {schema}.claim_limited(lanes text[], mark_priorities smallint[], mark_seqs bigint[], most integer,
    holder bigint, receipt bigint)
RETURNS TABLE (wf bigint, id text, name text, input bytea, attempt smallint, replay boolean, queue text, priority smallint,
    seq bigint, options jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    room bigint := most;
    free bigint;
    n bigint;
    of_queue text;
BEGIN
    FOR i IN 1 .. cardinality(lanes) LOOP
        EXIT WHEN room <= 0;
        of_queue := {schema}.queue_of(lanes[i]);
        CONTINUE WHEN EXISTS (SELECT FROM {schema}.paused p WHERE p.queue = of_queue);
        free := {schema}.allowed(of_queue);
        CONTINUE WHEN free = 0;
        n := least(room, free, CASE WHEN right(lanes[i], 1) = E'\x1e' THEN 1 END);
        RETURN QUERY WITH gone AS (
            DELETE FROM {schema}.ready
            WHERE ctid = ANY(ARRAY(
                SELECT r.ctid FROM {schema}.ready r
                WHERE r.queue = lanes[i] AND (r.priority, r.seq) >= (mark_priorities[i], mark_seqs[i])
                ORDER BY r.priority, r.seq LIMIT n FOR UPDATE SKIP LOCKED
            ))
            RETURNING wf, attempt, replay, queue, priority, seq
        ), receipts AS (
            INSERT INTO {schema}.claim AS c (lease, batch, wfs, attempts)
            SELECT holder, receipt, array_agg(gone.wf), array_agg(gone.attempt) FROM gone HAVING count(*) > 0
            ON CONFLICT (lease, batch) DO UPDATE SET wfs = c.wfs || EXCLUDED.wfs, attempts = c.attempts || EXCLUDED.attempts
        ), permits AS (
            INSERT INTO {schema}.permit (wf, queue, lease) SELECT gone.wf, of_queue, holder FROM gone WHERE free IS NOT NULL
        ), starts AS (
            INSERT INTO {schema}.fresh AS f (lease, batch, queue, starts)
            SELECT holder, receipt, of_queue, count(*) FROM gone WHERE free IS NOT NULL AND EXISTS (
                SELECT FROM {schema}.quota q WHERE q.queue = of_queue AND q.kind = 'starts' AND q.most IS NOT NULL
            ) HAVING count(*) > 0
            ON CONFLICT (lease, batch, queue) DO UPDATE SET starts = f.starts + EXCLUDED.starts
        )
        SELECT gone.wf, w.id, w.name, w.input, gone.attempt, gone.replay, gone.queue, gone.priority, gone.seq, w.options
        FROM gone, LATERAL (
            SELECT id, name, input, options FROM {schema}.workflow WHERE wf = gone.wf LIMIT 1
        ) w ORDER BY gone.priority, gone.seq;
        GET DIAGNOSTICS n = ROW_COUNT;
        room := room - n;
        IF n > 0 AND free IS NOT NULL THEN
            PERFORM {schema}.hold(of_queue, holder, n);
            DELETE FROM {schema}.begun b WHERE b.queue = of_queue AND b.over_at <= clock_timestamp();
        END IF;
    END LOOP;
END
$$;

-- name: returned
-- As before; where no queue has ever had limits there are no permits.
CREATE OR REPLACE FUNCTION {schema}.returned(wfs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    part record;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.quota) THEN
        RETURN;
    END IF;
    FOR part IN
        WITH gone AS (
            DELETE FROM {schema}.permit p WHERE p.wf = ANY(wfs) RETURNING p.queue, p.lease
        )
        SELECT gone.queue, gone.lease, count(*) AS many FROM gone WHERE gone.lease IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
    LOOP
        PERFORM {schema}.hold(part.queue, part.lease, -part.many);
    END LOOP;
END
$$;

-- name: end_lease
-- As before; nothing is counted of a lease that has ended.
CREATE OR REPLACE FUNCTION {schema}.end_lease(gone bigint, counted integer) RETURNS bigint LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    back bigint;
BEGIN
    PERFORM 1 FROM {schema}.lease WHERE lease = gone FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM {schema}.returned(ARRAY(
        SELECT u.wf FROM {schema}.claim c, unnest(c.wfs) AS u (wf) WHERE c.lease = gone
    ));
    PERFORM {schema}.have_begun(gone, NULL, NULL);
    WITH receipt AS (
        DELETE FROM {schema}.claim WHERE lease = gone RETURNING wfs, attempts
    ), held AS (
        SELECT u.wf, u.attempt FROM receipt, unnest(receipt.wfs, receipt.attempts) AS u (wf, attempt)
    )
    INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
    SELECT CASE WHEN b.attempt > 3 THEN nextval('{schema}.key') ELSE b.wf END, b.wf, b.priority, b.attempt, true,
           {schema}.lane(b.queue, b.options, b.attempt)
    FROM (
        SELECT h.wf, w.priority, least(h.attempt + counted, 32767) AS attempt, w.queue, w.options
        FROM held h JOIN {schema}.workflow w USING (wf)
        WHERE NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = h.wf)
        ORDER BY h.wf
    ) b;
    GET DIAGNOSTICS back = ROW_COUNT;
    DELETE FROM {schema}.held h WHERE h.lease = gone AND h.queue IN (SELECT q.queue FROM {schema}.quota q);
    DELETE FROM {schema}.lease WHERE lease = gone;
    IF back > 0 THEN
        PERFORM {schema}.ring();
    END IF;
    RETURN back;
END
$$;

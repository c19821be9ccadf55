-- Cancelling, resuming, quarantine, paused queues: see docs/architecture.md.

-- name: paused
-- Queues from which nothing is claimed.
CREATE TABLE {schema}.paused (
    queue text COLLATE "C" PRIMARY KEY,
    paused_at timestamptz NOT NULL DEFAULT now()
);

-- name: cancel_looked_at
-- When it was last looked for the workflow where no worker would find it.
ALTER TABLE {schema}.cancel ADD COLUMN looked_at timestamptz NOT NULL DEFAULT now();

-- name: lane_of_attempt
-- The lane by what became of the workers that had the workflow: one under which several have died waits in a lane of its own,
-- from which a worker takes one at a time.
CREATE FUNCTION {schema}.lane(queue text, options jsonb, attempt integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT {schema}.lane(queue, options) || CASE WHEN attempt > 3 THEN E'\x1e' ELSE '' END
$$;

-- name: end_lease
-- As before, and suspects go to a lane of their own.
CREATE OR REPLACE FUNCTION {schema}.end_lease(gone bigint, counted integer) RETURNS bigint LANGUAGE plpgsql AS $$
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
    DELETE FROM {schema}.lease WHERE lease = gone;
    IF back > 0 THEN
        PERFORM {schema}.ring();
    END IF;
    RETURN back;
END
$$;

-- name: conclude
-- Ends a workflow that the caller's transaction has taken from where it was.
CREATE FUNCTION {schema}.conclude(ending bigint, ends_as text, why text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO {schema}.outcome (wf, status, error) VALUES (ending, ends_as, why);
    SELECT count(*) FROM {schema}.ended(ARRAY[ending], 0);
$$;

-- name: finish
-- Ends a suspended workflow; does nothing where it has just been woken.
CREATE OR REPLACE FUNCTION {schema}.finish(ending bigint, ends_as text, why text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.wait WHERE wf = ending;
    IF FOUND THEN
        PERFORM {schema}.conclude(ending, ends_as, why);
    END IF;
END
$$;

-- name: cancel_children
-- For workflows that end in this transaction otherwise than by their own code: has the children cancelled that they have started
-- and not heard the end of, and `others` besides; answers what is to be delivered. What was asked of them is settled.
CREATE FUNCTION {schema}.cancel_children(wfs bigint[], others text[], holder bigint)
RETURNS TABLE (entry bigint, target text, topic text, key text, value bytea, error text) LANGUAGE sql AS $$
    WITH settled AS (
        DELETE FROM {schema}.cancel c WHERE c.wf = ANY(wfs)
    ), started AS (
        SELECT s.wf, convert_from(s.output, 'UTF8')::jsonb AS children FROM {schema}.step s
        WHERE s.wf = ANY(wfs) AND s.name = 'shardflow.start' AND s.output IS NOT NULL
    ), child AS (
        SELECT s.wf, s.children ? 'borrowed' AS borrowed, coalesce(s.children -> 'given' ->> n, (s.children ->> 'base')
                   || CASE WHEN (s.children ->> 'count')::integer < 0 THEN '' ELSE n::text END) AS id
        FROM started s, LATERAL generate_series(0, CASE WHEN (s.children ->> 'count')::integer < 0 THEN 0
                                                        ELSE (s.children ->> 'count')::integer - 1 END) AS n
    )
    INSERT INTO {schema}.outbox AS o (lease, target, topic, value)
    SELECT holder, wanted.id, 'shardflow.cancel', 'the workflow that had started it was ended' FROM (
        SELECT c.id FROM child c WHERE NOT c.borrowed AND NOT EXISTS (
            SELECT FROM {schema}.message m WHERE m.wf = c.wf AND m.topic = 'shardflow.child' AND m.key = c.id
        )
        UNION SELECT unnest(others)
    ) wanted
    RETURNING o.entry, o.target, o.topic, o.key, o.value, o.error
$$;

-- name: cancel
-- Cancels workflows: one that waits ends at once, for another one its holder is asked to end it. Answers which are here, and
-- whether each had not ended yet. What deliveries, ends of waits and claims do meanwhile is either seen here or sees what is
-- written here: rows that somebody is at are left to whoever claims the workflow next.
CREATE FUNCTION {schema}.cancel(ids text[], reasons text[]) RETURNS TABLE (id text, took boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    hit record;
    taken bigint;
    done bigint[] := '{{}}';
    asked boolean := false;
BEGIN
    PERFORM 1 FROM {schema}.workflow w WHERE w.id = ANY(ids) ORDER BY w.wf FOR NO KEY UPDATE;
    FOR hit IN
        SELECT DISTINCT ON (w.wf) w.wf, w.id, w.priority, {schema}.lane(w.queue, w.options) AS lane, g.reason
        FROM unnest(ids, reasons) AS g (id, reason) JOIN {schema}.workflow w ON w.id = g.id
        WHERE NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = w.wf)
        ORDER BY w.wf
    LOOP
        taken := NULL;
        DELETE FROM {schema}.wait s WHERE s.wf = (
            SELECT x.wf FROM {schema}.wait x WHERE x.wf = hit.wf FOR UPDATE SKIP LOCKED
        ) RETURNING s.wf INTO taken;
        IF taken IS NULL THEN
            DELETE FROM {schema}.ready r WHERE r.ctid = ANY(ARRAY(
                SELECT x.ctid FROM {schema}.ready x
                WHERE x.queue = hit.lane AND x.priority = hit.priority AND x.seq = hit.wf AND x.wf = hit.wf
                FOR UPDATE SKIP LOCKED
            )) RETURNING r.wf INTO taken;
        END IF;
        IF taken IS NULL THEN
            INSERT INTO {schema}.cancel (wf, reason) VALUES (hit.wf, hit.reason) ON CONFLICT DO NOTHING;
            asked := true;
        ELSE
            PERFORM {schema}.conclude(hit.wf, 'cancelled', {schema}.cancellation(hit.reason));
            done := done || hit.wf;
        END IF;
        id := hit.id;
        took := true;
        RETURN NEXT;
    END LOOP;
    IF done <> '{{}}' THEN
        asked := asked OR (SELECT count(*) FROM {schema}.cancel_children(done, '{{}}', 0)) > 0;
    END IF;
    IF asked THEN
        PERFORM {schema}.ring();
    END IF;
    RETURN QUERY SELECT w.id, false FROM {schema}.workflow w JOIN {schema}.outcome o USING (wf)
        WHERE w.id = ANY(ids) AND w.wf <> ALL(done);
END
$$;

-- name: cancellation
-- The error of a workflow that was cancelled, as it is stored.
CREATE FUNCTION {schema}.cancellation(reason text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT json_build_object('type', 'shardflow.errors.WorkflowCancelled', 'message', coalesce(reason, 'cancelled'),
                             'traceback', '')::text
$$;

-- name: sweep
-- Ends those workflows that were to be cancelled and have been ready for long, perhaps in a queue that nobody serves; forgets
-- what was asked of workflows that ended otherwise.
CREATE FUNCTION {schema}.sweep() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    old bigint[];
    hit record;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.cancel) THEN
        RETURN;
    END IF;
    DELETE FROM {schema}.cancel c WHERE c.wf = ANY(ARRAY(
        SELECT x.wf FROM {schema}.cancel x WHERE EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = x.wf)
        FOR UPDATE SKIP LOCKED
    ));
    WITH looked AS (
        UPDATE {schema}.cancel c SET looked_at = now() WHERE c.wf = ANY(ARRAY(
            SELECT x.wf FROM {schema}.cancel x WHERE x.looked_at < now() - interval '5 s'
            ORDER BY x.wf LIMIT 1000 FOR UPDATE SKIP LOCKED
        ))
        RETURNING c.wf
    )
    SELECT array_agg(l.wf) INTO old FROM looked l;
    IF old IS NULL THEN
        RETURN;
    END IF;
    FOR hit IN
        DELETE FROM {schema}.ready r WHERE r.ctid = ANY(ARRAY(
            SELECT x.ctid FROM {schema}.ready x WHERE x.wf = ANY(old) FOR UPDATE SKIP LOCKED
        ))
        RETURNING r.wf
    LOOP
        PERFORM {schema}.conclude(hit.wf, 'cancelled', {schema}.cancellation(c.reason))
        FROM {schema}.cancel c WHERE c.wf = hit.wf;
        PERFORM count(*) FROM {schema}.cancel_children(ARRAY[hit.wf], '{{}}', 0);
    END LOOP;
END
$$;

-- name: resume
-- Lets workflows that have ended run on from their checkpoints, or with `afresh` from the beginning. Of one that failed the
-- checkpoint of the step that it failed by is removed: one that nothing was recorded after, or whose error is the workflow's.
-- A time limit begins anew. Answers which are here, and whether each was to be resumed.
CREATE FUNCTION {schema}.resume(ids text[], afresh boolean) RETURNS TABLE (id text, took boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    back bigint[];
BEGIN
    PERFORM 1 FROM {schema}.workflow w WHERE w.id = ANY(ids) ORDER BY w.wf FOR NO KEY UPDATE;
    SELECT coalesce(array_agg(o.wf), '{{}}') INTO back FROM {schema}.workflow w JOIN {schema}.outcome o USING (wf)
    WHERE w.id = ANY(ids) AND (afresh OR o.status <> 'succeeded');
    -- A receipt may name them still; its holder has done with them.
    UPDATE {schema}.claim c SET (wfs, attempts) = (
        SELECT coalesce(array_agg(u.wf ORDER BY u.n), '{{}}'), coalesce(array_agg(u.attempt ORDER BY u.n), '{{}}')
        FROM unnest(c.wfs, c.attempts) WITH ORDINALITY AS u (wf, attempt, n) WHERE u.wf <> ALL(back)
    ) WHERE c.wfs && back;
    IF afresh THEN
        INSERT INTO {schema}.step (wf, seq, name)
        SELECT b.wf, least(0, (SELECT min(s.seq) FROM {schema}.step s WHERE s.wf = b.wf)) - 1, 'shardflow.restart'
        FROM unnest(back) AS b (wf);
        PERFORM {schema}.begin_anew(back);
    ELSE
        DELETE FROM {schema}.step s USING {schema}.outcome o
        WHERE s.wf = ANY(back) AND o.wf = s.wf AND s.error IS NOT NULL AND NOT EXISTS (
            SELECT FROM {schema}.step l WHERE l.wf = s.wf AND l.seq >> 20 = s.seq >> 20 AND l.seq > s.seq
        ) AND (right(s.error, 400) = right(o.error, 400) OR NOT EXISTS (
            SELECT FROM {schema}.step l WHERE l.wf = s.wf AND l.finished_at > s.finished_at
        ));
    END IF;
    DELETE FROM {schema}.cancel c WHERE c.wf = ANY(back);
    UPDATE {schema}.workflow w SET options = w.options
        || jsonb_build_object('deadline', date_part('epoch', now()) + (w.options ->> 'timeout')::float8)
    WHERE w.wf = ANY(back) AND w.options ? 'timeout';
    DELETE FROM {schema}.outcome o WHERE o.wf = ANY(back);
    PERFORM {schema}.reenter(back);
    RETURN QUERY SELECT w.id, w.wf = ANY(back) FROM {schema}.workflow w WHERE w.id = ANY(ids);
END
$$;

-- name: begin_anew
-- Forgets what is recorded of workflows but the last new beginning. Messages that were not received stay.
CREATE FUNCTION {schema}.begin_anew(wfs bigint[]) RETURNS void LANGUAGE sql AS $$
    DELETE FROM {schema}.step s USING unnest(wfs) AS b (wf)
    WHERE s.wf = b.wf AND s.seq > (SELECT min(l.seq) FROM {schema}.step l WHERE l.wf = b.wf);
    DELETE FROM {schema}.retry r WHERE r.wf = ANY(wfs);
    DELETE FROM {schema}.message m WHERE m.wf = ANY(wfs) AND m.topic IN ('shardflow.child', 'shardflow.after');
$$;

-- Suspension, messages, events, children and dependencies: see docs/architecture.md.

-- name: workflow_options
-- What a submission asks for beyond the usual (deadline, version, ...); NULL for most, which costs nothing.
ALTER TABLE {schema}.workflow ADD COLUMN options jsonb;

-- name: workflow_attributes
-- The user's own, for searching.
ALTER TABLE {schema}.workflow ADD COLUMN attributes jsonb;

-- name: outcome_status
-- Two more ways to end. What is there satisfies it, so nothing is read.
ALTER TABLE {schema}.outcome DROP CONSTRAINT outcome_status_check, ADD CONSTRAINT outcome_status_check
    CHECK (status IN ('succeeded', 'failed', 'cancelled', 'dead')) NOT VALID;

-- name: wait_for
-- What wakes a suspended workflow beside its time: a message on one of these topics; so many more ends of others.
ALTER TABLE {schema}.wait ADD COLUMN topics text[], ADD COLUMN missing integer;

-- name: message
-- What has arrived for a workflow. `seq` is drawn under the lock of the workflow's row, so that it goes up in the order of
-- the commits. A message without a key is deleted when it is received; one with a key stays, without its value, so that it
-- is not taken in again.
CREATE TABLE {schema}.message (
    wf bigint NOT NULL,
    seq bigint NOT NULL DEFAULT nextval('{schema}.key'),
    sent_at timestamptz NOT NULL DEFAULT now(),
    taken boolean NOT NULL DEFAULT false,
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C",
    value bytea,
    error text,
    PRIMARY KEY (wf, seq)
);

-- name: message_storage
-- As with the workflow's input.
ALTER TABLE {schema}.message ALTER COLUMN value SET STORAGE EXTERNAL;

-- name: message_key
-- A message with a key arrives once.
CREATE UNIQUE INDEX message_key ON {schema}.message (wf, topic, key) WHERE key IS NOT NULL;

-- name: event
-- The latest value that a workflow has set for a key; for whoever asks.
CREATE TABLE {schema}.event (
    wf bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now(),
    value bytea,
    PRIMARY KEY (wf, key)
);

-- name: event_storage
-- As with the workflow's input.
ALTER TABLE {schema}.event ALTER COLUMN value SET STORAGE EXTERNAL;

-- name: retry
-- A step that has failed and is to be tried again: how often, and the last error; deleted with its checkpoint.
CREATE TABLE {schema}.retry (
    wf bigint NOT NULL,
    seq bigint NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL,
    attempts smallint NOT NULL,
    name text NOT NULL,
    error text NOT NULL,
    PRIMARY KEY (wf, seq)
);

-- name: watcher
-- Who is to be told when a workflow ends, and on which topic. `late` says that it was registered after the submission: the
-- end may have been under way.
CREATE TABLE {schema}.watcher (
    wf bigint NOT NULL,
    topic text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    late boolean NOT NULL DEFAULT false,
    registered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (wf, topic, id)
);

-- name: watcher_late
-- For looking again at those registered just now.
CREATE INDEX watcher_late ON {schema}.watcher (registered_at) WHERE late;

-- name: outbox
-- What follows from a commit and belongs elsewhere: written with it, delivered by the holder of the lease (or, when that lease
-- is gone, by any other; 0 is a client's), then deleted. `target` is the id of the workflow that it is for.
CREATE TABLE {schema}.outbox (
    lease bigint NOT NULL,
    entry bigint NOT NULL DEFAULT nextval('{schema}.key'),
    written_at timestamptz NOT NULL DEFAULT now(),
    target text COLLATE "C" NOT NULL,
    topic text COLLATE "C" NOT NULL,
    key text COLLATE "C",
    value bytea,
    error text,
    PRIMARY KEY (lease, entry)
);

-- name: outbox_storage
-- As with the workflow's input.
ALTER TABLE {schema}.outbox ALTER COLUMN value SET STORAGE EXTERNAL;

-- name: cancel
-- Running workflows that are to be cancelled; their holder reads it and ends them itself, so that nothing is written after.
CREATE TABLE {schema}.cancel (
    wf bigint PRIMARY KEY,
    asked_at timestamptz NOT NULL DEFAULT now(),
    reason text
);

-- name: lane
-- What a worker asks for when it dequeues: the queue, and for a versioned workflow its version.
CREATE FUNCTION {schema}.lane(queue text, options jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN options ? 'version' THEN queue || E'\x1f' || (options ->> 'version') ELSE queue END
$$;

-- name: end_lease
-- As before, with lanes.
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
    SELECT CASE WHEN b.attempt > 3 THEN nextval('{schema}.key') ELSE b.wf END, b.wf, b.priority, b.attempt, true, b.lane
    FROM (
        SELECT h.wf, w.priority, least(h.attempt + counted, 32767) AS attempt, {schema}.lane(w.queue, w.options) AS lane
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

-- name: suspend
-- Takes workflows that the caller's claims hold out of work until their time, a message, or so many ends of others.
-- Whoever delivers to a workflow locks its row; what is committed before the lock is had is seen here, and whoever comes
-- later sees the `wait` row. A row that is being delivered to now is not waited for: its workflow looks again in a second.
-- Arrays of one length: `seens` is the last message that the workflow has seen; `topics` are joined by U+001F; delays and
-- counts may be NULL.
CREATE FUNCTION {schema}.suspend(wfs bigint[], delays float8[], attempts smallint[], reasons text[], seens bigint[],
    topics text[], missings integer[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    locked bigint[];
    back bigint;
BEGIN
    SELECT array_agg(l.wf) INTO locked FROM (
        SELECT w.wf FROM {schema}.workflow w WHERE w.wf = ANY(wfs) ORDER BY w.wf FOR NO KEY UPDATE SKIP LOCKED
    ) l;
    WITH given AS (
        SELECT g.wf, g.delay, g.attempt, g.reason, string_to_array(g.topics, E'\x1f') AS topics, g.missing, found.ends,
               g.wf = ANY(locked) AS mine, found.news OR EXISTS (SELECT FROM {schema}.cancel c WHERE c.wf = g.wf) AS news
        FROM unnest(wfs, delays, attempts, reasons, seens, topics, missings)
            AS g (wf, delay, attempt, reason, seen, topics, missing),
        LATERAL (
            SELECT count(*) FILTER (WHERE m.topic = 'shardflow.child') AS ends,
                   coalesce(bool_or(m.topic = ANY(string_to_array(g.topics, E'\x1f'))), false) AS news
            FROM {schema}.message m WHERE m.wf = g.wf AND m.seq > g.seen AND NOT m.taken
        ) found
    ), waiting AS (
        INSERT INTO {schema}.wait (wf, wake_at, attempt, reason, topics, missing)
        SELECT wf, least(now() + make_interval(secs => delay), CASE WHEN NOT coalesce(mine, false) THEN now() + interval '1 s' END),
               attempt, reason, topics, missing - ends
        FROM given WHERE NOT news AND (missing IS NULL OR missing > ends)
    )
    INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
    SELECT w.wf, w.wf, w.priority, g.attempt, true, {schema}.lane(w.queue, w.options)
    FROM given g JOIN {schema}.workflow w USING (wf) WHERE g.news OR g.missing <= g.ends;
    GET DIAGNOSTICS back = ROW_COUNT;
    IF back > 0 THEN
        PERFORM {schema}.ring();
    END IF;
END
$$;

-- name: ended
-- Writes, for workflows that end in this transaction, what their watchers are to be told; answers it.
CREATE FUNCTION {schema}.ended(wfs bigint[], holder bigint)
RETURNS TABLE (entry bigint, target text, topic text, key text, value bytea, error text) LANGUAGE sql AS $$
    WITH told AS (
        DELETE FROM {schema}.watcher r WHERE r.wf = ANY(wfs) RETURNING r.wf, r.topic, r.id
    )
    INSERT INTO {schema}.outbox AS o (lease, target, topic, key, value, error)
    SELECT holder, t.id, t.topic, w.id, e.output, e.error
    FROM told t JOIN {schema}.outcome e ON e.wf = t.wf JOIN {schema}.workflow w ON w.wf = t.wf
    RETURNING o.entry, o.target, o.topic, o.key, o.value, o.error
$$;

-- name: finish
-- Ends a workflow that is in no claim, in the caller's transaction, which holds the workflow's row.
CREATE FUNCTION {schema}.finish(ending bigint, ends_as text, why text) RETURNS void LANGUAGE sql AS $$
    DELETE FROM {schema}.wait WHERE wf = ending;
    INSERT INTO {schema}.outcome (wf, status, error) VALUES (ending, ends_as, why);
    SELECT count(*) FROM {schema}.ended(ARRAY[ending], 0);
$$;

-- name: deliver
-- Takes messages in, in the order given, and wakes whom they were awaited by; answers the ids that are not here.
-- A message with a key that is there already changes nothing. A dependency that failed ends the workflow that waits for it,
-- unless it is to run nevertheless.
CREATE FUNCTION {schema}.deliver(ids text[], topics text[], keys text[], vals bytea[], errors text[])
RETURNS SETOF text LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    woken bigint;
    hit record;
BEGIN
    PERFORM 1 FROM {schema}.workflow w WHERE w.id = ANY(ids) ORDER BY w.wf FOR NO KEY UPDATE;
    IF 'shardflow.after' = ANY(topics) THEN
        FOR hit IN
            SELECT DISTINCT ON (w.wf) w.wf, g.key, g.error
            FROM unnest(ids, topics, keys, errors) AS g (id, topic, key, error)
            JOIN {schema}.workflow w ON w.id = g.id JOIN {schema}.wait s ON s.wf = w.wf
            WHERE g.topic = 'shardflow.after' AND g.error IS NOT NULL AND w.options ->> 'on_failure' = 'fail'
                AND s.reason = 'after'
            ORDER BY w.wf
        LOOP
            PERFORM {schema}.finish(hit.wf, 'failed', json_build_object('type', 'shardflow.errors.DependencyFailed',
                'message', 'workflow ' || hit.key || ', after which it was to run, did not succeed: '
                || (hit.error::json ->> 'type') || ': ' || (hit.error::json ->> 'message'), 'traceback', '')::text);
        END LOOP;
    END IF;
    WITH made AS (
        INSERT INTO {schema}.message (wf, topic, key, value, error)
        SELECT s.wf, s.topic, s.key, s.value, s.error FROM (
            SELECT w.wf, g.* FROM unnest(ids, topics, keys, vals, errors)
                WITH ORDINALITY AS g (id, topic, key, value, error, n)
            JOIN {schema}.workflow w ON w.id = g.id ORDER BY g.n
        ) s
        ON CONFLICT DO NOTHING
        RETURNING wf, topic
    ), news AS (
        SELECT made.wf, array_agg(DISTINCT made.topic) AS topics,
               count(*) FILTER (WHERE made.topic IN ('shardflow.child', 'shardflow.after')) AS ends
        FROM made GROUP BY made.wf
    ), counted AS (
        UPDATE {schema}.wait s SET missing = s.missing - news.ends FROM news
        WHERE s.wf = news.wf AND s.missing > news.ends AND news.ends > 0 AND NOT coalesce(s.topics && news.topics, false)
    ), gone AS (
        DELETE FROM {schema}.wait s USING news
        WHERE s.wf = news.wf AND (s.topics && news.topics OR s.missing <= news.ends) RETURNING s.wf, s.attempt
    )
    INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
    SELECT w.wf, w.wf, w.priority, gone.attempt, true, {schema}.lane(w.queue, w.options)
    FROM gone JOIN {schema}.workflow w USING (wf);
    GET DIAGNOSTICS woken = ROW_COUNT;
    IF woken > 0 THEN
        PERFORM {schema}.ring();
    END IF;
    RETURN QUERY SELECT DISTINCT g.id FROM unnest(ids) AS g (id)
        WHERE NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.id = g.id);
END
$$;

-- name: watch
-- Registers who is to be told of the ends of these workflows; of one that has ended already, tells at once. Answers the
-- ids that are not here. An end that is under way is found by `overdue`.
CREATE FUNCTION {schema}.watch(ids text[], watchers text[], topic text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    done bigint[];
BEGIN
    INSERT INTO {schema}.watcher (wf, topic, id, late)
    SELECT w.wf, watch.topic, g.watcher, true
    FROM unnest(ids, watchers) AS g (id, watcher) JOIN {schema}.workflow w ON w.id = g.id
    ON CONFLICT DO NOTHING;
    SELECT array_agg(DISTINCT w.wf) INTO done FROM {schema}.workflow w JOIN {schema}.outcome o USING (wf)
    WHERE w.id = ANY(ids);
    IF done IS NOT NULL THEN
        PERFORM count(*) FROM {schema}.ended(done, 0);
        PERFORM {schema}.ring();
    END IF;
    RETURN QUERY SELECT DISTINCT g.id FROM unnest(ids) AS g (id)
        WHERE NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.id = g.id);
END
$$;

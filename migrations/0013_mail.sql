-- Messages: what is not read yet is found however much was; errors of others with characters that no text can hold.

-- name: message_unread
-- Finds what is not taken yet, without reading what is.
CREATE INDEX message_unread ON {schema}.message (wf, topic, seq) WHERE NOT taken;

-- name: readable
-- An error as it is stored, JSON text, without those characters that JSON can hold and text cannot: NUL and halves of
-- surrogate pairs. U+FFFD stands for them.
CREATE FUNCTION {schema}.readable(error text) RETURNS json LANGUAGE sql IMMUTABLE AS $$
    SELECT regexp_replace(error, '\\u0000|\\u[dD][89abAB][0-9a-fA-F]{{2}}(?!\\u[dD][c-fC-F][0-9a-fA-F]{{2}})'
        || '|(?<!\\u[dD][89abAB][0-9a-fA-F]{{2}})\\u[dD][c-fC-F][0-9a-fA-F]{{2}}', '\\ufffd', 'g')::json
$$;

-- name: deliver
-- As before; a dependency's error may be any text, the end of a child is of no use to a parent that has succeeded.
CREATE OR REPLACE FUNCTION {schema}.deliver(ids text[], topics text[], keys text[], vals bytea[], errors text[])
RETURNS SETOF text LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    woken bigint;
    hit record;
BEGIN
    PERFORM 1 FROM {schema}.workflow w WHERE w.id = ANY(ids) ORDER BY w.wf FOR NO KEY UPDATE;
    IF 'shardflow.after' = ANY(topics) THEN
        FOR hit IN
            SELECT DISTINCT ON (w.wf) w.wf, g.key, {schema}.readable(g.error) AS error
            FROM unnest(ids, topics, keys, errors) AS g (id, topic, key, error)
            JOIN {schema}.workflow w ON w.id = g.id JOIN {schema}.wait s ON s.wf = w.wf
            WHERE g.topic = 'shardflow.after' AND g.error IS NOT NULL AND w.options ->> 'on_failure' = 'fail'
                AND s.reason = 'after'
            ORDER BY w.wf
        LOOP
            PERFORM {schema}.finish(hit.wf, 'failed', json_build_object('type', 'shardflow.errors.DependencyFailed',
                'message', left('workflow ' || hit.key || ', after which it was to run, did not succeed: '
                || (hit.error ->> 'type') || ': ' || (hit.error ->> 'message'), 16384), 'traceback', '')::text);
        END LOOP;
    END IF;
    WITH made AS (
        INSERT INTO {schema}.message (wf, topic, key, value, error)
        SELECT s.wf, s.topic, s.key, s.value, s.error FROM (
            SELECT w.wf, g.* FROM unnest(ids, topics, keys, vals, errors)
                WITH ORDINALITY AS g (id, topic, key, value, error, n)
            JOIN {schema}.workflow w ON w.id = g.id
            WHERE g.topic <> 'shardflow.child' OR NOT EXISTS (
                SELECT FROM {schema}.outcome o WHERE o.wf = w.wf AND o.status = 'succeeded'
            )
            ORDER BY g.n
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

-- name: ended
-- As before; whoever runs after another one is not given its result, however many there are.
CREATE OR REPLACE FUNCTION {schema}.ended(wfs bigint[], holder bigint)
RETURNS TABLE (entry bigint, target text, topic text, key text, value bytea, error text) LANGUAGE sql AS $$
    SELECT {schema}.over(wfs);
    WITH told AS (
        DELETE FROM {schema}.watcher r WHERE r.wf = ANY(wfs) RETURNING r.wf, r.topic, r.id
    )
    INSERT INTO {schema}.outbox AS o (lease, target, topic, key, value, error)
    SELECT holder, t.id, t.topic, w.id, CASE WHEN t.topic <> 'shardflow.after' THEN e.output END, e.error
    FROM told t JOIN {schema}.outcome e ON e.wf = t.wf JOIN {schema}.workflow w ON w.wf = t.wf
    RETURNING o.entry, o.target, o.topic, o.key, o.value, o.error
$$;

-- name: begin_anew
-- As before. Of messages that were received a day ago no client sends a repetition any more, if it had drawn the key itself;
-- some of these are forgotten at each beginning.
CREATE OR REPLACE FUNCTION {schema}.begin_anew(wfs bigint[]) RETURNS void LANGUAGE sql AS $$
    DELETE FROM {schema}.step s USING unnest(wfs) AS b (wf)
    WHERE s.wf = b.wf AND s.seq > (SELECT min(l.seq) FROM {schema}.step l WHERE l.wf = b.wf);
    DELETE FROM {schema}.retry r WHERE r.wf = ANY(wfs);
    DELETE FROM {schema}.message m WHERE m.wf = ANY(wfs) AND m.topic IN ('shardflow.child', 'shardflow.after');
    DELETE FROM {schema}.message m USING (
        SELECT f.wf, f.seq FROM unnest(wfs) AS b (wf), LATERAL (
            SELECT x.wf, x.seq, x.taken, x.sent_at, x.key FROM {schema}.message x WHERE x.wf = b.wf ORDER BY x.seq LIMIT 10000
        ) f WHERE f.taken AND f.sent_at < now() - interval '1 day' AND f.key ~ '^\x1f[0-9a-f]{{32}}$'
    ) old WHERE m.wf = old.wf AND m.seq = old.seq;
$$;

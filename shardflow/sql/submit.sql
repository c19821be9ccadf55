-- name: allow
-- Gives the statements of this transaction so many milliseconds: a large batch takes its time. Parameters: text.
SELECT set_config('statement_timeout', %s, true)

-- name: admit
-- Fails the transaction with SF002 unless the caller's generation is the shard's own. Parameters: generation.
SELECT {schema}.admit(%s)

-- name: insert
-- Creates the workflows whose id is new and makes them ready, in the order given; answers only for the new ones.
-- Parameters, arrays of one length: ids, names, queues, slots, priorities, inputs.
WITH made AS (
    INSERT INTO {schema}.workflow (id, name, queue, slot, priority, input)
    SELECT id, name, queue, slot, priority, input
    FROM unnest(%s, %s, %s, %s, %s, %s) AS given (id, name, queue, slot, priority, input)
    ON CONFLICT (id) DO NOTHING
    RETURNING wf, id, queue, priority
), queued AS (
    INSERT INTO {schema}.ready (seq, wf, priority, queue)
    SELECT wf, wf, priority, queue FROM made
)
SELECT id, wf FROM made

-- name: insert_more
-- The same for submissions that ask for more: some wait for a time or for other workflows, some have a parent that is told
-- of their end. Parameters, arrays of one length: ids, names, queues, slots, priorities, inputs, options and attributes as
-- JSON text or NULL, seconds of delay or NULL, how many workflows they run after or NULL, parents or NULL; then two of
-- another length: ids, and the workflows that each runs after.
WITH given AS (
    SELECT * FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) WITH ORDINALITY
        AS g (id, name, queue, slot, priority, input, options, attributes, delay, missing, parent, n)
), made AS (
    INSERT INTO {schema}.workflow (id, name, queue, slot, priority, input, options, attributes)
    SELECT id, name, queue, slot, priority, input, CASE WHEN options::jsonb ? 'timeout'
        THEN options::jsonb || jsonb_build_object('deadline', date_part('epoch', now()) + (options::jsonb ->> 'timeout')::float8)
        ELSE options::jsonb END, attributes::jsonb
    FROM given ORDER BY n
    ON CONFLICT (id) DO NOTHING
    RETURNING wf, id, queue, priority, options
), placed AS (
    SELECT DISTINCT ON (m.wf) m.wf, m.priority, {schema}.lane(m.queue, m.options) AS lane, g.delay, g.missing, g.parent
    FROM made m JOIN given g USING (id) ORDER BY m.wf, g.n
), queued AS (
    INSERT INTO {schema}.ready (seq, wf, priority, queue)
    SELECT wf, wf, priority, lane FROM placed WHERE delay IS NULL AND missing IS NULL
), waiting AS (
    INSERT INTO {schema}.wait (wf, wake_at, reason, missing)
    SELECT wf, now() + make_interval(secs => delay), CASE WHEN missing IS NULL THEN 'delay' ELSE 'after' END, missing
    FROM placed WHERE delay IS NOT NULL OR missing IS NOT NULL
), watched AS (
    INSERT INTO {schema}.watcher (wf, topic, id) SELECT wf, 'shardflow.child', parent FROM placed WHERE parent IS NOT NULL
), asked AS (
    INSERT INTO {schema}.outbox (lease, target, topic, key)
    SELECT 0, d.after, 'shardflow.watch', d.id FROM unnest(%s, %s) AS d (id, after) JOIN made USING (id)
)
SELECT id, wf FROM made

-- name: watch
-- Has a parent told of the ends of workflows that were there already. Parameters: ids, parents, topic.
SELECT {schema}.watch(%s, %s, %s)

-- name: deliver
-- Takes messages in; answers the ids that are not here. Parameters, arrays of one length: ids, topics, keys, values, errors.
SELECT * FROM {schema}.deliver(%s, %s, %s, %s, %s)

-- name: event
-- The latest value of an event; a row with NULL where it was not set. Parameters: key, id.
SELECT e.value, e.wf IS NOT NULL FROM {schema}.workflow w LEFT JOIN {schema}.event e ON e.wf = w.wf AND e.key = %s
WHERE w.id = %s

-- name: ring
-- Wakes a sleeping worker when the transaction commits; does nothing where none sleeps.
SELECT {schema}.ring()

-- name: existing
-- What the submissions of these ids were, to tell a repeated submit from a conflict. Parameters: ids.
SELECT id, wf, name, input FROM {schema}.workflow WHERE id = ANY(%s)

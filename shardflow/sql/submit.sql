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

-- name: submit
-- The same as a whole transaction: admitted and with the bell rung; a row at least, without an id where nothing is new.
-- Parameters, arrays of one length: ids, names, queues, slots, priorities, inputs; before them the generation.
WITH admitted AS MATERIALIZED (
    SELECT {schema}.admit(%s)
), made AS (
    INSERT INTO {schema}.workflow (id, name, queue, slot, priority, input)
    SELECT id, name, queue, slot, priority, input
    FROM admitted, unnest(%s, %s, %s, %s, %s, %s) AS given (id, name, queue, slot, priority, input)
    ON CONFLICT (id) DO NOTHING
    RETURNING wf, id, queue, priority
), queued AS (
    INSERT INTO {schema}.ready (seq, wf, priority, queue)
    SELECT wf, wf, priority, queue FROM made
), rung AS MATERIALIZED (
    SELECT {schema}.ring()
)
SELECT id, wf FROM rung LEFT JOIN made ON true

-- name: insert_new
-- The same for many at once. Parameters, arrays of one length: ids, names, queues, slots, priorities, inputs.
SELECT id, wf FROM {schema}.insert_new(%s, %s, %s, %s, %s, %s)

-- name: insert_more
-- The same as `insert` for submissions that ask for more: some wait for a time or for other workflows, some have a parent that is told
-- of their end. Parameters, arrays of one length: ids, names, queues, slots, priorities, inputs, options and attributes as
-- JSON text or NULL, seconds of delay or NULL, how many workflows they run after or NULL, parents or NULL, keys of which one
-- is active at once or NULL, keys of which some are and how many or NULL; then two of another length: ids, and the workflows
-- that each runs after.
-- Nothing is joined: our sessions look up row by row, which is quadratic among what is given. A subquery behind IN that cannot
-- become a join (hence IS TRUE) is hashed whatever the planner is told. Keys are drawn as the rows are written, behind what
-- `reserve` may wait for: they and the times of submission go up together.
WITH given AS MATERIALIZED (
    SELECT g.id, g.name, g.queue, g.slot, g.priority, g.input,
           CASE WHEN g.options::jsonb ? 'timeout' THEN g.options::jsonb
               || jsonb_build_object('deadline', date_part('epoch', now()) + (g.options::jsonb ->> 'timeout')::float8)
           ELSE g.options::jsonb END AS options, g.attributes, g.delay, g.missing, g.parent, g.dedup, g.key, g.most, g.n
    FROM unnest(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) WITH ORDINALITY
        AS g (id, name, queue, slot, priority, input, options, attributes, delay, missing, parent, dedup, key, most, n)
), reserved AS MATERIALIZED (
    SELECT r.id, r.admitted FROM (
        SELECT array_agg(id ORDER BY n) AS ids, array_agg(dedup ORDER BY n) AS dedups, array_agg(key ORDER BY n) AS keys,
               array_agg(most ORDER BY n) AS mosts FROM given
    ) a, {schema}.reserve(a.ids, a.dedups, a.keys, a.mosts) r
), chosen AS MATERIALIZED (
    SELECT nextval('{schema}.key') AS wf, c.* FROM (
        SELECT * FROM given WHERE (dedup IS NULL AND key IS NULL) OR id IN (SELECT id FROM reserved) ORDER BY n
    ) c
), made AS (
    INSERT INTO {schema}.workflow (wf, id, name, queue, slot, priority, input, options, attributes)
    SELECT wf, id, name, queue, slot, priority, input, options, attributes::jsonb FROM chosen
    ON CONFLICT (id) DO NOTHING
    RETURNING wf
), placed AS MATERIALIZED (
    SELECT wf, id, priority, {schema}.lane(queue, options) AS lane, delay, missing, parent,
           to_timestamp((options ->> 'deadline')::float8) AS deadline, key, most,
           (dedup IS NULL AND key IS NULL) OR id IN (SELECT id FROM reserved WHERE admitted) AS admitted
    FROM chosen WHERE (wf IN (SELECT wf FROM made)) IS TRUE
), queued AS (
    INSERT INTO {schema}.ready (seq, wf, priority, queue)
    SELECT wf, wf, priority, lane FROM placed WHERE delay IS NULL AND missing IS NULL AND admitted
), keyed AS (
    INSERT INTO {schema}.keyed (wf, key, most, priority, admitted)
    SELECT wf, key, most, priority, admitted FROM placed WHERE key IS NOT NULL
), waiting AS (
    INSERT INTO {schema}.wait (wf, wake_at, reason, missing)
    SELECT wf, least(now() + make_interval(secs => delay), deadline), CASE WHEN missing IS NOT NULL THEN 'after'
        WHEN delay IS NOT NULL THEN 'delay' ELSE 'key' END, missing
    FROM placed WHERE delay IS NOT NULL OR missing IS NOT NULL OR NOT admitted
), watched AS (
    INSERT INTO {schema}.watcher (wf, topic, id) SELECT wf, 'shardflow.child', parent FROM placed WHERE parent IS NOT NULL
), asked AS (
    INSERT INTO {schema}.outbox (lease, target, topic, key)
    SELECT 0, d.after, 'shardflow.watch', d.id FROM unnest(%s, %s) AS d (id, after)
    WHERE (d.id IN (SELECT id FROM placed)) IS TRUE
)
SELECT id, wf FROM placed

-- name: active
-- The active workflows of these keys of which there may be only one. Parameters: keys.
SELECT d.key, w.id, w.wf, w.name FROM {schema}.dedup d JOIN {schema}.workflow w USING (id) WHERE d.key = ANY(%s)

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

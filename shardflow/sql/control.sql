-- name: cancel
-- Cancels workflows; answers which are here, and whether each had not ended yet. Parameters: ids, reasons.
SELECT id, took FROM {schema}.cancel(%s, %s)

-- name: resume
-- Lets workflows that have ended go on; answers which are here, and whether each was to go on. Parameters: ids, afresh.
SELECT id, took FROM {schema}.resume(%s, %s)

-- name: source
-- A workflow's submission, to be copied. Parameters: id.
SELECT wf, name, queue, priority, input, options, attributes::text FROM {schema}.workflow WHERE id = %s

-- name: record
-- All checkpoints of a workflow, with their times in seconds since 1970. Parameters: wf.
SELECT seq, attempts, name, output, error, date_part('epoch', finished_at) FROM {schema}.step WHERE wf = %s ORDER BY seq

-- name: fork
-- Creates a workflow with checkpoints and makes it ready, unless its id is there; answers its key where it is new.
-- Parameters: id, name, queue, slot, priority, input, options, seconds of its time limit or NULL, options, attributes; then
-- arrays of one length: seqs, attempts, names, outputs, errors, times; id; ids of children whose ends it is to hear.
WITH made AS (
    INSERT INTO {schema}.workflow (id, name, queue, slot, priority, input, options, attributes)
    SELECT %s, %s, %s, %s, %s, %s, coalesce(%s::jsonb || jsonb_build_object('deadline',
        date_part('epoch', now()) + %s::float8), %s::jsonb), %s::jsonb
    ON CONFLICT (id) DO NOTHING
    RETURNING wf, queue, priority, options
), copied AS (
    INSERT INTO {schema}.step (wf, seq, attempts, name, output, error, finished_at)
    SELECT made.wf, g.seq, g.attempts, g.name, g.output, g.error, to_timestamp(g.at)
    FROM made, unnest(%s, %s, %s, %s, %s, %s) AS g (seq, attempts, name, output, error, at)
), queued AS (
    INSERT INTO {schema}.ready (seq, wf, priority, replay, queue)
    SELECT wf, wf, priority, true, {schema}.lane(queue, options) FROM made
), watching AS (
    INSERT INTO {schema}.outbox (lease, target, topic, key, value)
    SELECT 0, g.child, 'shardflow.watch', %s, 'shardflow.child' FROM made, unnest(%s) AS g (child)
), rung AS (
    SELECT {schema}.ring()
)
SELECT wf FROM made, rung

-- name: pause
-- Nothing more is claimed from these queues; answers those of which that is new. Parameters: queues.
INSERT INTO {schema}.paused (queue) SELECT unnest(%s) ON CONFLICT DO NOTHING RETURNING queue

-- name: unpause
-- Claims go on; answers the queues that were paused. Parameters: queues.
WITH gone AS (
    DELETE FROM {schema}.paused WHERE queue = ANY(%s) RETURNING queue
)
SELECT queue, {schema}.ring() FROM gone

-- name: queues
-- How many workflows are ready in each lane; then the queues that are paused, and since when.
SELECT queue, count(*), NULL FROM {schema}.ready GROUP BY queue
UNION ALL
SELECT queue, 0, paused_at FROM {schema}.paused

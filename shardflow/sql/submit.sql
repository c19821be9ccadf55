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

-- name: ring
-- Wakes a sleeping worker when the transaction commits; does nothing where none sleeps.
SELECT {schema}.ring()

-- name: existing
-- What the submissions of these ids were, to tell a repeated submit from a conflict. Parameters: ids.
SELECT id, wf, name, input FROM {schema}.workflow WHERE id = ANY(%s)

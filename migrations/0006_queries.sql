-- What lists of workflows are read by; none of it is written for a workflow that succeeds and has no attributes.

-- name: workflow_submitted_at
-- The moment at which the row is made, as its key is, and not at which its transaction began: so both go up together, and a
-- time is found among the keys by bisection, without an index.
ALTER TABLE {schema}.workflow ALTER COLUMN submitted_at SET DEFAULT clock_timestamp();

-- name: outcome_unlucky
-- The ends that somebody looks for are few among those that went well.
CREATE INDEX outcome_unlucky ON {schema}.outcome (status, wf) WHERE status <> 'succeeded';

-- name: workflow_attributes_index
-- Finds workflows by what their attributes contain.
CREATE INDEX workflow_attributes ON {schema}.workflow USING gin (attributes jsonb_path_ops)
WHERE attributes IS NOT NULL;

-- Many at once: submissions, and children of one workflow.

-- name: insert_new
-- Creates workflows whose ids are new and makes them ready, in the order given; answers only for the new ones. All of them being
-- new is the rule, and costs a sixth less where nothing is said about conflicts. Where one is not, all of them begin again, and
-- the transaction's other statements like this one know it.
CREATE FUNCTION {schema}.insert_new(ids text[], names text[], queues text[], slots integer[], priorities smallint[],
    inputs bytea[]) RETURNS TABLE (id text, wf bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    made_ids text[];
    made_wfs bigint[];
BEGIN
    IF current_setting('shardflow.some_are_there', true) IS DISTINCT FROM 'yes' THEN
        BEGIN
            WITH made AS (
                INSERT INTO {schema}.workflow (id, name, queue, slot, priority, input)
                SELECT g.id, g.name, g.queue, g.slot, g.priority, g.input
                FROM unnest(ids, names, queues, slots, priorities, inputs) AS g (id, name, queue, slot, priority, input)
                RETURNING wf, id, queue, priority
            ), queued AS (
                INSERT INTO {schema}.ready (seq, wf, priority, queue) SELECT wf, wf, priority, queue FROM made
            )
            SELECT array_agg(made.id), array_agg(made.wf) INTO made_ids, made_wfs FROM made;
            RETURN QUERY SELECT m.id, m.wf FROM unnest(made_ids, made_wfs) AS m (id, wf);
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            PERFORM set_config('shardflow.some_are_there', 'yes', true);
        END;
    END IF;
    RETURN QUERY WITH made AS (
        INSERT INTO {schema}.workflow (id, name, queue, slot, priority, input)
        SELECT g.id, g.name, g.queue, g.slot, g.priority, g.input
        FROM unnest(ids, names, queues, slots, priorities, inputs) AS g (id, name, queue, slot, priority, input)
        ON CONFLICT (id) DO NOTHING
        RETURNING wf, id, queue, priority
    ), queued AS (
        INSERT INTO {schema}.ready (seq, wf, priority, queue) SELECT wf, wf, priority, queue FROM made
    )
    SELECT made.id, made.wf FROM made;
END
$$;

-- name: cancel_children
-- What has been recorded of a start is read once, not once for each child, and each child's end is looked up: a scalar subquery
-- cannot become a join, which the planner would make without an index where it knows nothing of the tables.
CREATE OR REPLACE FUNCTION {schema}.cancel_children(wfs bigint[], others text[], holder bigint)
RETURNS TABLE (entry bigint, target text, topic text, key text, value bytea, error text) LANGUAGE sql AS $$
    WITH settled AS (
        DELETE FROM {schema}.cancel c WHERE c.wf = ANY(wfs)
    ), record AS MATERIALIZED (
        SELECT s.wf, convert_from(s.output, 'UTF8')::jsonb AS children FROM {schema}.step s
        WHERE s.wf = ANY(wfs) AND s.name = 'shardflow.start' AND s.output IS NOT NULL
    ), started AS MATERIALIZED (
        SELECT wf, children ->> 'base' AS base, (children ->> 'count')::integer AS count, children -> 'given' AS given
        FROM record WHERE NOT children ? 'borrowed'
    ), child AS (
        SELECT s.wf, coalesce(s.given ->> n, s.base || CASE WHEN s.count < 0 THEN '' ELSE n::text END) AS id
        FROM started s, LATERAL generate_series(0, CASE WHEN s.count < 0 THEN 0 ELSE s.count - 1 END) AS n
    )
    INSERT INTO {schema}.outbox AS o (lease, target, topic, value)
    SELECT holder, wanted.id, 'shardflow.cancel', 'the workflow that had started it was ended' FROM (
        SELECT c.id FROM child c WHERE (
            SELECT m.seq FROM {schema}.message m WHERE m.wf = c.wf AND m.topic = 'shardflow.child' AND m.key = c.id LIMIT 1
        ) IS NULL
        UNION SELECT unnest(others)
    ) wanted
    RETURNING o.entry, o.target, o.topic, o.key, o.value, o.error
$$;

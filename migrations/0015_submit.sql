-- Many submissions at once.

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

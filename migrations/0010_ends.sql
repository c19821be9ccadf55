-- Ends in one call: a turn asks one thing less.

-- name: end_all
-- Ends workflows, and answers what is to be told of it elsewhere, which lies in the outbox now.
CREATE FUNCTION {schema}.end_all(wfs bigint[], statuses text[], outputs bytea[], errors text[], holder bigint)
RETURNS TABLE (entry bigint, target text, topic text, key text, value bytea, error text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.outcome (wf, status, output, error)
    SELECT unnest(wfs), unnest(statuses), unnest(outputs), unnest(errors);
    RETURN QUERY SELECT e.entry, e.target, e.topic, e.key, e.value, e.error FROM {schema}.ended(wfs, holder) e;
END
$$;

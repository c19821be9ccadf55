-- Plans that look things up at any size, whatever the statistics say and however old the plans are.

-- name: sweep
-- As before; what is ready is looked up by its place in its lane, in the lane of suspects by walking along that.
CREATE OR REPLACE FUNCTION {schema}.sweep() RETURNS void LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    old bigint[];
    hit record;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.cancel) THEN
        RETURN;
    END IF;
    DELETE FROM {schema}.cancel c WHERE c.wf = ANY(ARRAY(
        SELECT x.wf FROM {schema}.cancel x WHERE EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = x.wf)
        FOR UPDATE SKIP LOCKED
    ));
    WITH looked AS (
        UPDATE {schema}.cancel c SET looked_at = now() WHERE c.wf = ANY(ARRAY(
            SELECT x.wf FROM {schema}.cancel x WHERE x.looked_at < now() - interval '5 s'
            ORDER BY x.wf LIMIT 1000 FOR UPDATE SKIP LOCKED
        ))
        RETURNING c.wf
    )
    SELECT array_agg(l.wf) INTO old FROM looked l;
    IF old IS NULL THEN
        RETURN;
    END IF;
    FOR hit IN
        DELETE FROM {schema}.ready r WHERE r.ctid = ANY(ARRAY(
            SELECT x.ctid FROM {schema}.workflow w JOIN {schema}.ready x
                ON x.queue = {schema}.lane(w.queue, w.options) AND x.priority = w.priority AND x.seq = w.wf
            WHERE w.wf = ANY(old) AND x.wf = w.wf FOR UPDATE OF x SKIP LOCKED
        ) || ARRAY(
            SELECT x.ctid FROM {schema}.workflow w JOIN {schema}.ready x
                ON x.queue = {schema}.lane(w.queue, w.options, 32767) AND x.priority = w.priority
            WHERE w.wf = ANY(old) AND x.wf = w.wf FOR UPDATE OF x SKIP LOCKED
        ))
        RETURNING r.wf
    LOOP
        PERFORM {schema}.conclude(hit.wf, 'cancelled', {schema}.cancellation(c.reason))
        FROM {schema}.cancel c WHERE c.wf = hit.wf;
        PERFORM count(*) FROM {schema}.cancel_children(ARRAY[hit.wf], '{{}}', 0);
    END LOOP;
END
$$;

-- name: plans_of_cancel
-- What clients and keepers call plans as a turn does behind its fence, also where a pooler keeps sessions from settings.
ALTER FUNCTION {schema}.cancel(text[], text[]) SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan;

-- name: plans_of_resume
-- Likewise.
ALTER FUNCTION {schema}.resume(text[], boolean) SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan;

-- name: plans_of_watch
-- Likewise.
ALTER FUNCTION {schema}.watch(text[], text[], text) SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan;

-- name: reserve
-- As before, likewise; whether a key is the submission's own is asked so that the planner cannot read all keys for it.
CREATE OR REPLACE FUNCTION {schema}.reserve(ids text[], dedups text[], keys text[], mosts integer[])
RETURNS TABLE (id text, admitted boolean) LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF array_remove(keys, NULL) = '{{}}' AND array_remove(dedups, NULL) = '{{}}' THEN
        RETURN;
    END IF;
    PERFORM {schema}.lock_keys(array_remove(keys, NULL));
    INSERT INTO {schema}.dedup (key, id)
    SELECT DISTINCT ON (g.dedup) g.dedup, g.id FROM unnest(ids, dedups) WITH ORDINALITY AS g (id, dedup, n)
    WHERE g.dedup IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.id = g.id)
    ORDER BY g.dedup, g.n
    ON CONFLICT DO NOTHING;
    RETURN QUERY
    SELECT f.id, f.key IS NULL OR f.place + (
        SELECT count(*) FROM {schema}.keyed k WHERE k.key = f.key AND k.admitted
    ) <= f.most AND NOT EXISTS (
        SELECT FROM {schema}.keyed k WHERE k.key = f.key AND NOT k.admitted
    ) FROM (
        SELECT u.*, row_number() OVER (PARTITION BY u.key ORDER BY u.n) AS place FROM (
            SELECT DISTINCT ON (g.id) g.id, g.key, g.most, g.n
            FROM unnest(ids, dedups, keys, mosts) WITH ORDINALITY AS g (id, dedup, key, most, n)
            WHERE (g.key IS NOT NULL OR g.dedup IS NOT NULL)
                AND NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.id = g.id)
                AND (g.dedup IS NULL OR (SELECT d.id FROM {schema}.dedup d WHERE d.key = g.dedup) = g.id)
            ORDER BY g.id, g.n
        ) u
    ) f;
END
$$;

-- name: plans_of_give
-- Likewise.
ALTER FUNCTION {schema}.give(text, text, text, integer, integer) SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan;

-- name: plans_of_end_lease
-- Likewise.
ALTER FUNCTION {schema}.end_lease(bigint, integer) SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan;

-- name: workflow_attributes_pending
-- Each search reads all entries that the index has not taken in yet: not more than 256 kB of them.
ALTER INDEX {schema}.workflow_attributes SET (gin_pending_list_limit = 256);

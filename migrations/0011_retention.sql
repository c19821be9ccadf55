-- Retention: workflows that ended long ago are deleted, see docs/architecture.md.

-- name: retention
-- How far the deletion of what ended so has come: what lies up to `front`, in the order of the keys, has been looked at, all
-- of it once more from `thorough_at` on. One worker at a time is at it, `holder`, until its time is over.
CREATE TABLE {schema}.retention (
    status text COLLATE "C" PRIMARY KEY,
    front bigint NOT NULL DEFAULT 0,
    thorough_at timestamptz NOT NULL DEFAULT '-infinity',
    holder text,
    held_until timestamptz NOT NULL DEFAULT '-infinity',
    deleted bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- name: retention_statuses
-- Here, so that whoever takes one needs no look whether it is there.
INSERT INTO {schema}.retention (status) VALUES ('succeeded'), ('failed'), ('cancelled'), ('dead');

-- name: forget
-- Deletes those of these workflows that ended so (NULL: however), before then, with all that is recorded of them; answers them.
-- Nobody waits for it, and it waits for nobody: rows that somebody is at are passed over. So are workflows that a receipt
-- names or whose watchers are not told yet, and those of slots that are not open to writes here. The row of the workflow is
-- locked first, and only then it is looked whether it has ended: who lets it go on again holds that lock.
CREATE FUNCTION {schema}.forget(wfs bigint[], ended_as text, ended_before timestamptz) RETURNS bigint[] LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    locked bigint[];
    gone bigint[];
BEGIN
    SELECT array_agg(l.wf) INTO locked FROM (
        SELECT w.wf FROM {schema}.workflow w
        WHERE w.wf = ANY(wfs) AND w.slot IN (SELECT s.slot FROM {schema}.slot s WHERE s.state = 'active')
        FOR UPDATE OF w SKIP LOCKED
    ) l;
    IF locked IS NULL THEN
        RETURN '{{}}';
    END IF;
    WITH spared AS (
        SELECT u.wf FROM {schema}.claim c, unnest(c.wfs) AS u (wf)
        UNION ALL
        SELECT r.wf FROM {schema}.watcher r WHERE r.wf = ANY(locked)
    ), done AS (
        DELETE FROM {schema}.outcome o
        WHERE o.wf = ANY(locked) AND o.status = coalesce(ended_as, o.status) AND o.finished_at < ended_before
            AND o.wf NOT IN (SELECT spared.wf FROM spared)
        RETURNING o.wf
    )
    SELECT array_agg(done.wf) INTO gone FROM done;
    IF gone IS NULL THEN
        RETURN '{{}}';
    END IF;
    DELETE FROM {schema}.step s WHERE s.wf = ANY(gone);
    DELETE FROM {schema}.message m WHERE m.wf = ANY(gone);
    DELETE FROM {schema}.event e WHERE e.wf = ANY(gone);
    DELETE FROM {schema}.retry r WHERE r.wf = ANY(gone);
    DELETE FROM {schema}.cancel c WHERE c.wf = ANY(gone);
    DELETE FROM {schema}.workflow w WHERE w.wf = ANY(gone);
    RETURN gone;
END
$$;

-- name: purge
-- The same for single workflows, however lately they ended; answers which are here, and whether each has been deleted. A
-- receipt that names one still is done with it.
CREATE FUNCTION {schema}.purge(ids text[], ended_before timestamptz) RETURNS TABLE (id text, took boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    present text[];
    keys bigint[];
    ended bigint[];
    gone bigint[];
BEGIN
    PERFORM FROM {schema}.workflow w WHERE w.id = ANY(ids) ORDER BY w.wf FOR UPDATE;
    SELECT array_agg(w.id), array_agg(w.wf), array_agg(w.wf) FILTER (WHERE o.finished_at < ended_before)
        INTO present, keys, ended
    FROM {schema}.workflow w LEFT JOIN {schema}.outcome o USING (wf) WHERE w.id = ANY(ids);
    UPDATE {schema}.claim c SET (wfs, attempts) = (
        SELECT coalesce(array_agg(u.wf ORDER BY u.n), '{{}}'), coalesce(array_agg(u.attempt ORDER BY u.n), '{{}}')
        FROM unnest(c.wfs, c.attempts) WITH ORDINALITY AS u (wf, attempt, n) WHERE u.wf <> ALL(ended)
    ) WHERE c.wfs && ended;
    gone := {schema}.forget(ended, NULL, ended_before);
    RETURN QUERY SELECT u.id, u.wf = ANY(gone) FROM unnest(present, keys) AS u (id, wf);
END
$$;

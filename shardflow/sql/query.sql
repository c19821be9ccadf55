-- Lists and counts of workflows. A list is a walk along the keys, newest or oldest first ({order}), in stretches of the
-- ranges that shards draw their keys from. It looks at so many rows at the most; the last of these is answered too, whether it
-- fits or not, so that the answer says how far it came.

-- name: begin
-- All statements of an answer see one moment.
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: walking
-- For the statements that follow in this transaction: plans that look things up in the order of an index, so that a walk
-- ends as soon as it has found enough, whatever the statistics say.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('max_parallel_workers_per_gather', '0', true),
       set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('enable_sort', 'off', true), set_config('enable_indexscan', 'on', true)

-- name: searching
-- For the next statement: a plan that reads something whole, as it must: an index of attributes, or what is ready.
SELECT set_config('enable_bitmapscan', 'on', true), set_config('enable_indexscan', 'off', true)

-- name: counting
-- For the statements that follow in this transaction: what is to be counted is read, by whatever plan.
SELECT set_config('enable_seqscan', 'on', true), set_config('enable_hashjoin', 'on', true),
       set_config('enable_mergejoin', 'on', true)

-- name: ranges
-- The ranges of keys that the shard has workflows of, with the first and the last key in each. Slots that move bring
-- theirs along.
WITH RECURSIVE range AS (
    (SELECT wf AS last FROM {schema}.workflow ORDER BY wf DESC LIMIT 1)
    UNION ALL
    SELECT below.wf FROM range, LATERAL (
        SELECT wf FROM {schema}.workflow WHERE wf < range.last >> 44 << 44 ORDER BY wf DESC LIMIT 1
    ) below
)
SELECT range.last >> 44 AS part, first.wf, range.last
FROM range, LATERAL (
    SELECT wf FROM {schema}.workflow WHERE wf >= range.last >> 44 << 44 ORDER BY wf LIMIT 1
) first

-- name: edge
-- For each stretch the first key, or where there is none the one behind the last, whose workflow was submitted at a moment or
-- later; found by bisection. Parameters: lows, highs, moment, moment.
WITH RECURSIVE half AS (
    SELECT n, low, high + 1 AS high FROM unnest(%s, %s) WITH ORDINALITY AS stretch (low, high, n)
    UNION ALL
    SELECT half.n, CASE WHEN probe.wf < half.high AND probe.submitted_at < %s THEN probe.wf + 1 ELSE half.low END,
           CASE WHEN probe.wf < half.high AND probe.submitted_at < %s THEN half.high
                ELSE half.low + (half.high - half.low) / 2 END
    FROM half LEFT JOIN LATERAL (
        SELECT wf, submitted_at FROM {schema}.workflow WHERE wf >= half.low + (half.high - half.low) / 2
        ORDER BY wf LIMIT 1
    ) probe ON true
    WHERE half.low < half.high
)
SELECT low FROM half WHERE low = high ORDER BY n

-- name: fits
-- The condition, used in the others, that a submission `w` is one of those asked for.
-- Parameters, each NULL where it does not matter: name, queue, since, until, attributes.
w.name = coalesce(%s, w.name) AND w.queue = coalesce(%s, w.queue)
AND w.submitted_at >= coalesce(%s, '-infinity'::timestamptz) AND w.submitted_at < coalesce(%s, 'infinity'::timestamptz)
AND coalesce(coalesce(w.attributes, 'null') @> %s::jsonb, true)

-- name: all
-- A walk along all submissions. Parameters: lows, highs, those of `fits`, look, look, limit.
SELECT found.wf, found.submitted_at, found.fits, found.n
FROM unnest(%s, %s) AS stretch (low, high), LATERAL (
    SELECT each.wf, each.submitted_at, each.fits, each.n FROM (
        SELECT w.wf, w.submitted_at, {fits} AS fits, row_number() OVER (ORDER BY w.wf {order}) AS n
        FROM (
            SELECT wf, submitted_at, name, queue, attributes FROM {schema}.workflow
            WHERE wf BETWEEN stretch.low AND stretch.high ORDER BY wf {order} LIMIT %s
        ) w
    ) each
    WHERE each.fits OR each.n = %s ORDER BY each.wf {order} LIMIT %s
) found

-- name: ready
-- A walk along all submissions for those that are nowhere else, where too many are ready, in too many lanes.
-- Parameters: lows, highs, those of `fits`, look, look, limit.
SELECT found.wf, found.submitted_at, found.fits, found.n
FROM unnest(%s, %s) AS stretch (low, high), LATERAL (
    SELECT each.wf, each.submitted_at, each.fits, each.n FROM (
        SELECT w.wf, w.submitted_at, row_number() OVER (ORDER BY w.wf {order}) AS n,
               o.wf IS NULL AND s.wf IS NULL AND {fits}
               AND w.wf NOT IN (SELECT u.wf FROM {schema}.claim c, unnest(c.wfs) AS u (wf)) AS fits
        FROM (
            SELECT wf, submitted_at, name, queue, attributes FROM {schema}.workflow
            WHERE wf BETWEEN stretch.low AND stretch.high ORDER BY wf {order} LIMIT %s
        ) w
        LEFT JOIN LATERAL (SELECT wf FROM {schema}.outcome WHERE wf = w.wf LIMIT 1) o ON true
        LEFT JOIN LATERAL (SELECT wf FROM {schema}.wait WHERE wf = w.wf LIMIT 1) s ON true
    ) each
    WHERE each.fits OR each.n = %s ORDER BY each.wf {order} LIMIT %s
) found

-- name: suspended
-- A walk along the suspended workflows. Parameters: lows, highs, those of `fits`, look, look, limit.
SELECT found.wf, found.submitted_at, found.fits, found.n
FROM unnest(%s, %s) AS stretch (low, high), LATERAL (
    SELECT each.wf, each.submitted_at, each.fits, each.n FROM (
        SELECT s.wf, w.submitted_at, {fits} AS fits, row_number() OVER (ORDER BY s.wf {order}) AS n
        FROM (
            SELECT wf FROM {schema}.wait
            WHERE wf BETWEEN stretch.low AND stretch.high ORDER BY wf {order} LIMIT %s
        ) s, LATERAL (
            SELECT submitted_at, name, queue, attributes FROM {schema}.workflow WHERE wf = s.wf LIMIT 1
        ) w
    ) each
    WHERE each.fits OR each.n = %s ORDER BY each.wf {order} LIMIT %s
) found

-- name: ended
-- A walk along all ends. Parameters: lows, highs, statuses, those of `fits`, look, look, limit.
SELECT found.wf, found.submitted_at, found.fits, found.n
FROM unnest(%s, %s) AS stretch (low, high), LATERAL (
    SELECT each.wf, each.submitted_at, each.fits, each.n FROM (
        SELECT o.wf, w.submitted_at, o.status = ANY(%s) AND {fits} AS fits, row_number() OVER (ORDER BY o.wf {order}) AS n
        FROM (
            SELECT wf, status FROM {schema}.outcome
            WHERE wf BETWEEN stretch.low AND stretch.high ORDER BY wf {order} LIMIT %s
        ) o, LATERAL (
            SELECT submitted_at, name, queue, attributes FROM {schema}.workflow WHERE wf = o.wf LIMIT 1
        ) w
    ) each
    WHERE each.fits OR each.n = %s ORDER BY each.wf {order} LIMIT %s
) found

-- name: unlucky
-- A walk along the ends of some statuses other than succeeded, one status after the other.
-- Parameters: lows, highs, statuses, those of `fits`, look, look, limit.
SELECT found.wf, found.submitted_at, found.fits, found.n
FROM unnest(%s, %s) AS stretch (low, high), unnest(%s) AS wanted (status), LATERAL (
    SELECT each.wf, each.submitted_at, each.fits, each.n FROM (
        SELECT o.wf, w.submitted_at, {fits} AS fits, row_number() OVER (ORDER BY o.wf {order}) AS n
        FROM (
            SELECT wf FROM {schema}.outcome
            WHERE status = wanted.status AND status <> 'succeeded' AND wf BETWEEN stretch.low AND stretch.high
            ORDER BY wf {order} LIMIT %s
        ) o, LATERAL (
            SELECT submitted_at, name, queue, attributes FROM {schema}.workflow WHERE wf = o.wf LIMIT 1
        ) w
    ) each
    WHERE each.fits OR each.n = %s ORDER BY each.wf {order} LIMIT %s
) found

-- name: running
-- All workflows that run, which are no more than the workers have places for. Parameters: those of `fits`.
SELECT u.wf, w.submitted_at, {fits} AS fits
FROM {schema}.claim c, unnest(c.wfs) AS u (wf), LATERAL (
    SELECT submitted_at, name, queue, attributes FROM {schema}.workflow WHERE wf = u.wf LIMIT 1
) w
WHERE NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = u.wf)

-- name: some_ready
-- Workflows that are ready, in any order: all of them if they are fewer than the limit. The order within, which nobody
-- needs, keeps the planner from reading all of the table.
-- Parameters: those of `fits`, limit.
SELECT r.wf, w.submitted_at, {fits} AS fits
FROM (SELECT wf FROM {schema}.ready ORDER BY queue, priority, seq LIMIT %s) r, LATERAL (
    SELECT submitted_at, name, queue, attributes FROM {schema}.workflow WHERE wf = r.wf LIMIT 1
) w

-- name: lanes
-- The lanes and priorities in which something is ready, by skipping through the index, up to a bound. Parameters: bound.
WITH RECURSIVE place (queue, priority) AS (
    (SELECT queue, priority FROM {schema}.ready ORDER BY queue, priority LIMIT 1)
    UNION ALL
    SELECT next.queue, next.priority FROM place, LATERAL (
        SELECT r.queue, r.priority FROM {schema}.ready r WHERE (r.queue, r.priority) > (place.queue, place.priority)
        ORDER BY r.queue, r.priority LIMIT 1
    ) next
)
SELECT queue, priority FROM place LIMIT %s

-- name: ready_in
-- A walk along what is ready in these lanes, one after the other; the place in a lane is the workflow's key, but for suspects.
-- Parameters: lows, highs, lanes, priorities, those of `fits`, look, look, limit.
SELECT found.wf, found.submitted_at, found.fits, found.n
FROM unnest(%s, %s) AS stretch (low, high), unnest(%s, %s) AS lane (queue, priority), LATERAL (
    SELECT each.wf, each.submitted_at, each.fits, each.n FROM (
        SELECT r.wf, r.seq, w.submitted_at, {fits} AS fits, row_number() OVER (ORDER BY r.seq {order}) AS n
        FROM (
            SELECT wf, seq FROM {schema}.ready
            WHERE queue = lane.queue AND priority = lane.priority AND seq BETWEEN stretch.low AND stretch.high
            ORDER BY seq {order} LIMIT %s
        ) r, LATERAL (
            SELECT submitted_at, name, queue, attributes FROM {schema}.workflow WHERE wf = r.wf LIMIT 1
        ) w
    ) each
    WHERE each.fits OR each.n = %s ORDER BY each.seq {order} LIMIT %s
) found

-- name: suspects
-- Workflows that are ready in these lanes, in any order: all of them if they are fewer than the limit in each.
-- Parameters: those of `fits`, lanes, priorities, limit.
SELECT r.wf, w.submitted_at, {fits} AS fits
FROM unnest(%s, %s) AS lane (queue, priority), LATERAL (
    SELECT wf FROM {schema}.ready WHERE queue = lane.queue AND priority = lane.priority ORDER BY seq LIMIT %s
) r, LATERAL (
    SELECT submitted_at, name, queue, attributes FROM {schema}.workflow WHERE wf = r.wf LIMIT 1
) w

-- name: next_ready
-- The first workflow that is ready among these keys. Parameters: low, high.
SELECT r.wf, w.submitted_at
FROM (SELECT wf FROM {schema}.ready WHERE wf BETWEEN %s AND %s ORDER BY wf {order} LIMIT 1) r, LATERAL (
    SELECT submitted_at FROM {schema}.workflow WHERE wf = r.wf LIMIT 1
) w

-- name: some_tagged
-- Workflows with these attributes, in any order: all of them if they are fewer than the limit.
-- Parameters: those of `fits`, attributes, limit.
SELECT w.wf, w.submitted_at, {fits} AS fits
FROM (
    SELECT wf, submitted_at, name, queue, attributes FROM {schema}.workflow WHERE attributes @> %s::jsonb LIMIT %s
) w

-- name: describe
-- These workflows and where they are, without a status where that depends on whether they are claimed. Parameters: wfs.
SELECT w.wf, w.id, w.name, w.queue,
       coalesce(o.status, CASE WHEN s.wf IS NOT NULL THEN 'suspended' END), w.submitted_at, o.finished_at,
       coalesce(s.attempt, 0)
FROM {schema}.workflow w
LEFT JOIN {schema}.outcome o ON o.wf = w.wf
LEFT JOIN {schema}.wait s ON s.wf = w.wf
WHERE w.wf = ANY(%s)

-- name: held
-- Those of these workflows that are claimed, with the leases that were expired under them. Parameters: wfs.
SELECT u.wf, u.attempt FROM {schema}.claim, unnest(wfs, attempts) AS u (wf, attempt)
WHERE (u.wf IN (SELECT unnest(%s))) IS TRUE

-- name: count_all
-- How many workflows are in each of these statuses. Parameters: statuses, four times.
SELECT 'ready' AS status, count(*) FROM {schema}.ready WHERE 'ready' = ANY(%s)
UNION ALL
SELECT 'running', count(*) FROM {schema}.claim c, unnest(c.wfs) AS u (wf)
WHERE 'running' = ANY(%s) AND NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = u.wf)
UNION ALL
SELECT 'suspended', count(*) FROM {schema}.wait WHERE 'suspended' = ANY(%s)
UNION ALL
SELECT o.status, count(*) FROM {schema}.outcome o WHERE o.status = ANY(%s) GROUP BY o.status

-- name: count_some
-- How many of the submissions asked for are in each of these statuses.
-- Parameters: lows, highs, statuses four times, those of `fits`.
WITH stretch AS MATERIALIZED (
    SELECT low, high FROM unnest(%s, %s) AS u (low, high)
), place AS (
    SELECT r.wf, 'ready' AS status FROM {schema}.ready r WHERE 'ready' = ANY(%s)
    UNION ALL
    SELECT u.wf, 'running' FROM {schema}.claim c, unnest(c.wfs) AS u (wf)
    WHERE 'running' = ANY(%s) AND NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = u.wf)
    UNION ALL
    SELECT s.wf, 'suspended' FROM {schema}.wait s WHERE 'suspended' = ANY(%s)
    UNION ALL
    SELECT o.wf, o.status FROM {schema}.outcome o WHERE o.status = ANY(%s)
)
SELECT place.status, count(*)
FROM stretch JOIN {schema}.workflow w ON w.wf BETWEEN stretch.low AND stretch.high JOIN place ON place.wf = w.wf
WHERE {fits} GROUP BY place.status

-- name: count_up_to
-- How many workflows are ready, suspended, and have ended, in all and otherwise than well; counted up to a bound. With each how
-- many there are by the server's statistics, which follow the commits within about a second; NULL where these know nothing.
-- The orders, which nobody needs, keep the planner from reading a whole table. Parameters: bound, four times.
WITH size AS (
    SELECT c.relname AS name, coalesce(nullif(pg_stat_get_live_tuples(c.oid), 0), greatest(c.reltuples, 0)) AS rows
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = {schema_text} AND c.relname IN ('ready', 'wait', 'outcome')
), part AS (
    SELECT u.status, u.share FROM pg_stats s,
        LATERAL unnest(s.most_common_vals::text::text[], s.most_common_freqs) AS u (status, share)
    WHERE s.schemaname = {schema_text} AND s.tablename = 'outcome' AND s.attname = 'status'
)
SELECT 'ready' AS place, (SELECT count(*) FROM (SELECT FROM {schema}.ready ORDER BY queue, priority, seq LIMIT %s) few),
       (SELECT rows FROM size WHERE name = 'ready')::bigint
UNION ALL
SELECT 'suspended', (SELECT count(*) FROM (SELECT FROM {schema}.wait ORDER BY wf LIMIT %s) few),
       (SELECT rows FROM size WHERE name = 'wait')::bigint
UNION ALL
SELECT 'ended', (SELECT count(*) FROM (SELECT FROM {schema}.outcome ORDER BY wf LIMIT %s) few),
       (SELECT rows FROM size WHERE name = 'outcome')::bigint
UNION ALL
SELECT u.status, (
    SELECT count(*) FROM (
        SELECT FROM {schema}.outcome o WHERE o.status = u.status AND o.status <> 'succeeded' ORDER BY o.wf LIMIT %s
    ) few
), ((SELECT rows FROM size WHERE name = 'outcome') * (SELECT share FROM part WHERE part.status = u.status))::bigint
FROM unnest(ARRAY['failed', 'cancelled', 'dead']) AS u (status)

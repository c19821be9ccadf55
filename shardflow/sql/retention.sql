-- Deleting workflows that ended long ago. `forget` in migrations/ says which ones may go.

-- name: take
-- Makes a worker the one that deletes what ended so, for so many seconds, unless another one is; answers how far that has come,
-- the bound of the keys drawn here, and whether all is to be looked at once more. Parameters: worker, seconds, status, worker.
UPDATE {schema}.retention SET holder = %s, held_until = clock_timestamp() + make_interval(secs => %s)
WHERE status = (
    SELECT r.status FROM {schema}.retention r WHERE r.status = %s AND (r.holder = %s OR r.held_until < clock_timestamp())
    FOR UPDATE SKIP LOCKED
)
RETURNING front, (SELECT (last_value >> 44) + 1 << 44 FROM {schema}.key), thorough_at <= clock_timestamp()

-- name: edge
-- The last key, from one on, whose workflow was submitted at least so many seconds ago; found by bisection, as keys and times
-- go up together. Parameters: first key, seconds.
WITH RECURSIVE moment AS (
    SELECT clock_timestamp() AS now
), half AS (
    SELECT %s::bigint AS low, (SELECT last_value FROM {schema}.key) + 1 AS high, now - make_interval(secs => %s) AS until
    FROM moment
    UNION ALL
    SELECT CASE WHEN probe.wf < half.high AND probe.submitted_at < half.until THEN probe.wf + 1 ELSE half.low END,
           CASE WHEN probe.wf < half.high AND probe.submitted_at < half.until THEN half.high
                ELSE half.low + (half.high - half.low) / 2 END, half.until
    FROM half LEFT JOIN LATERAL (
        SELECT wf, submitted_at FROM {schema}.workflow WHERE wf >= half.low + (half.high - half.low) / 2
        ORDER BY wf LIMIT 1
    ) probe ON true
    WHERE half.low < half.high
)
SELECT low - 1 FROM half WHERE low >= high

-- name: succeeded
-- Looks at the next ends among some keys, and deletes those that succeeded long enough ago; answers how many it has seen, the
-- last key, how many are gone, and by how many seconds the oldest of them was overdue.
-- Parameters: first key, last key, limit, status, seconds, status, seconds.
WITH seen AS MATERIALIZED (
    SELECT wf, status, finished_at FROM {schema}.outcome WHERE wf > %s AND wf <= %s ORDER BY wf LIMIT %s
), over AS MATERIALIZED (
    SELECT wf, finished_at FROM seen WHERE status = %s AND finished_at < now() - make_interval(secs => %s)
), gone AS MATERIALIZED (
    SELECT {schema}.forget(array_agg(wf), %s, now() - make_interval(secs => %s)) AS wfs FROM over HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM seen), (SELECT max(wf) FROM seen), coalesce((SELECT cardinality(wfs) FROM gone), 0),
       date_part('epoch', now() - (SELECT min(finished_at) FROM over))

-- name: unlucky
-- The same for those that ended otherwise, which an index of their own finds.
-- Parameters: status, first key, last key, limit, seconds, status, seconds.
WITH seen AS MATERIALIZED (
    SELECT wf, finished_at FROM {schema}.outcome
    WHERE status = %s AND status <> 'succeeded' AND wf > %s AND wf <= %s ORDER BY wf LIMIT %s
), over AS MATERIALIZED (
    SELECT wf, finished_at FROM seen WHERE finished_at < now() - make_interval(secs => %s)
), gone AS MATERIALIZED (
    SELECT {schema}.forget(array_agg(wf), %s, now() - make_interval(secs => %s)) AS wfs FROM over HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM seen), (SELECT max(wf) FROM seen), coalesce((SELECT cardinality(wfs) FROM gone), 0),
       date_part('epoch', now() - (SELECT min(finished_at) FROM over))

-- name: advance
-- How far it has come now, and how many were deleted on the way; answers nothing where another worker has taken over.
-- Parameters: key, number, seconds, status, worker.
UPDATE {schema}.retention SET front = greatest(front, %s), deleted = deleted + %s,
    held_until = clock_timestamp() + make_interval(secs => %s)
WHERE status = %s AND holder = %s RETURNING front

-- name: thorough
-- All has been looked at; in so many seconds it is to be once more. Parameters: seconds, status, worker.
UPDATE {schema}.retention SET thorough_at = clock_timestamp() + make_interval(secs => %s) WHERE status = %s AND holder = %s

-- name: purge
-- Deletes workflows that ended before so many seconds ago; answers which are here, and whether each is gone.
-- Parameters: ids, seconds.
SELECT id, took FROM {schema}.purge(%s, clock_timestamp() - make_interval(secs => %s))

-- name: outcomes
-- The ends of those of these workflows that have ended, with their ids: a key may stand for another workflow after a
-- failover that lost some, and the subquery reads only what was found, by its key. The keys come by a subquery
-- as well, so that one plan does for any number of them. Parameters: wfs.
SELECT wf, (SELECT id FROM {schema}.workflow w WHERE w.wf = o.wf) AS id, status, output, error
FROM {schema}.outcome o WHERE wf = ANY((SELECT %s::bigint[])::bigint[])

-- name: keys
-- The narrow keys of these ids. Parameters: ids.
SELECT id, wf FROM {schema}.workflow WHERE id = ANY(%s)

-- name: find
-- One workflow and where it is; one statement, so one moment. Parameters: id.
SELECT w.wf, w.id, w.name, w.queue, w.submitted_at, o.status, o.finished_at, s.wf IS NOT NULL AS suspended,
       coalesce(c.attempt, s.attempt, 0) AS attempt, c.wf IS NOT NULL AS running
FROM {schema}.workflow w
LEFT JOIN {schema}.outcome o ON o.wf = w.wf
LEFT JOIN {schema}.wait s ON s.wf = w.wf
LEFT JOIN LATERAL (
    SELECT w.wf, attempts[array_position(wfs, w.wf)] AS attempt FROM {schema}.claim WHERE w.wf = ANY(wfs) LIMIT 1
) c ON true
WHERE w.id = %s

-- name: steps
-- The checkpoints of one workflow. Parameters: id.
SELECT s.seq, s.name, s.finished_at, s.attempts, s.output, s.error
FROM {schema}.step s JOIN {schema}.workflow w USING (wf) WHERE w.id = %s ORDER BY s.seq

-- name: waiting
-- What a suspended workflow waits for: reason, time, ends still missing; a row with NULLs where it does not. With it, how many
-- messages it has not received. Parameters: wf.
SELECT s.reason, s.wake_at, s.missing, (SELECT count(*) FROM {schema}.message m WHERE m.wf = given.wf AND NOT m.taken)
FROM unnest(ARRAY[%s::bigint]) AS given (wf) LEFT JOIN {schema}.wait s ON s.wf = given.wf

-- name: failed_tries
-- The steps of a workflow that have failed and are to be tried again. Parameters: wf.
SELECT seq, name, attempts, failed_at, due_at, error FROM {schema}.retry WHERE wf = %s ORDER BY seq

-- name: counts
-- How many workflows are where, at one moment; running are those claimed without an outcome.
SELECT (SELECT count(*) FROM {schema}.workflow) AS submitted,
       (SELECT count(*) FROM {schema}.ready) AS ready,
       (SELECT count(*) FROM {schema}.claim c, unnest(c.wfs) AS u (wf)
        WHERE NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = u.wf)) AS running,
       (SELECT count(*) FROM {schema}.wait) AS suspended,
       (SELECT count(*) FROM {schema}.outcome WHERE status = 'succeeded') AS succeeded,
       (SELECT count(*) FROM {schema}.outcome WHERE status = 'failed') AS failed,
       (SELECT count(*) FROM {schema}.step) AS steps

-- name: progress
-- The same, cheaply and roughly enough for a progress bar: only ends and what waits.
SELECT (SELECT count(*) FROM {schema}.outcome) AS ended, (SELECT count(*) FROM {schema}.ready) AS ready

-- name: fence
-- Fails the whole transaction with SF001 unless the lease is held at this epoch, with SF002 where the slots changed;
-- keeps the lease from being expired until the transaction ends. Parameters: lease, epoch, generation.
SELECT {schema}.fence(%s, %s, %s)

-- name: lightly
-- Lets the transaction commit before it is on the disk: a crash of the server may take it back, but then nothing that was
-- committed after it is there either.
SELECT set_config('synchronous_commit', 'off', true)

-- name: steps
-- Writes checkpoints; a second outcome for the same (workflow, sequence number) fails on the primary key.
-- Parameters, arrays of one length: wfs, seqs, attempts, names, outputs, errors.
INSERT INTO {schema}.step (wf, seq, attempts, name, output, error)
SELECT unnest(%s), unnest(%s), unnest(%s), unnest(%s), unnest(%s), unnest(%s)

-- name: outcomes
-- Ends workflows; a second end fails on the primary key. Writes what follows elsewhere, and answers it.
-- Parameters, arrays of one length: wfs, statuses, outputs, errors; then the lease.
SELECT entry, target, topic, key, value, error FROM {schema}.end_all(%s, %s, %s, %s, %s)

-- name: retries
-- Remembers that steps have failed and are to be tried again, with the last error.
-- Parameters, arrays of one length: wfs, seqs, attempts, names, errors, seconds until the next try.
INSERT INTO {schema}.retry AS r (wf, seq, attempts, name, error, due_at)
SELECT wf, seq, attempts, name, error, now() + make_interval(secs => delay)
FROM unnest(%s, %s, %s, %s, %s, %s) AS given (wf, seq, attempts, name, error, delay)
ON CONFLICT (wf, seq) DO UPDATE SET attempts = EXCLUDED.attempts, error = EXCLUDED.error, failed_at = now(),
    due_at = EXCLUDED.due_at

-- name: tried
-- Forgets the failed tries of steps whose checkpoint is written now. Parameters, arrays of one length: wfs, seqs.
DELETE FROM {schema}.retry r USING unnest(%s, %s) AS given (wf, seq) WHERE r.wf = given.wf AND r.seq = given.seq

-- name: receive
-- Takes messages that are received in this turn: those without a key go, the others leave their keys behind.
-- Parameters, arrays of one length: wfs, seqs.
WITH given AS (
    SELECT wf, seq FROM unnest(%s, %s) AS given (wf, seq)
), gone AS (
    DELETE FROM {schema}.message m USING given WHERE m.wf = given.wf AND m.seq = given.seq AND m.key IS NULL
)
UPDATE {schema}.message m SET taken = true, value = NULL FROM given
WHERE m.wf = given.wf AND m.seq = given.seq AND m.key IS NOT NULL

-- name: events
-- Sets events; the latest value stays. Parameters, arrays of one length: wfs, keys, values, without repetition.
INSERT INTO {schema}.event (wf, key, value) SELECT unnest(%s), unnest(%s), unnest(%s)
ON CONFLICT (wf, key) DO UPDATE SET value = EXCLUDED.value, set_at = now()

-- name: cancel_children
-- Has the children cancelled of workflows that end otherwise than by their own code, and answers it; forgets what was asked of
-- these. Parameters: wfs, ids of children whose start was under way, lease.
SELECT entry, target, topic, key, value, error FROM {schema}.cancel_children(%s, %s, %s)

-- name: over
-- Forgets what of the messages of workflows that have succeeded in this turn was kept for replays and repetitions.
-- Parameters: wfs.
DELETE FROM {schema}.message
WHERE wf = ANY(%s) AND (taken OR topic = 'shardflow.child' OR topic = 'shardflow.after')

-- name: begin_anew
-- Forgets what is recorded of workflows that have begun anew in this turn, but for that. Parameters: wfs.
SELECT {schema}.begin_anew(%s)

-- name: sweep
-- Ends what was to be cancelled and would not be claimed soon.
SELECT {schema}.sweep()

-- name: suspend
-- Suspends workflows; those for which something has arrived meanwhile are ready again at once.
-- Parameters, arrays of one length: seconds from now or NULL, attempts, reasons, last messages seen, topics joined by U+001F
-- or NULL, ends still missing or NULL, wfs.
SELECT {schema}.suspend(a.wfs, %s, %s, %s, %s, %s, %s), {schema}.returned(a.wfs) FROM (SELECT %s::bigint[] AS wfs) a

-- name: relayed
-- Deletes what was delivered. Parameters: entries, lease.
DELETE FROM {schema}.outbox WHERE entry = ANY(%s) AND lease = %s

-- name: overdue
-- Writes to the outbox what watchers are to be told that were registered while the end that they watch was under way. No
-- transaction that ends a workflow lasts as long as they are looked at here, see `in_time`.
SELECT count(*) FROM {schema}.ended(ARRAY(
    (SELECT r.wf FROM {schema}.watcher r WHERE r.late AND r.registered_at > now() - interval '60 s'
        AND (SELECT o.wf FROM {schema}.outcome o WHERE o.wf = r.wf) IS NOT NULL
    ORDER BY r.registered_at)
    UNION ALL
    SELECT old.wf FROM (
        SELECT r.wf FROM {schema}.watcher r WHERE r.late AND r.registered_at <= now() - interval '60 s'
        ORDER BY r.registered_at LIMIT 1000
    ) old WHERE (SELECT o.wf FROM {schema}.outcome o WHERE o.wf = old.wf) IS NOT NULL
), 0)

-- name: in_time
-- Ends the looking at watchers that have been looked at for long enough; however long nobody was there to look.
UPDATE {schema}.watcher SET late = false WHERE ctid = ANY(ARRAY(
    SELECT old.place FROM (
        SELECT r.ctid AS place, r.wf FROM {schema}.watcher r WHERE r.late AND r.registered_at < now() - interval '60 s'
        ORDER BY r.registered_at LIMIT 1000 FOR UPDATE SKIP LOCKED
    ) old WHERE (SELECT o.wf FROM {schema}.outcome o WHERE o.wf = old.wf) IS NULL
))

-- name: adopt
-- Takes over what the holders of leases that are gone, or clients, have left in the outbox, some of it, and answers it.
-- The leases are found by one look at the index each, however much lies there, and between those that are there, so that
-- what these had to deliver, and cannot be removed for a long transaction elsewhere, is not stepped over.
-- Parameters: lease, limit for each lease that is gone, bytes after which no further one is taken.
WITH RECURSIVE gap AS (
    SELECT l.lease AS before, lead(l.lease, 1, 9223372036854775807) OVER (ORDER BY l.lease) AS behind
    FROM (SELECT lease FROM {schema}.lease UNION ALL SELECT -1) l
), there (lease, behind) AS (
    SELECT first.lease, gap.behind FROM gap, LATERAL (
        SELECT o.lease FROM {schema}.outbox o WHERE o.lease > gap.before AND o.lease < gap.behind ORDER BY o.lease LIMIT 1
    ) first
    UNION ALL
    SELECT next.lease, there.behind FROM there, LATERAL (
        SELECT o.lease FROM {schema}.outbox o WHERE o.lease > there.lease AND o.lease < there.behind ORDER BY o.lease LIMIT 1
    ) next
)
UPDATE {schema}.outbox SET lease = %s WHERE ctid = ANY(ARRAY(
    SELECT page.place FROM (
        SELECT found.place, sum(found.size) OVER (ROWS UNBOUNDED PRECEDING) - found.size AS before FROM there, LATERAL (
            SELECT o.ctid AS place, coalesce(octet_length(o.value), 0) + coalesce(octet_length(o.error), 0) AS size
            FROM {schema}.outbox o WHERE o.lease = there.lease
            ORDER BY o.lease, o.entry LIMIT (SELECT %s)
            FOR UPDATE SKIP LOCKED
        ) found
        WHERE (SELECT l.lease FROM {schema}.lease l WHERE l.lease = there.lease) IS NULL
    ) page WHERE page.before < %s
))
RETURNING entry, target, topic, key, value, error

-- name: outbox
-- What this lease has to deliver, from an entry on. Parameters: lease, last entry, limit, bytes after which there is no further
-- one.
SELECT entry, target, topic, key, value, error FROM (
    SELECT o.*, sum(o.size) OVER (ORDER BY o.entry ROWS UNBOUNDED PRECEDING) - o.size AS before FROM (
        SELECT entry, target, topic, key, value, error,
               coalesce(octet_length(value), 0) + coalesce(octet_length(error), 0) AS size
        FROM {schema}.outbox WHERE lease = %s AND entry > %s ORDER BY entry LIMIT %s
    ) o
) page WHERE before < %s ORDER BY entry

-- name: mail
-- The messages on these topics that workflows have not read yet, in the order of their arrival, the first ones of each; the
-- ends of these children, as far as they are there. Before them, for each workflow, the number of its last message, whatever
-- that is: what has a higher one has come later. Where it is too much, what is further behind is left out.
-- Parameters: wfs; then arrays of one length: wfs, topics, last messages read; how many at the most for each of these; two
-- arrays of one length: parents, ids of children; bytes after which there is no further one.
SELECT wf, seq, topic, key, value, error FROM (
    SELECT found.*, sum(found.size) OVER (ORDER BY found.n, found.seq ROWS UNBOUNDED PRECEDING) - found.size AS before FROM (
        SELECT 0 AS n, q.wf, coalesce((
            SELECT m.seq FROM {schema}.message m WHERE m.wf = q.wf ORDER BY m.seq DESC LIMIT 1
        ), 0) AS seq, '' AS topic, NULL AS key, NULL AS value, NULL AS error, 0 AS size
        FROM unnest(%s) AS q (wf)
        UNION ALL
        SELECT q.n, m.* FROM unnest(%s, %s, %s) WITH ORDINALITY AS q (wf, topic, seen, n), LATERAL (
            SELECT wf, seq, topic, key, value, error,
                   coalesce(octet_length(value), 0) + coalesce(octet_length(error), 0) AS size
            FROM {schema}.message WHERE wf = q.wf AND topic = q.topic AND seq > q.seen AND NOT taken
            ORDER BY seq LIMIT (SELECT %s)
        ) m
        UNION ALL
        SELECT 1::bigint << 40, m.* FROM unnest(%s, %s) AS q (wf, key), LATERAL (
            SELECT wf, seq, topic, key, value, error,
                   coalesce(octet_length(value), 0) + coalesce(octet_length(error), 0) AS size
            FROM {schema}.message WHERE wf = q.wf AND topic = 'shardflow.child' AND key = q.key LIMIT 1
        ) m
    ) found
) page WHERE before < %s ORDER BY n, seq

-- name: cancelled
-- The running workflows that are to be cancelled, whoever holds them.
SELECT wf, reason FROM {schema}.cancel

-- name: drop_claims
-- Drops receipts of which nothing is left, or whose rest is written anew by `keep_claim`. Parameters: lease, batches.
DELETE FROM {schema}.claim WHERE lease = %s AND batch = ANY(%s)

-- name: keep_claim
-- Writes one receipt for what is left of several. Parameters: lease, batch, wfs, attempts.
INSERT INTO {schema}.claim (lease, batch, wfs, attempts) VALUES (%s, %s, %s, %s)

-- name: claim
-- Takes ready workflows, in order, under one receipt; two claimers never take the same row, and none waits. Nothing is taken
-- from queues that have limits: see `limits.claim`.
-- The low-water mark (priority, seq) of a queue lets the scan begin behind dead index entries.
-- The queues are read in the order given until there are enough; paused ones are not read. The lateral LIMIT, of a number that
-- the planner cannot see, keeps it at index lookups whatever the statistics say. Inputs behind so many bytes are not answered.
-- Parameters, arrays of one length: queues, mark priorities, mark seqs; then the limit twice, lease, batch, bytes.
WITH gone AS (
    DELETE FROM {schema}.ready
    WHERE ctid = ANY(ARRAY(
        SELECT next.place
        FROM (
            SELECT * FROM unnest(%s, %s, %s) AS q (queue, mark_priority, mark_seq)
            WHERE split_part(split_part(q.queue, E'\x1f', 1), E'\x1e', 1) <> ALL (ARRAY(SELECT queue FROM {schema}.paused))
        ) q,
        LATERAL (
            SELECT r.ctid AS place FROM {schema}.ready r
            WHERE r.queue = q.queue AND (r.priority, r.seq) >= (q.mark_priority, q.mark_seq)
            ORDER BY r.priority, r.seq LIMIT (SELECT CASE WHEN EXISTS (
                SELECT FROM {schema}.quota l WHERE l.queue = {schema}.queue_of(q.queue) AND l.most IS NOT NULL
            ) THEN 0 ELSE %s END)
            FOR UPDATE SKIP LOCKED
        ) next
        LIMIT %s
    ))
    RETURNING wf, attempt, replay, queue, priority, seq
), receipt AS (
    INSERT INTO {schema}.claim (lease, batch, wfs, attempts)
    SELECT %s, %s, array_agg(wf), array_agg(attempt) FROM gone HAVING count(*) > 0
)
SELECT gone.wf, w.id, w.name, CASE WHEN sum(octet_length(w.input)) OVER before - octet_length(w.input) < %s THEN w.input END AS input,
    gone.attempt, gone.replay, gone.queue, gone.priority, gone.seq, w.options, EXISTS (SELECT FROM {schema}.cancel) AS heed
FROM gone, LATERAL (
    SELECT id, name, input, options FROM {schema}.workflow WHERE wf = gone.wf LIMIT 1
) w
WINDOW before AS (ORDER BY gone.queue, gone.priority, gone.seq ROWS UNBOUNDED PRECEDING)
ORDER BY gone.queue, gone.priority, gone.seq

-- name: wake
-- Makes suspended workflows ready whose time has come since `from` (NULL: ever), at most so many; answers how many, up to when,
-- in how many seconds the next one's time comes, the first places in the lanes that they came to, lanes, priorities, seqs, and
-- the seconds that all this took. Parameters: from, limit.
WITH due AS (
    DELETE FROM {schema}.wait WHERE wf = ANY(ARRAY(
        SELECT wf FROM {schema}.wait WHERE wake_at >= coalesce(%s::timestamptz, '-infinity') AND wake_at <= now()
        ORDER BY wake_at LIMIT %s FOR UPDATE SKIP LOCKED
    ))
    RETURNING wf, attempt
), woken AS (
    INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
    SELECT w.wf, w.wf, w.priority, due.attempt, true, {schema}.lane(w.queue, w.options, due.attempt)
    FROM due JOIN {schema}.workflow w ON w.wf = due.wf
    RETURNING queue, priority, seq
), first AS (
    SELECT DISTINCT ON (queue) queue, priority, seq FROM woken ORDER BY queue, priority, seq
)
SELECT (SELECT count(*) FROM due), now(), date_part('epoch', (
    SELECT wake_at FROM {schema}.wait WHERE wake_at > now() ORDER BY wake_at LIMIT 1
) - now()), array_agg(queue), array_agg(priority), array_agg(seq), date_part('epoch', clock_timestamp() - statement_timestamp())
FROM first

-- name: clock
-- What the server's clock shows, in seconds.
SELECT date_part('epoch', clock_timestamp())

-- name: hang_bell
-- Says that this session's worker is about to sleep; the lock ends with the session at the latest.
SELECT pg_advisory_lock_shared(hashtextextended({schema_text} || ':bell', 0))

-- name: take_bell
-- Says that this session's worker is awake.
SELECT pg_advisory_unlock_shared(hashtextextended({schema_text} || ':bell', 0))

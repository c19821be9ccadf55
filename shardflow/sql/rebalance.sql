-- name: stand
-- Takes or renews the election where it is vacant or the caller's own; answers the term, and since when; nothing where
-- another one holds it. Parameters: holder, lease (or NULL), seconds.
INSERT INTO {schema}.election AS e (holder, lease, term, elected_at, expires_at)
VALUES (%s, %s, 1, clock_timestamp(), clock_timestamp() + make_interval(secs => %s))
ON CONFLICT (one) DO UPDATE SET holder = EXCLUDED.holder, lease = EXCLUDED.lease, expires_at = EXCLUDED.expires_at,
    term = e.term + CASE WHEN e.holder = EXCLUDED.holder THEN 0 ELSE 1 END,
    elected_at = CASE WHEN e.holder = EXCLUDED.holder THEN e.elected_at ELSE EXCLUDED.elected_at END
WHERE e.holder = EXCLUDED.holder OR e.expires_at < clock_timestamp()
    OR (e.lease IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = e.lease))
RETURNING term, elected_at

-- name: resign
-- Leaves the election vacant. Parameters: holder.
UPDATE {schema}.election SET expires_at = clock_timestamp() WHERE holder = %s AND expires_at > clock_timestamp()

-- name: elected
-- Who is elected here, and whether that is over.
SELECT holder, lease, term, elected_at, expires_at < clock_timestamp()
    OR (lease IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = election.lease)) AS vacant
FROM {schema}.election

-- name: report
-- All that a decision needs to know, as JSON: the registry, the live leases, about how many workflows are ready (as the
-- server's statistics know: counting them would cost more than it is worth). Parameters: schema.
SELECT
    (SELECT coalesce(json_agg(found), '[]') FROM (
        SELECT w.*, expires_at < clock_timestamp() AS expired,
            session AND pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':worker:' || worker, 0)) AS gone,
            clock_timestamp() - seen_at > (expires_at - seen_at) / 2 AS late
        FROM {schema}.worker w
    ) found) AS workers,
    (SELECT coalesce(json_agg(found), '[]') FROM (
        SELECT worker, queues, claiming FROM {schema}.lease WHERE expires_at > clock_timestamp()
            AND NOT (session
                AND pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':lease:' || lease, 0)))
    ) found) AS leases,
    greatest(0, coalesce(pg_stat_get_live_tuples(to_regclass(%s || '.ready')), 0))::bigint AS backlog

-- name: wish
-- Tells a worker which shards it is wanted on. Parameters: shards, worker.
UPDATE {schema}.worker SET wanted = %s, decision = decision + 1, decided_at = clock_timestamp() WHERE worker = %s

-- name: note
-- Parameters, arrays of one length: kinds, workers, sources, targets, reasons; before them term and rebalancer.
INSERT INTO {schema}.journal (term, rebalancer, kind, worker, source, target, reason)
SELECT %s, %s, kind, worker, source, target, reason
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS given (kind, worker, source, target, reason)

-- name: prune
-- Keeps the newest entries of the journal. Parameters: how many.
DELETE FROM {schema}.journal WHERE entry < (SELECT max(entry) FROM {schema}.journal) - %s

-- name: journal
-- The newest entries, the newest first. Parameters: how many.
SELECT at, term, rebalancer, kind, worker, source, target, reason FROM {schema}.journal ORDER BY entry DESC LIMIT %s

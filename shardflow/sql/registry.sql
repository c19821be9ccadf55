-- name: beat
-- Registers the worker or renews it; answers the rebalancer's wish, its number, and how many live workers are at home
-- here. Times are the server's. A wish that was told to another process of that name, or before the worker was at home
-- elsewhere, is forgotten, and numbers go on from what was obeyed. Parameters: worker, host, pid, app, release, code
-- version, capacity, max leases, queues, labels, pinned, seconds to live, session, draining, beat, running, held, aims,
-- cut off, obeyed, obeyed.
INSERT INTO {schema}.worker AS w (worker, host, pid, app, release, code_version, capacity, max_leases, queues, labels,
    pinned, started_at, seen_at, expires_at, session, draining, beat, running, held, aims, cut_off, obeyed, decision)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp(), clock_timestamp(),
    clock_timestamp() + make_interval(secs => %s), %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (worker) DO UPDATE SET host = EXCLUDED.host, pid = EXCLUDED.pid, app = EXCLUDED.app,
    release = EXCLUDED.release, code_version = EXCLUDED.code_version, capacity = EXCLUDED.capacity,
    max_leases = EXCLUDED.max_leases, queues = EXCLUDED.queues, labels = EXCLUDED.labels, pinned = EXCLUDED.pinned,
    seen_at = EXCLUDED.seen_at, expires_at = EXCLUDED.expires_at, session = EXCLUDED.session,
    draining = EXCLUDED.draining, beat = EXCLUDED.beat, running = EXCLUDED.running, held = EXCLUDED.held,
    aims = EXCLUDED.aims, cut_off = EXCLUDED.cut_off, obeyed = EXCLUDED.obeyed,
    started_at = CASE WHEN w.host = EXCLUDED.host AND w.pid = EXCLUDED.pid AND w.beat < EXCLUDED.beat
        THEN w.started_at ELSE EXCLUDED.started_at END,
    wanted = CASE WHEN w.host = EXCLUDED.host AND w.pid = EXCLUDED.pid AND w.beat < EXCLUDED.beat
        AND w.decision >= EXCLUDED.obeyed THEN w.wanted END,
    decision = CASE WHEN w.host = EXCLUDED.host AND w.pid = EXCLUDED.pid AND w.beat < EXCLUDED.beat
        AND w.decision >= EXCLUDED.obeyed THEN w.decision ELSE EXCLUDED.obeyed END
RETURNING w.wanted, w.decision,
    (SELECT count(*) FROM {schema}.worker o WHERE o.expires_at > clock_timestamp() AND o.worker <> w.worker) + 1

-- name: live
-- Holds the lock that tells that this worker's session lives; it goes with the session. Parameters: worker.
SELECT pg_advisory_lock_shared(hashtextextended({schema_text} || ':worker:' || %s, 0))

-- name: leave
-- Takes the worker off the registry. Parameters: worker.
DELETE FROM {schema}.worker WHERE worker = %s

-- name: sweep
-- Forgets workers that were last seen so long ago. Parameters: seconds.
DELETE FROM {schema}.worker WHERE expires_at < clock_timestamp() - make_interval(secs => %s)

-- name: workers
-- The registry, with what can be seen of each one's life.
SELECT worker, host, pid, app, release, code_version, capacity, max_leases, queues, labels, pinned, started_at,
    seen_at, expires_at, draining, beat, running, held, aims, cut_off, obeyed, wanted, decision,
    expires_at < clock_timestamp() AS expired,
    session AND pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':worker:' || worker, 0)) AS gone,
    clock_timestamp() - seen_at > (expires_at - seen_at) / 2 AS late
FROM {schema}.worker ORDER BY worker

-- name: claimers
-- Each queue that somebody may dequeue from here, and by how many live leases; the empty name: by workers that did not
-- say. Parameters: lease not to count.
SELECT q.queue, count(*) FROM {schema}.lease l,
    LATERAL unnest(CASE WHEN l.queues = ARRAY[]::text[] THEN ARRAY[''] ELSE l.queues END) AS q (queue)
WHERE l.claiming AND l.expires_at > clock_timestamp() AND l.lease <> %s
    AND NOT (l.session AND pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':lease:' || l.lease, 0)))
GROUP BY q.queue

-- name: lock_group
-- One at a time: leaving the group. Answers whether it is the caller's turn; nobody waits, as who has it may be frozen.
-- Ends with the transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended({schema_text} || ':group', 0))

-- name: set_claiming
-- Parameters: whether the lease claims, lease.
UPDATE {schema}.lease SET claiming = %s WHERE lease = %s AND claiming IS DISTINCT FROM %s

-- name: tell
-- Rings the shard's bell. Parameters: what it is to say.
SELECT pg_notify({bell_text}, %s)

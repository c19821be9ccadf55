-- Facts for `shardflow doctor`: each statement is asked alone, and none needs more than the role that workers use.

-- name: limits
-- Bounds what a question may cost the shard and keeps it from writing, for its transaction only.
-- Parameters: milliseconds, as text.
SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', '2s', true),
       set_config('transaction_read_only', 'on', true)

-- name: by_index
-- For this transaction only: reads indexes in their order, also on tables that were never analysed.
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true),
       set_config('enable_bitmapscan', 'off', true)

-- name: clock
-- The server's clock, and which of its processes answers.
SELECT date_part('epoch', clock_timestamp()), pg_backend_pid()

-- name: server
-- What server it is and who we are on it; its start and port tell servers apart.
SELECT current_setting('server_version_num')::integer, pg_is_in_recovery(), current_user::text,
       current_database()::text, date_part('epoch', pg_postmaster_start_time()), current_setting('port')::integer

-- name: settings
-- Settings as they are in this session. Parameters: names.
SELECT name, setting, source FROM pg_settings WHERE name = ANY(%s)

-- name: connections
-- How many sessions there are against the limits of role and database; and the commits that wait for a standby.
SELECT count(*), count(*) FILTER (WHERE usename = current_user),
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
       count(*) FILTER (WHERE datname = current_database()),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
       count(*) FILTER (WHERE wait_event = 'SyncRep'),
       coalesce(max(date_part('epoch', clock_timestamp() - state_change)) FILTER (WHERE wait_event = 'SyncRep'), 0)
FROM pg_stat_activity
WHERE usename IS NOT NULL AND datname IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'

-- name: sessions
-- Whose transactions keep dead rows from being removed, or have lasted; vacuums keep none. Of other roles' sessions only
-- the transaction's age is visible, and that only to some. Parameters: seconds.
SELECT pid, coalesce(application_name, ''), coalesce(usename::text, ''), state,
       date_part('epoch', clock_timestamp() - xact_start), greatest(age(backend_xid), age(backend_xmin)), datid IS NULL
FROM pg_stat_activity a
WHERE pid <> pg_backend_pid() AND (datname = current_database() OR datid IS NULL)
    AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL
        OR xact_start < clock_timestamp() - make_interval(secs => %s))
    AND coalesce(backend_type, '') <> 'autovacuum worker'
    AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
ORDER BY 6 DESC NULLS LAST LIMIT 50

-- name: blocked
-- Who waits for a lock, and for whom. Parameters: seconds.
SELECT w.pid, w.application, w.seconds, w.blockers, coalesce(string_agg(
           b.pid || ' (' || concat_ws(', ', nullif(b.application_name, ''), b.usename::text, b.state) || ')', ', '), '')
FROM (
    SELECT a.pid, a.application_name AS application, pg_blocking_pids(a.pid) AS blockers,
           date_part('epoch', clock_timestamp() - min(l.waitstart)) AS seconds
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE NOT l.granted AND l.waitstart < clock_timestamp() - make_interval(secs => %s)
        AND a.datname = current_database()
    GROUP BY a.pid, a.application_name ORDER BY 4 DESC LIMIT 10
) w LEFT JOIN pg_stat_activity b ON b.pid = ANY(w.blockers)
GROUP BY w.pid, w.application, w.seconds, w.blockers ORDER BY w.seconds DESC

-- name: replication
-- Replication slots that may keep dead rows or WAL.
SELECT slot_name::text, active, greatest(age(xmin), age(catalog_xmin)),
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint END
FROM pg_replication_slots

-- name: prepared
-- Transactions that were prepared and not ended.
SELECT gid, owner::text, date_part('epoch', clock_timestamp() - prepared) FROM pg_prepared_xacts
WHERE database = current_database() ORDER BY prepared LIMIT 20

-- name: ages
-- How far the database is from running out of transaction ids.
SELECT age(datfrozenxid), mxid_age(datminmxid) FROM pg_database WHERE datname = current_database()

-- name: tables
-- The shard's tables: what the statistics say of their rows, their sizes, and which rights on them we lack.
SELECT c.relname::text, coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0),
       date_part('epoch', clock_timestamp() - greatest(s.last_vacuum, s.last_autovacuum)),
       pg_table_size(c.oid), pg_indexes_size(c.oid), coalesce(c.reloptions, ARRAY[]::text[]),
       ARRAY(SELECT r.name FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS r (name)
             WHERE NOT has_table_privilege(c.oid, r.name))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE n.nspname = {schema_text} AND c.relkind IN ('r', 'p') ORDER BY c.relname

-- name: frozen
-- The slots that are frozen now.
SELECT slot FROM {schema}.slot WHERE state = 'frozen' ORDER BY slot

-- name: keys
-- The next key, and the highest in use within the shard's own range. The sequence is read as it is, the tables as they
-- were when the statement began, so submits meanwhile do not make it seem behind. Parameters: first, end, first, end.
SELECT CASE WHEN k.is_called THEN k.last_value + 1 ELSE k.last_value END,
       greatest((SELECT max(wf) FROM {schema}.workflow WHERE wf >= %s AND wf < %s),
                (SELECT max(lease) FROM {schema}.lease WHERE lease >= %s AND lease < %s))
FROM {schema}.key k

-- name: leases
-- The leases, what they hold, and what can be seen of their sessions. Later columns are read where they exist.
-- Parameters: bound.
SELECT l.lease, l.worker, date_part('epoch', l.expires_at - clock_timestamp()),
       CASE WHEN l.session THEN k.key IS NOT NULL END,
       (SELECT coalesce(sum(cardinality(c.wfs)), 0)::bigint FROM {schema}.claim c WHERE c.lease = l.lease),
       coalesce(to_jsonb(l) -> 'queues', '[]'::jsonb), coalesce((to_jsonb(l) ->> 'claiming')::boolean, true), a.pid,
       CASE WHEN a.state LIKE 'idle in transaction%%' THEN date_part('epoch', clock_timestamp() - a.state_change) END
FROM {schema}.lease l
LEFT JOIN (
    SELECT DISTINCT classid::bigint << 32 | objid::bigint AS key FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
) k ON k.key = hashtextextended({schema_text} || ':lease:' || l.lease, 0)
LEFT JOIN pg_stat_activity a ON a.pid = l.writer AND a.application_name LIKE 'shardflow commit%%'
ORDER BY l.lease LIMIT %s

-- name: orphans
-- Receipts whose lease does not exist.
SELECT c.lease, count(*), coalesce(sum(cardinality(c.wfs)), 0)::bigint FROM {schema}.claim c
WHERE NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.lease = c.lease) GROUP BY c.lease ORDER BY c.lease

-- name: receipts
-- Receipts of existing leases that are older than so many seconds, with some of what has not ended of them.
-- Parameters: seconds.
SELECT c.lease, l.worker, date_part('epoch', clock_timestamp() - c.claimed_at), open.count, open.ids
FROM {schema}.claim c JOIN {schema}.lease l ON l.lease = c.lease, LATERAL (
    SELECT count(*) AS count, (array_agg(w.id ORDER BY w.wf))[1:3] AS ids
    FROM unnest(c.wfs) AS u (wf) JOIN {schema}.workflow w ON w.wf = u.wf
    WHERE NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = u.wf)
) open
WHERE c.claimed_at < clock_timestamp() - make_interval(secs => %s) AND open.count > 0
ORDER BY c.claimed_at LIMIT 100

-- name: queues
-- Every queue and priority with ready work, by skipping through the index; how much there is, up to a bound; the age of
-- the oldest of its first, those aside that came back and so may have been submitted long ago. Parameters: bound.
WITH RECURSIVE place (queue, priority) AS (
    (SELECT queue, priority FROM {schema}.ready ORDER BY queue, priority LIMIT 1)
    UNION ALL
    SELECT next.queue, next.priority FROM place, LATERAL (
        SELECT r.queue, r.priority FROM {schema}.ready r WHERE (r.queue, r.priority) > (place.queue, place.priority)
        ORDER BY r.queue, r.priority LIMIT 1
    ) next
)
SELECT p.queue, amount.count, head.age
FROM (SELECT queue, priority FROM place LIMIT 1000) p, LATERAL (
    SELECT count(*) AS count FROM (
        SELECT FROM {schema}.ready r WHERE r.queue = p.queue AND r.priority = p.priority LIMIT %s
    ) few
) amount, LATERAL (
    SELECT max(date_part('epoch', clock_timestamp() - w.submitted_at)) AS age FROM (
        SELECT r.wf, r.replay FROM {schema}.ready r WHERE r.queue = p.queue AND r.priority = p.priority
        ORDER BY r.seq LIMIT 100
    ) f JOIN {schema}.workflow w ON w.wf = f.wf WHERE NOT f.replay
) head

-- name: overdue
-- Suspended workflows whose time is over by so many seconds, up to a bound. Parameters: seconds, bound.
SELECT count(*), coalesce(max(date_part('epoch', now() - wake_at)), 0) FROM (
    SELECT wake_at FROM {schema}.wait WHERE wake_at < now() - make_interval(secs => %s) ORDER BY wake_at LIMIT %s
) late

-- name: sample
-- How many workflows a sample has, its newest and some of all, and which of them seem to be nowhere: not ended, not in
-- ready where a fresh one is, not in wait, in no claim. Parameters: how many of the newest, percent of all.
SELECT count(*), coalesce(array_agg(s.wf) FILTER (WHERE s.lost), ARRAY[]::bigint[]) FROM (
    SELECT w.wf, NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = w.wf)
        AND NOT EXISTS (SELECT FROM {schema}.wait s WHERE s.wf = w.wf)
        AND NOT EXISTS (
            SELECT FROM {schema}.ready r WHERE r.queue = w.queue AND r.priority = w.priority AND r.seq = w.wf)
        AND c.wf IS NULL AS lost
    FROM (
        (SELECT wf, queue, priority FROM {schema}.workflow ORDER BY wf DESC LIMIT %s)
        UNION
        (SELECT wf, queue, priority FROM {schema}.workflow TABLESAMPLE SYSTEM (%s) LIMIT 2000)
    ) w LEFT JOIN (
        SELECT DISTINCT u.wf FROM {schema}.claim, unnest(wfs) AS u (wf)
    ) c ON c.wf = w.wf
) s

-- name: misplaced
-- Those of these workflows that are nowhere, at one moment (invariant I1): the first hundred. Parameters: wfs.
SELECT w.id, false, 0::bigint, 0::bigint FROM {schema}.workflow w
WHERE w.wf = ANY(%s) AND NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = w.wf)
    AND NOT EXISTS (SELECT FROM {schema}.ready r WHERE r.wf = w.wf)
    AND NOT EXISTS (SELECT FROM {schema}.wait s WHERE s.wf = w.wf)
    AND NOT EXISTS (SELECT FROM {schema}.claim c WHERE w.wf = ANY(c.wfs))
ORDER BY w.wf LIMIT 100

-- name: misplaced_all
-- All workflows that are not in exactly one place, and ended ones that could still be claimed, at one moment: the first
-- hundred.
SELECT w.id, o.wf IS NOT NULL, coalesce(p.claims, 0), coalesce(p.others, 0)
FROM {schema}.workflow w LEFT JOIN {schema}.outcome o ON o.wf = w.wf LEFT JOIN (
    SELECT wf, count(*) FILTER (WHERE claimed) AS claims, count(*) FILTER (WHERE NOT claimed) AS others FROM (
        SELECT wf, false AS claimed FROM {schema}.ready
        UNION ALL SELECT wf, false FROM {schema}.wait
        UNION ALL SELECT u.wf, true FROM {schema}.claim, unnest(wfs) AS u (wf)
    ) places GROUP BY wf
) p ON p.wf = w.wf
WHERE CASE WHEN o.wf IS NULL THEN coalesce(p.claims + p.others, 0) <> 1 ELSE p.others > 0 END
ORDER BY w.wf LIMIT 100

-- name: outbox
-- The rows of the outbox, up to a bound, and the age of the oldest of them in seconds. Parameters: bound.
SELECT count(*), coalesce(date_part('epoch', clock_timestamp() - min(written_at)), 0)
FROM (SELECT written_at FROM {schema}.outbox ORDER BY lease, entry LIMIT %s) o

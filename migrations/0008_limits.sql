-- Limits of queues, keys of which only so many run at once, and keys of which only one is active: docs/architecture.md.

-- name: quota
-- What this shard may use of a queue's limit: `share`. The shares of all shards add up to `most`, NULL where there is no limit
-- any more; `base` is the part that the shard gets by the declaration, and shares move from there. `kind` is "running" for
-- workflows at once, "starts" for those begun in `seconds`. `declared` is when the worker was started whose declaration this
-- is. Of `ceding` no use is made until its time: another shard waits for it.
CREATE TABLE {schema}.quota (
    queue text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL CHECK (kind IN ('running', 'starts')),
    declared bigint NOT NULL,
    most integer,
    seconds float8,
    base integer NOT NULL,
    share integer NOT NULL,
    ceding integer NOT NULL DEFAULT 0,
    ceding_until timestamptz NOT NULL DEFAULT '-infinity',
    held_since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (queue, kind)
) WITH (fillfactor = 50);

-- name: permit
-- A workflow of a limited queue that a claim holds. What is here is in use of the share of kind "running".
CREATE TABLE {schema}.permit (
    wf bigint PRIMARY KEY,
    queue text COLLATE "C" NOT NULL
);

-- name: permit_queue
-- Counts a queue's.
CREATE INDEX permit_queue ON {schema}.permit (queue);

-- name: fresh
-- Claims from a queue whose starts are limited, until their holder says that all of it has begun, or is gone.
CREATE TABLE {schema}.fresh (
    lease bigint NOT NULL,
    batch bigint NOT NULL,
    queue text COLLATE "C" NOT NULL,
    starts integer NOT NULL,
    PRIMARY KEY (lease, batch, queue)
);

-- name: begun
-- Starts that count until a time, which is rounded up so that there are few rows.
CREATE TABLE {schema}.begun (
    queue text COLLATE "C" NOT NULL,
    over_at timestamptz NOT NULL,
    lease bigint NOT NULL,
    starts integer NOT NULL,
    PRIMARY KEY (queue, over_at, lease)
);

-- name: granted
-- Share that was given to another shard and may not have arrived there: one at a time for each.
CREATE TABLE {schema}.granted (
    queue text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    target text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    units integer NOT NULL,
    granted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (queue, kind, target)
);

-- name: accepted
-- The last grant of each shard that has arrived here, so that none arrives twice.
CREATE TABLE {schema}.accepted (
    queue text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    donor text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (queue, kind, donor)
);

-- name: keyed
-- Workflows that were submitted with a key of which at most `most` may be active at once; deleted when they end. Those that are
-- not admitted lie in `wait`.
CREATE TABLE {schema}.keyed (
    wf bigint PRIMARY KEY,
    key text COLLATE "C" NOT NULL,
    most integer NOT NULL,
    priority smallint NOT NULL,
    admitted boolean NOT NULL DEFAULT false
);

-- name: keyed_admitted
-- Counts them.
CREATE INDEX keyed_admitted ON {schema}.keyed (key) WHERE admitted;

-- name: keyed_next
-- Finds who is next.
CREATE INDEX keyed_next ON {schema}.keyed (key, priority, wf) WHERE NOT admitted;

-- name: loose
-- Keys at which a workflow has ended without admitting the next one, since somebody else was at the key for long.
CREATE TABLE {schema}.loose (
    key text COLLATE "C" NOT NULL,
    entry bigint NOT NULL DEFAULT nextval('{schema}.key') PRIMARY KEY
);

-- name: dedup
-- The active workflow of a key of which there may be only one.
CREATE TABLE {schema}.dedup (
    key text COLLATE "C" PRIMARY KEY,
    id text COLLATE "C" NOT NULL
);

-- name: dedup_id
-- Finds it when it ends.
CREATE INDEX dedup_id ON {schema}.dedup (id);

-- name: queue_of
-- The queue that a lane belongs to.
CREATE FUNCTION {schema}.queue_of(lane text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT split_part(split_part(lane, E'\x1f', 1), E'\x1e', 1)
$$;

-- name: declare_limit
-- Sets a queue's limit and this shard's part of it, unless a later declaration is there. What has moved between shards stays
-- moved, so the shares still add up. `all_in` NULL lifts the limit.
CREATE FUNCTION {schema}.declare_limit(of_queue text, of_kind text, started bigint, all_in integer, per float8, part integer)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO {schema}.quota AS q (queue, kind, declared, most, seconds, base, share)
    SELECT of_queue, of_kind, started, all_in, per, part, part
    WHERE all_in IS NOT NULL OR EXISTS (SELECT FROM {schema}.quota o WHERE o.queue = of_queue AND o.kind = of_kind)
    ON CONFLICT (queue, kind) DO UPDATE SET declared = EXCLUDED.declared, most = EXCLUDED.most,
        seconds = coalesce(EXCLUDED.seconds, q.seconds), base = EXCLUDED.base, share = q.share + EXCLUDED.base - q.base
    WHERE q.declared < EXCLUDED.declared
$$;

-- name: in_use
-- How much of a share is in use. A start is in use from the claim until `seconds` after it has certainly taken place, whatever
-- lies between.
CREATE FUNCTION {schema}.in_use(of_queue text, of_kind text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF of_kind = 'running' THEN
        RETURN (SELECT count(*) FROM {schema}.permit p WHERE p.queue = of_queue);
    END IF;
    RETURN (SELECT coalesce(sum(f.starts), 0) FROM {schema}.fresh f WHERE f.queue = of_queue)
        + (SELECT coalesce(sum(b.starts), 0) FROM {schema}.begun b WHERE b.queue = of_queue AND b.over_at > clock_timestamp());
END
$$;

-- name: allowed
-- How many workflows of a queue may be claimed here now: NULL where it is not limited, 0 where another claimer is at it. The
-- rows are locked before anything is counted, so that nobody counts what another one is about to change.
CREATE FUNCTION {schema}.allowed(of_queue text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    limits bigint;
    found bigint := 0;
    free bigint;
    quota record;
BEGIN
    SELECT count(*) INTO limits FROM {schema}.quota q WHERE q.queue = of_queue AND q.most IS NOT NULL;
    IF limits = 0 THEN
        RETURN NULL;
    END IF;
    FOR quota IN
        SELECT q.kind, q.share, CASE WHEN q.ceding_until > now() THEN q.ceding ELSE 0 END AS ceding FROM {schema}.quota q
        WHERE q.queue = of_queue AND q.most IS NOT NULL ORDER BY q.kind FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        found := found + 1;
        free := least(free, quota.share - quota.ceding - {schema}.in_use(of_queue, quota.kind));
    END LOOP;
    RETURN CASE WHEN found = limits THEN greatest(free, 0) ELSE 0 END;
END
$$;

-- name: claim_limited
-- As the statement `claim`, for lanes some of which belong to queues with limits: takes from those no more than is allowed, and
-- reads nothing where nothing is.
CREATE FUNCTION {schema}.claim_limited(lanes text[], mark_priorities smallint[], mark_seqs bigint[], most integer,
    holder bigint, receipt bigint)
RETURNS TABLE (wf bigint, id text, name text, input bytea, attempt smallint, replay boolean, queue text, priority smallint,
    seq bigint, options jsonb) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    room bigint := most;
    free bigint;
    n bigint;
    of_queue text;
BEGIN
    FOR i IN 1 .. cardinality(lanes) LOOP
        EXIT WHEN room <= 0;
        of_queue := {schema}.queue_of(lanes[i]);
        CONTINUE WHEN EXISTS (SELECT FROM {schema}.paused p WHERE p.queue = of_queue);
        free := {schema}.allowed(of_queue);
        CONTINUE WHEN free = 0;
        n := least(room, free, CASE WHEN right(lanes[i], 1) = E'\x1e' THEN 1 END);
        RETURN QUERY WITH gone AS (
            DELETE FROM {schema}.ready
            WHERE ctid = ANY(ARRAY(
                SELECT r.ctid FROM {schema}.ready r
                WHERE r.queue = lanes[i] AND (r.priority, r.seq) >= (mark_priorities[i], mark_seqs[i])
                ORDER BY r.priority, r.seq LIMIT n FOR UPDATE SKIP LOCKED
            ))
            RETURNING wf, attempt, replay, queue, priority, seq
        ), receipts AS (
            INSERT INTO {schema}.claim AS c (lease, batch, wfs, attempts)
            SELECT holder, receipt, array_agg(gone.wf), array_agg(gone.attempt) FROM gone HAVING count(*) > 0
            ON CONFLICT (lease, batch) DO UPDATE SET wfs = c.wfs || EXCLUDED.wfs, attempts = c.attempts || EXCLUDED.attempts
        ), permits AS (
            INSERT INTO {schema}.permit (wf, queue) SELECT gone.wf, of_queue FROM gone WHERE free IS NOT NULL
        ), starts AS (
            INSERT INTO {schema}.fresh AS f (lease, batch, queue, starts)
            SELECT holder, receipt, of_queue, count(*) FROM gone WHERE free IS NOT NULL AND EXISTS (
                SELECT FROM {schema}.quota q WHERE q.queue = of_queue AND q.kind = 'starts' AND q.most IS NOT NULL
            ) HAVING count(*) > 0
            ON CONFLICT (lease, batch, queue) DO UPDATE SET starts = f.starts + EXCLUDED.starts
        )
        SELECT gone.wf, w.id, w.name, w.input, gone.attempt, gone.replay, gone.queue, gone.priority, gone.seq, w.options
        FROM gone, LATERAL (
            SELECT id, name, input, options FROM {schema}.workflow WHERE wf = gone.wf LIMIT 1
        ) w ORDER BY gone.priority, gone.seq;
        GET DIAGNOSTICS n = ROW_COUNT;
        room := room - n;
        IF n > 0 AND free IS NOT NULL THEN
            DELETE FROM {schema}.begun b WHERE b.queue = of_queue AND b.over_at <= clock_timestamp();
        END IF;
    END LOOP;
END
$$;

-- name: limit_states
-- How it stands with the limits of the queues of these lanes: a row for each kind. `locked` says that another claimer is at it;
-- `waiting`, that something is ready which could not be claimed; `again`, in how many seconds a start is over.
CREATE FUNCTION {schema}.limit_states(lanes text[], mark_priorities smallint[], mark_seqs bigint[])
RETURNS TABLE (queue text, kind text, share integer, base integer, used bigint, ceding integer, locked boolean, waiting boolean,
    again float8) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    quota record;
    mine boolean;
    more boolean;
BEGIN
    FOR quota IN
        SELECT q.* FROM {schema}.quota q
        WHERE q.queue IN (SELECT {schema}.queue_of(l.lane) FROM unnest(lanes) AS l (lane)) AND q.most IS NOT NULL
    LOOP
        PERFORM FROM {schema}.quota q WHERE q.queue = quota.queue AND q.kind = quota.kind FOR NO KEY UPDATE SKIP LOCKED;
        mine := FOUND;
        more := EXISTS (
            SELECT FROM unnest(lanes, mark_priorities, mark_seqs) AS l (lane, p, s), LATERAL (
                SELECT FROM {schema}.ready r WHERE r.queue = l.lane AND (r.priority, r.seq) >= (l.p, l.s)
                ORDER BY r.priority, r.seq LIMIT 1
            ) found WHERE {schema}.queue_of(l.lane) = quota.queue
        ) AND NOT EXISTS (SELECT FROM {schema}.paused p WHERE p.queue = quota.queue);
        RETURN QUERY SELECT quota.queue, quota.kind, quota.share, quota.base, {schema}.in_use(quota.queue, quota.kind),
            CASE WHEN quota.ceding_until > now() THEN quota.ceding ELSE 0 END, NOT mine, more,
            CASE WHEN quota.kind = 'starts' THEN date_part('epoch', (
                SELECT min(b.over_at) FROM {schema}.begun b WHERE b.queue = quota.queue AND b.over_at > clock_timestamp()
            ) - clock_timestamp()) END;
    END LOOP;
END
$$;

-- name: have_begun
-- Claims whose workflows have all begun, so many seconds ago; all of the lease's where no batches are given, those before n
-- where one of them is -n, which then counts from now.
CREATE FUNCTION {schema}.have_begun(holder bigint, batches bigint[], agos float8[]) RETURNS void LANGUAGE sql AS $$
    WITH gone AS (
        DELETE FROM {schema}.fresh f WHERE f.lease = holder AND (batches IS NULL OR f.batch = ANY(batches)
            OR f.batch < -(SELECT min(b.batch) FROM unnest(batches) AS b (batch)))
        RETURNING f.queue, f.starts, coalesce(agos[array_position(batches, f.batch)], 0) AS ago
    )
    INSERT INTO {schema}.begun AS b (queue, over_at, lease, starts)
    SELECT gone.queue, to_timestamp(
            ceil((date_part('epoch', now()) - gone.ago + q.seconds) / (q.seconds / 400)) * (q.seconds / 400)
        ), holder, sum(gone.starts)
    FROM gone JOIN {schema}.quota q ON q.queue = gone.queue AND q.kind = 'starts' AND q.seconds > 0
    GROUP BY 1, 2
    ON CONFLICT (queue, over_at, lease) DO UPDATE SET starts = b.starts + EXCLUDED.starts
$$;

-- name: give
-- Gives some of a share to another shard, which `has` so much and whose part is `fair`. What nobody needs here is given half by
-- half; what is needed only as far as the other one has less than its part, or, where there are fewer units than shards, after
-- a while. What is to be given but in use is kept free for a moment when it comes back; the answer is whether it is.
CREATE FUNCTION {schema}.give(of_queue text, of_kind text, asker text, has integer, fair integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    quota record;
    spare bigint;
    entitled bigint := 0;
    units bigint;
BEGIN
    SELECT q.* INTO quota FROM {schema}.quota q
    WHERE q.queue = of_queue AND q.kind = of_kind AND q.most IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND OR EXISTS (
        SELECT FROM {schema}.granted g WHERE g.queue = of_queue AND g.kind = of_kind AND g.target = asker
    ) THEN
        RETURN false;
    END IF;
    spare := greatest(0, quota.share - {schema}.in_use(of_queue, of_kind));
    IF has < 0 THEN
        entitled := least(-has, quota.share);
    ELSIF (quota.base > 0 AND fair > 0) OR quota.held_since < now() - interval '2 s' THEN
        entitled := greatest(0, least(greatest(fair, 1) - has, quota.share - CASE WHEN fair > 0 THEN quota.base ELSE 0 END));
    END IF;
    IF EXISTS (
        SELECT FROM {schema}.ready r WHERE r.queue = of_queue
        UNION ALL
        SELECT FROM {schema}.ready r WHERE r.queue > of_queue || E'\x1d' AND r.queue < of_queue || E'\x20'
    ) THEN
        units := least(entitled, spare);
    ELSE
        units := greatest(least(entitled, spare), (spare + 1) / 2);
        entitled := least(entitled, units);
    END IF;
    IF units > 0 THEN
        INSERT INTO {schema}.granted (queue, kind, target, number, units)
        VALUES (of_queue, of_kind, asker, nextval('{schema}.key'), units);
    END IF;
    UPDATE {schema}.quota q SET share = q.share - units, ceding = greatest(0, entitled - units),
        ceding_until = CASE WHEN entitled > units THEN now() + interval '3 s' ELSE '-infinity' END
    WHERE q.queue = of_queue AND q.kind = of_kind;
    RETURN entitled > units;
END
$$;

-- name: accept
-- Takes in what another shard has given, once; answers whether it was new.
CREATE FUNCTION {schema}.accept(of_queue text, of_kind text, from_donor text, given_number bigint, units integer) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.accepted AS a (queue, kind, donor, number) VALUES (of_queue, of_kind, from_donor, given_number)
    ON CONFLICT (queue, kind, donor) DO UPDATE SET number = EXCLUDED.number WHERE a.number < EXCLUDED.number;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO {schema}.quota AS q (queue, kind, declared, base, share) VALUES (of_queue, of_kind, 0, 0, units)
    ON CONFLICT (queue, kind) DO UPDATE SET share = q.share + units,
        held_since = CASE WHEN q.share <= 0 THEN now() ELSE q.held_since END;
    PERFORM {schema}.ring();
    RETURN true;
END
$$;

-- name: returned
-- Workflows are in no claim any more: what they used of their queues' limits is free. To be called by whatever takes a workflow
-- out of a claim, in the same transaction.
CREATE FUNCTION {schema}.returned(wfs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.permit) THEN
        DELETE FROM {schema}.permit p WHERE p.wf = ANY(wfs);
    END IF;
END
$$;

-- name: lock_keys
-- Whoever admits workflows of a key, or counts them, is alone at it. There are few locks, so that however many keys there are
-- the server's table of locks has room.
CREATE FUNCTION {schema}.lock_keys(keys text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    part integer;
BEGIN
    FOR part IN SELECT DISTINCT hashtext(k.key) & 255 FROM unnest(keys) AS k (key) ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended({schema_text} || ':key:' || part, 0));
    END LOOP;
END
$$;

-- name: admit_keyed
-- Makes those workflows of these keys ready that may be active now, the first ones first.
CREATE FUNCTION {schema}.admit_keyed(keys text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    of_key text;
    active bigint;
    next record;
    any_admitted boolean := false;
BEGIN
    PERFORM {schema}.lock_keys(keys);
    FOR of_key IN SELECT DISTINCT k.key FROM unnest(keys) AS k (key) LOOP
        SELECT count(*) INTO active FROM {schema}.keyed k WHERE k.key = of_key AND k.admitted;
        LOOP
            SELECT k.wf, k.most INTO next FROM {schema}.keyed k
            WHERE k.key = of_key AND NOT k.admitted ORDER BY k.priority, k.wf LIMIT 1;
            EXIT WHEN NOT FOUND OR active >= next.most;
            UPDATE {schema}.keyed k SET admitted = true WHERE k.wf = next.wf;
            WITH gone AS (
                DELETE FROM {schema}.wait s WHERE s.wf = next.wf RETURNING s.attempt
            )
            INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
            SELECT w.wf, w.wf, w.priority, gone.attempt, true, {schema}.lane(w.queue, w.options)
            FROM gone, {schema}.workflow w WHERE w.wf = next.wf;
            active := active + 1;
            any_admitted := true;
        END LOOP;
    END LOOP;
    IF any_admitted THEN
        PERFORM {schema}.ring();
    END IF;
END
$$;

-- name: reserve
-- Before submissions are written: answers those that may be, and whether each is admitted at once. One with a `dedup` key may
-- not while another one with it is active. The keys stay locked until the transaction ends, so the answer stays true.
CREATE FUNCTION {schema}.reserve(ids text[], dedups text[], keys text[], mosts integer[])
RETURNS TABLE (id text, admitted boolean) LANGUAGE plpgsql AS $$
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
                AND (g.dedup IS NULL OR EXISTS (SELECT FROM {schema}.dedup d WHERE d.key = g.dedup AND d.id = g.id))
            ORDER BY g.id, g.n
        ) u
    ) f;
END
$$;

-- name: reenter
-- Workflows that had ended are to run again and are in no place yet: makes them ready, or lets them wait for their key.
CREATE FUNCTION {schema}.reenter(wfs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    keys text[];
BEGIN
    INSERT INTO {schema}.dedup (key, id) SELECT w.options ->> 'dedup', w.id FROM {schema}.workflow w
    WHERE w.wf = ANY(wfs) AND w.options ? 'dedup' ORDER BY 1 ON CONFLICT DO NOTHING;
    WITH waiting AS (
        INSERT INTO {schema}.keyed (wf, key, most, priority)
        SELECT w.wf, w.options ->> 'key', (w.options ->> 'most')::integer, w.priority FROM {schema}.workflow w
        WHERE w.wf = ANY(wfs) AND w.options ? 'key' RETURNING wf, key
    ), placed AS (
        INSERT INTO {schema}.wait (wf, reason) SELECT waiting.wf, 'key' FROM waiting
    )
    SELECT array_agg(waiting.key) INTO keys FROM waiting;
    IF keys IS NOT NULL THEN
        PERFORM {schema}.admit_keyed(keys);
    END IF;
    INSERT INTO {schema}.ready (seq, wf, priority, replay, queue)
    SELECT w.wf, w.wf, w.priority, true, {schema}.lane(w.queue, w.options)
    FROM {schema}.workflow w WHERE w.wf = ANY(wfs) AND NOT coalesce(w.options ? 'key', false);
    PERFORM {schema}.ring();
END
$$;

-- name: release_keys
-- Lets the next workflows of these keys in; where that has to wait for long, somebody else does it soon. A turn must not wait
-- for a peer that is stuck.
CREATE FUNCTION {schema}.release_keys(keys text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    usual text := current_setting('lock_timeout');
BEGIN
    BEGIN
        PERFORM set_config('lock_timeout', '250ms', true);
        PERFORM {schema}.admit_keyed(keys);
        PERFORM set_config('lock_timeout', usual, true);
    EXCEPTION WHEN lock_not_available THEN
        INSERT INTO {schema}.loose (key) SELECT DISTINCT k.key FROM unnest(keys) AS k (key);
    END;
END
$$;

-- name: settle_keys
-- Lets those in that were left waiting by `release_keys`.
CREATE FUNCTION {schema}.settle_keys() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    keys text[];
BEGIN
    IF EXISTS (SELECT FROM {schema}.loose) THEN
        WITH gone AS (
            DELETE FROM {schema}.loose WHERE entry = ANY(ARRAY(
                SELECT l.entry FROM {schema}.loose l ORDER BY l.entry LIMIT 100 FOR UPDATE SKIP LOCKED
            ))
            RETURNING key
        )
        SELECT array_agg(gone.key) INTO keys FROM gone;
        IF keys IS NOT NULL THEN
            PERFORM {schema}.release_keys(keys);
        END IF;
    END IF;
END
$$;

-- name: over
-- Workflows end in this transaction: what was theirs alone is free.
CREATE FUNCTION {schema}.over(wfs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    keys text[];
BEGIN
    PERFORM {schema}.returned(wfs);
    IF EXISTS (SELECT FROM {schema}.dedup) THEN
        DELETE FROM {schema}.dedup d USING {schema}.workflow w WHERE w.wf = ANY(wfs) AND d.id = w.id;
    END IF;
    IF EXISTS (SELECT FROM {schema}.keyed) THEN
        WITH gone AS (
            DELETE FROM {schema}.keyed k WHERE k.wf = ANY(wfs) RETURNING k.key, k.admitted
        )
        SELECT array_agg(DISTINCT gone.key) FILTER (WHERE gone.admitted) INTO keys FROM gone;
        IF keys IS NOT NULL THEN
            PERFORM {schema}.release_keys(keys);
        END IF;
    END IF;
END
$$;

-- name: ended
-- As before, and what was theirs alone is free.
CREATE OR REPLACE FUNCTION {schema}.ended(wfs bigint[], holder bigint)
RETURNS TABLE (entry bigint, target text, topic text, key text, value bytea, error text) LANGUAGE sql AS $$
    SELECT {schema}.over(wfs);
    WITH told AS (
        DELETE FROM {schema}.watcher r WHERE r.wf = ANY(wfs) RETURNING r.wf, r.topic, r.id
    )
    INSERT INTO {schema}.outbox AS o (lease, target, topic, key, value, error)
    SELECT holder, t.id, t.topic, w.id, e.output, e.error
    FROM told t JOIN {schema}.outcome e ON e.wf = t.wf JOIN {schema}.workflow w ON w.wf = t.wf
    RETURNING o.entry, o.target, o.topic, o.key, o.value, o.error
$$;

-- name: end_lease
-- As before, and the limits have back what the lease used of them.
CREATE OR REPLACE FUNCTION {schema}.end_lease(gone bigint, counted integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    back bigint;
BEGIN
    PERFORM 1 FROM {schema}.lease WHERE lease = gone FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM {schema}.returned(ARRAY(
        SELECT u.wf FROM {schema}.claim c, unnest(c.wfs) AS u (wf) WHERE c.lease = gone
    ));
    PERFORM {schema}.have_begun(gone, NULL, NULL);
    WITH receipt AS (
        DELETE FROM {schema}.claim WHERE lease = gone RETURNING wfs, attempts
    ), held AS (
        SELECT u.wf, u.attempt FROM receipt, unnest(receipt.wfs, receipt.attempts) AS u (wf, attempt)
    )
    INSERT INTO {schema}.ready (seq, wf, priority, attempt, replay, queue)
    SELECT CASE WHEN b.attempt > 3 THEN nextval('{schema}.key') ELSE b.wf END, b.wf, b.priority, b.attempt, true, b.lane
    FROM (
        SELECT h.wf, w.priority, least(h.attempt + counted, 32767) AS attempt, {schema}.lane(w.queue, w.options) AS lane
        FROM held h JOIN {schema}.workflow w USING (wf)
        WHERE NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.wf = h.wf)
        ORDER BY h.wf
    ) b;
    GET DIAGNOSTICS back = ROW_COUNT;
    DELETE FROM {schema}.lease WHERE lease = gone;
    IF back > 0 THEN
        PERFORM {schema}.ring();
    END IF;
    RETURN back;
END
$$;

-- name: look
-- The shard's clock, when the next schedule is to be looked at, and when the next tick may be taken; NULL where there
-- is none.
SELECT clock_timestamp(), (SELECT min(next_at) FROM {schema}.schedule WHERE next_at IS NOT NULL),
       (SELECT min(try_at) FROM {schema}.tick)

-- name: clock
-- The transaction's time.
SELECT now()

-- name: due
-- Takes the schedules that are to be looked at now, locked until the transaction ends; two who look never see the
-- same, and none waits. `stale` says that no worker has had it in its code for a while; `busy`, asked so that it
-- stays at one look into the index each, that it has ticks that are not submitted. Parameters: seconds of that while,
-- limit.
SELECT s.name, s.spec, s.zone, s.missed, s.overlap, s.decided_to, now(),
       s.from_code AND s.confirmed_at < now() - make_interval(secs => %s) AS stale,
       (SELECT true FROM {schema}.tick t WHERE t.schedule = s.name LIMIT 1) IS NOT NULL AS busy
FROM {schema}.schedule s WHERE s.next_at <= now() ORDER BY s.next_at LIMIT %s FOR UPDATE OF s SKIP LOCKED

-- name: decided
-- Writes what was decided of the locked schedules. Parameters, arrays of one length: names, decided until, next
-- looks.
UPDATE {schema}.schedule s SET decided_to = g.decided_to, next_at = g.next_at
FROM unnest(%s::text[], %s::timestamptz[], %s::timestamptz[]) AS g (name, decided_to, next_at) WHERE s.name = g.name

-- name: add_ticks
-- Ticks to be submitted; one that is there already stays as it is. Parameters, arrays of one length: schedules,
-- ticks.
INSERT INTO {schema}.tick (schedule, at, try_at)
SELECT schedule, at, now() FROM unnest(%s::text[], %s::timestamptz[]) AS g (schedule, at) ON CONFLICT DO NOTHING

-- name: take
-- Takes ticks to submit them; until the time given is over, nobody else does. Parameters: seconds, limit.
WITH taken AS (
    UPDATE {schema}.tick t SET tries = t.tries + 1, try_at = now() + make_interval(secs => %s)
    WHERE t.ctid = ANY(ARRAY(
        SELECT ctid FROM {schema}.tick WHERE try_at <= now() ORDER BY try_at, at LIMIT %s FOR UPDATE SKIP LOCKED
    ))
    RETURNING t.schedule, t.at, t.tries
)
SELECT t.at, t.tries, s.last_id, s.name, s.spec, s.zone, s.workflow, s.queue, s.input, s.pass_time, s.options,
       s.missed, s.overlap
FROM taken t JOIN {schema}.schedule s ON s.name = t.schedule ORDER BY t.at

-- name: submitted
-- The ticks' workflows are there: forgets the ticks, remembers the newest. Ticks that somebody else has taken
-- meanwhile are left to them. Parameters, arrays of one length: schedules, ticks, tries, workflow ids.
WITH gone AS (
    DELETE FROM {schema}.tick t
    USING unnest(%s::text[], %s::timestamptz[], %s::int[], %s::text[]) AS g (schedule, at, tries, id)
    WHERE t.schedule = g.schedule AND t.at = g.at AND t.tries = g.tries
    RETURNING t.schedule, t.at, g.id
), newest AS (
    SELECT DISTINCT ON (schedule) schedule, at, id FROM gone ORDER BY schedule, at DESC
)
UPDATE {schema}.schedule s SET last_at = n.at, last_id = n.id FROM newest n
WHERE s.name = n.schedule AND (s.last_at IS NULL OR s.last_at < n.at)

-- name: skipped
-- Forgets a tick that is not to be submitted. Parameters: schedule, tick, tries.
DELETE FROM {schema}.tick WHERE schedule = %s AND at = %s AND tries = %s

-- name: put_off
-- A tick could not be submitted now. Parameters: seconds, schedule, tick, tries.
UPDATE {schema}.tick SET try_at = now() + make_interval(secs => %s) WHERE schedule = %s AND at = %s AND tries = %s

-- name: ended
-- Whether the workflow of this id has ended, or is not there (any more). Parameters: id, twice.
SELECT NOT EXISTS (SELECT FROM {schema}.workflow WHERE id = %s)
    OR EXISTS (SELECT FROM {schema}.outcome WHERE wf = (SELECT wf FROM {schema}.workflow WHERE id = %s))

-- name: confirmed
-- Those of these schedules that a worker, started no earlier, has confirmed just now. Parameters: names, start of the
-- process, seconds since it was confirmed at the most.
SELECT name, spec, zone, workflow, queue, input, pass_time, options, missed, overlap FROM {schema}.schedule
WHERE name = ANY(%s) AND from_code AND started_at >= %s AND confirmed_at > now() - make_interval(secs => %s)

-- name: insert
-- A new schedule; nothing where there is one of that name. Parameters: name, slot, spec, zone, workflow, queue,
-- input, whether the time is passed, options, missed, overlap, paused, from code, start of the process or NULL, next
-- look.
INSERT INTO {schema}.schedule (name, slot, spec, zone, workflow, queue, input, pass_time, options, missed, overlap,
    paused, from_code, started_at, confirmed_at, decided_to, next_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, now(), now(), %s)
ON CONFLICT (name) DO NOTHING RETURNING true

-- name: locked
-- The schedule of a name, locked, with the transaction's time. Parameters: name.
SELECT spec, zone, workflow, queue, input, pass_time, options, missed, overlap, paused, from_code, started_at,
       confirmed_at, decided_to, next_at, now()
FROM {schema}.schedule WHERE name = %s FOR UPDATE

-- name: replace
-- Another definition for the locked schedule. Parameters: spec, zone, workflow, queue, input, whether the time is
-- passed, options, missed, overlap, start of the process, decided until, next look, name.
UPDATE {schema}.schedule SET spec = %s, zone = %s, workflow = %s, queue = %s, input = %s, pass_time = %s,
    options = %s, missed = %s, overlap = %s, started_at = %s, confirmed_at = now(), decided_to = %s, next_at = %s
WHERE name = %s

-- name: confirm
-- A worker has it in its code; if it rested for want of that, it is looked at again. Parameters: start of the
-- process, name.
UPDATE {schema}.schedule SET confirmed_at = now(), started_at = greatest(started_at, %s),
    next_at = CASE WHEN paused THEN NULL ELSE coalesce(next_at, now()) END
WHERE name = %s

-- name: pause
-- Pauses the locked schedule, or lets it go on. Parameters: paused, decided until, next look, name.
UPDATE {schema}.schedule SET paused = %s, decided_to = %s, next_at = %s WHERE name = %s

-- name: delete
-- With its ticks that are not submitted yet. Parameters: name.
DELETE FROM {schema}.schedule WHERE name = %s

-- name: list
-- The schedules in the order of their names. Parameters: seconds after which one that no worker confirms counts as
-- gone from the code.
SELECT s.name, s.spec, s.zone, s.workflow, s.queue, s.input, s.pass_time, s.options, s.missed, s.overlap, s.paused,
       s.from_code, s.from_code AND s.confirmed_at < now() - make_interval(secs => %s) AS stale, s.created_at,
       s.next_at, s.last_at, s.last_id, (SELECT count(*) FROM {schema}.tick t WHERE t.schedule = s.name) AS waiting, now()
FROM {schema}.schedule s ORDER BY s.name

-- name: find
-- The same of one schedule. Parameters: those seconds, name.
SELECT s.name, s.spec, s.zone, s.workflow, s.queue, s.input, s.pass_time, s.options, s.missed, s.overlap, s.paused,
       s.from_code, s.from_code AND s.confirmed_at < now() - make_interval(secs => %s) AS stale, s.created_at,
       s.next_at, s.last_at, s.last_id, (SELECT count(*) FROM {schema}.tick t WHERE t.schedule = s.name) AS waiting, now()
FROM {schema}.schedule s WHERE s.name = %s

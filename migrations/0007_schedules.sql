-- Schedules, each on the shard that its name belongs to, and their ticks that are not submitted yet.

-- name: schedule
-- All ticks until `decided_to` have been decided. `next_at` is when to look next, NULL for a schedule that rests: it
-- is paused, has no ticks any more, or is from code that no worker has now. Of a schedule from code, `started_at` is
-- when the process was started whose definition this is, `confirmed_at` when a worker last said that it has it.
-- `last_id` is the workflow of the newest submitted tick.
CREATE TABLE {schema}.schedule (
    name text COLLATE "C" PRIMARY KEY,
    slot integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    spec text NOT NULL,
    zone text NOT NULL,
    workflow text NOT NULL,
    queue text COLLATE "C" NOT NULL,
    input bytea NOT NULL,
    pass_time boolean NOT NULL,
    options text NOT NULL,
    missed text NOT NULL CHECK (missed IN ('skip', 'latest', 'all')),
    overlap text NOT NULL CHECK (overlap IN ('allow', 'skip')),
    paused boolean NOT NULL DEFAULT false,
    from_code boolean NOT NULL,
    started_at timestamptz,
    confirmed_at timestamptz,
    decided_to timestamptz NOT NULL,
    next_at timestamptz,
    last_at timestamptz,
    last_id text
) WITH (fillfactor = 70);

-- name: schedule_next
-- Finds what is due without reading what is not.
CREATE INDEX schedule_next ON {schema}.schedule (next_at) WHERE next_at IS NOT NULL;

-- name: tick
-- A tick that is decided and whose workflow is not known to be submitted yet. `try_at` is when it may be taken next;
-- `tries` goes up when somebody takes it, which shuts out who took it before.
CREATE TABLE {schema}.tick (
    schedule text COLLATE "C" NOT NULL REFERENCES {schema}.schedule (name) ON DELETE CASCADE,
    at timestamptz NOT NULL,
    try_at timestamptz NOT NULL,
    tries integer NOT NULL DEFAULT 0,
    PRIMARY KEY (schedule, at)
);

-- name: tick_try
-- Finds what may be taken without reading what may not.
CREATE INDEX tick_try ON {schema}.tick (try_at);

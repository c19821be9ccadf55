-- Worker groups: who is there, who is wanted where, who decides it, and what was decided why.

-- name: lease_queues
-- Which queues the lease's holder dequeues from; empty, as a worker of an earlier version leaves it: unknown.
ALTER TABLE {schema}.lease ADD COLUMN queues text[] NOT NULL DEFAULT ARRAY[]::text[];

-- name: lease_claiming
-- False while the holder only ends what it runs, before it gives the lease back.
ALTER TABLE {schema}.lease ADD COLUMN claiming boolean NOT NULL DEFAULT true;

-- name: worker
-- The registry. A worker's row is on one shard, its home; heartbeats push `expires_at`, and where `session` is true its
-- session's lock tells whether it lives. The worker writes all but the last three columns: which shards it `aims` at, which
-- decision that `obeyed`. The rebalancer writes its wish: shards `wanted`, under a number that goes up.
CREATE TABLE {schema}.worker (
    worker text PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    app text NOT NULL,
    release text NOT NULL,
    code_version text NOT NULL,
    capacity integer NOT NULL,
    max_leases integer NOT NULL,
    queues text[] NOT NULL,
    labels text[] NOT NULL,
    pinned boolean NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    session boolean NOT NULL,
    draining boolean NOT NULL,
    beat bigint NOT NULL,
    running integer NOT NULL,
    held text[] NOT NULL,
    aims text[],
    cut_off text[] NOT NULL,
    obeyed bigint NOT NULL,
    wanted text[],
    decision bigint NOT NULL DEFAULT 0,
    decided_at timestamptz
) WITH (fillfactor = 50);

-- name: election
-- Who decides, as far as this shard knows. Vacant when its time is over, or when the lease that it stands on has ended.
CREATE TABLE {schema}.election (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    holder text NOT NULL,
    lease bigint,
    term bigint NOT NULL,
    elected_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- name: journal
-- Every decision of a rebalancer that stood on this shard, with its reason.
CREATE TABLE {schema}.journal (
    entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    term bigint NOT NULL,
    rebalancer text NOT NULL,
    kind text NOT NULL,
    worker text,
    source text,
    target text,
    reason text NOT NULL
);

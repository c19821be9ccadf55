-- Layout: records are immutable, state is what exists. See docs/architecture.md.
-- `wf` is a workflow's narrow key. Every shard draws it from a range of its own, so it is unique in the cluster.

-- name: keys
-- One sequence serves workflows, queue positions and leases; `cluster init` moves it to the shard's own range.
CREATE SEQUENCE {schema}.key AS bigint;

-- name: shard
-- Exactly one row: which cluster this schema belongs to, and the generation of the slots it holds.
CREATE TABLE {schema}.shard (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    cluster text NOT NULL,
    cluster_id uuid NOT NULL,
    name text NOT NULL,
    ordinal integer NOT NULL,
    slots integer NOT NULL CHECK (slots > 0),
    generation bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- name: slot
-- Rows in state active or frozen are this shard's own; the others are only hints where to look.
CREATE TABLE {schema}.slot (
    slot integer PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('active', 'frozen', 'moved', 'hint')),
    shard text NOT NULL
);

-- name: workflow
-- The submission, insert only; its unique id makes a repeated submit harmless.
CREATE TABLE {schema}.workflow (
    wf bigint PRIMARY KEY DEFAULT nextval('{schema}.key'),
    submitted_at timestamptz NOT NULL DEFAULT now(),
    slot integer NOT NULL,
    priority smallint NOT NULL DEFAULT 0,
    id text COLLATE "C" NOT NULL UNIQUE,
    name text NOT NULL,
    queue text COLLATE "C" NOT NULL,
    input bytea NOT NULL
);

-- name: workflow_storage
-- Payloads are stored as they come: pglz, the default, would cost 60 µs for each 4 KiB.
ALTER TABLE {schema}.workflow ALTER COLUMN input SET STORAGE EXTERNAL;

-- name: ready
-- One narrow row per workflow that may be claimed, in the order of claiming; deleted by the claim.
-- `replay` says that checkpoints may exist; `attempt` counts the leases that were expired under the workflow.
CREATE TABLE {schema}.ready (
    seq bigint NOT NULL,
    wf bigint NOT NULL,
    priority smallint NOT NULL,
    attempt smallint NOT NULL DEFAULT 0,
    replay boolean NOT NULL DEFAULT false,
    queue text COLLATE "C" NOT NULL,
    PRIMARY KEY (queue, priority, seq)
);

-- name: lease
-- A worker's timed right. `epoch` goes up when the holder reconnects, which shuts out what its old connection
-- may still have under way. `session` says that its session's lock tells whether it lives, `writer` is the backend
-- of its commit loop; both are empty behind a pooler.
CREATE TABLE {schema}.lease (
    lease bigint PRIMARY KEY DEFAULT nextval('{schema}.key'),
    worker text NOT NULL,
    epoch integer NOT NULL DEFAULT 1,
    opened_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    session boolean NOT NULL,
    writer integer
);

-- name: claim
-- A receipt for a batch; a workflow in it without an outcome is running. Rewritten when one leaves otherwise.
CREATE TABLE {schema}.claim (
    lease bigint NOT NULL REFERENCES {schema}.lease (lease),
    batch bigint NOT NULL,
    wfs bigint[] NOT NULL,
    attempts smallint[] NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lease, batch)
);

-- name: step
-- A checkpoint, insert only: its primary key is "written once". `seq` counts the calls in its low 20 bits and says
-- in the high ones which of the tasks that the workflow's code makes.
CREATE TABLE {schema}.step (
    wf bigint NOT NULL,
    seq bigint NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT now(),
    attempts smallint NOT NULL DEFAULT 1,
    name text NOT NULL,
    output bytea,
    error text,
    PRIMARY KEY (wf, seq)
);

-- name: step_storage
-- As with the workflow's input.
ALTER TABLE {schema}.step ALTER COLUMN output SET STORAGE EXTERNAL;

-- name: wait
-- A suspended workflow; deleted when it wakes.
CREATE TABLE {schema}.wait (
    wf bigint PRIMARY KEY,
    wake_at timestamptz,
    attempt smallint NOT NULL DEFAULT 0,
    reason text NOT NULL
);

-- name: wait_due
-- Finds what is due without reading what is not.
CREATE INDEX wait_due ON {schema}.wait (wake_at) WHERE wake_at IS NOT NULL;

-- name: outcome
-- The end of a workflow, insert only: its primary key is "ends once".
CREATE TABLE {schema}.outcome (
    wf bigint PRIMARY KEY,
    finished_at timestamptz NOT NULL DEFAULT now(),
    status text NOT NULL CHECK (status IN ('succeeded', 'failed')),
    output bytea,
    error text
);

-- name: outcome_storage
-- As with the workflow's input.
ALTER TABLE {schema}.outcome ALTER COLUMN output SET STORAGE EXTERNAL;

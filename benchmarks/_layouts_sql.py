"""Layout D as SQL, and what every layout must offer to be measured."""

from __future__ import annotations

from dataclasses import dataclass

LEASE = 1
EPOCH = 1
GENERATION = 1
MAP_KEY = 7_311
NO_MARK = (-32_768, 0)

# One plan for all turns, one that reads `ready` in the order of its key: on a table that was never analysed a
# custom plan may read the whole backlog and sort it at each claim.
SETTINGS = (
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_sort = off",
    "SET enable_bitmapscan = off",
    "SET enable_seqscan = off",
    "SET jit = off",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """A storage layout as SQL. ``{s}`` stands for the schema; the parameters of each statement are fixed:

    submit (ids text[], slots int4[], inputs bytea[], queue text);
    claim (queue text, rows int4, lease int8, batch int8, mark priority int2, mark seq int8), which answers
    with rows of (key, attempt, priority, seq, id, name, input);
    steps (keys, seqs int4[], names text[], outputs bytea[]);
    finish (keys, outputs bytea[]); release (lease int8, batches int8[]).
    """

    name: str
    ddl: tuple[str, ...]
    submit: str
    claim: str
    steps: str
    finish: str
    release: str | None
    text_key: bool = False
    session: tuple[str, ...] = SETTINGS
    done: str = "SELECT count(*) FROM {s}.outcome"
    stepped: str = "SELECT count(*) FROM {s}.step"
    held: str = "SELECT (SELECT count(*) FROM {s}.claim) + (SELECT count(*) FROM {s}.ready)"


FENCE_DDL = (
    "CREATE TABLE {s}.shard (one boolean PRIMARY KEY DEFAULT true CHECK (one), generation bigint NOT NULL)",
    f"INSERT INTO {{s}}.shard (generation) VALUES ({GENERATION})",
    """CREATE TABLE {s}.lease (
        lease bigint PRIMARY KEY, worker text NOT NULL, epoch integer NOT NULL,
        opened_at timestamptz NOT NULL DEFAULT now(), expires_at timestamptz NOT NULL)""",
    f"INSERT INTO {{s}}.lease VALUES ({LEASE}, 'floor', {EPOCH}, now(), now() + interval '1 hour')",
    f"""CREATE FUNCTION {{s}}.fence(held bigint, held_epoch integer, believed bigint) RETURNS void
    LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared({MAP_KEY});
        PERFORM FROM {{s}}.shard WHERE generation = believed;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the slot map changed' USING ERRCODE = 'SF002';
        END IF;
        PERFORM FROM {{s}}.lease WHERE lease = held AND epoch = held_epoch FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'lease % is lost', held USING ERRCODE = 'SF001';
        END IF;
    END $$""",
)

RECORDS_DDL = (
    "CREATE SEQUENCE {s}.seq AS bigint",
    """CREATE TABLE {s}.workflow (
        wf bigint PRIMARY KEY DEFAULT nextval('{s}.seq'), submitted_at timestamptz NOT NULL DEFAULT now(),
        slot integer NOT NULL, priority smallint NOT NULL DEFAULT 0, id text COLLATE "C" NOT NULL UNIQUE,
        name text NOT NULL, queue text NOT NULL, input bytea)""",
    """CREATE TABLE {s}.ready (
        seq bigint NOT NULL, wf bigint NOT NULL, priority smallint NOT NULL,
        attempt smallint NOT NULL DEFAULT 0, replay boolean NOT NULL DEFAULT false,
        queue text COLLATE "C" NOT NULL, PRIMARY KEY (queue, priority, seq))""",
    """CREATE TABLE {s}.claim (
        lease bigint NOT NULL, batch bigint NOT NULL, wfs bigint[] NOT NULL, attempts smallint[] NOT NULL,
        claimed_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (lease, batch))""",
    """CREATE TABLE {s}.step (
        wf bigint NOT NULL, seq integer NOT NULL, attempts smallint NOT NULL,
        finished_at timestamptz NOT NULL DEFAULT now(), name text NOT NULL, output bytea, error text,
        PRIMARY KEY (wf, seq))""",
    """CREATE TABLE {s}.wait (
        wf bigint PRIMARY KEY, wake_at timestamptz, attempt smallint NOT NULL, reason text NOT NULL)""",
    """CREATE TABLE {s}.outcome (
        wf bigint PRIMARY KEY, finished_at timestamptz NOT NULL DEFAULT now(), status text NOT NULL,
        output bytea, error text)""",
)

SUBMIT = """
WITH written AS (
    INSERT INTO {s}.workflow (slot, id, name, queue, input)
    SELECT slot, id, 'noop', $4, input FROM unnest($1::text[], $2::int[], $3::bytea[]) AS t(id, slot, input)
    ON CONFLICT (id) DO NOTHING
    RETURNING wf, priority
)
INSERT INTO {s}.ready (seq, wf, priority, queue) SELECT wf, wf, priority, $4 FROM written"""

CLAIM = """
WITH taken AS MATERIALIZED (
    DELETE FROM {s}.ready
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {s}.ready
        WHERE queue = $1 AND (priority, seq) >= ($5, $6)
        ORDER BY priority, seq LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING wf, attempt, priority, seq
), receipt AS (
    INSERT INTO {s}.claim (lease, batch, wfs, attempts)
    SELECT $3, $4, array_agg(wf), array_agg(attempt) FROM taken HAVING count(*) > 0
)
SELECT taken.wf, taken.attempt, taken.priority, taken.seq, w.id, w.name, w.input
FROM taken CROSS JOIN LATERAL (SELECT id, name, input FROM {s}.workflow WHERE wf = taken.wf LIMIT 1) AS w"""

STEPS = """
INSERT INTO {s}.step (wf, seq, attempts, name, output)
SELECT unnest($1), unnest($2), 1, unnest($3), unnest($4)"""

FINISH = """
INSERT INTO {s}.outcome (wf, status, output)
SELECT unnest($1), 'succeeded', unnest($2)"""

RELEASE = "DELETE FROM {s}.claim WHERE lease = $1 AND batch = ANY ($2)"

LAYOUT_D = Layout("d", RECORDS_DDL, SUBMIT, CLAIM, STEPS, FINISH, RELEASE)

"""The layouts and claim statements that layout D is measured against."""

from __future__ import annotations

from dataclasses import replace

from _layouts_sql import CLAIM, LAYOUT_D, RECORDS_DDL, Layout

STEP_DDL = next(text for text in RECORDS_DDL if "{s}.step" in text)

BY_PLACE = """WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {s}.ready
        WHERE queue = $1 AND (priority, seq) >= ($5, $6)
        ORDER BY priority, seq LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING wf, attempt, priority, seq"""

BY_KEY = """USING (
        SELECT queue, priority, seq FROM {s}.ready
        WHERE queue = $1 AND (priority, seq) >= ($5, $6)
        ORDER BY priority, seq LIMIT $2 FOR UPDATE SKIP LOCKED) AS q
    WHERE ready.queue = q.queue AND ready.priority = q.priority AND ready.seq = q.seq
    RETURNING wf, attempt, ready.priority, ready.seq"""

BY_PLACE_JOINED = """USING (
        SELECT ctid AS place FROM {s}.ready
        WHERE queue = $1 AND (priority, seq) >= ($5, $6)
        ORDER BY priority, seq LIMIT $2 FOR UPDATE SKIP LOCKED) AS q
    WHERE ready.ctid = q.place
    RETURNING wf, attempt, priority, seq"""

# One wide row a workflow, updated at the claim and at the end; partial indexes tell what is ready and running.
WIDE = Layout(
    "a: one wide table, status updated twice",
    (
        "CREATE SEQUENCE {s}.seq AS bigint",
        """CREATE TABLE {s}.workflow (
            wf bigint PRIMARY KEY DEFAULT nextval('{s}.seq'), submitted_at timestamptz NOT NULL DEFAULT now(),
            claimed_at timestamptz, finished_at timestamptz, lease bigint, slot integer NOT NULL,
            priority smallint NOT NULL DEFAULT 0, attempt smallint NOT NULL DEFAULT 0,
            id text COLLATE "C" NOT NULL UNIQUE, name text NOT NULL, queue text COLLATE "C" NOT NULL,
            status text NOT NULL DEFAULT 'ready', input bytea, output bytea, error text)""",
        "CREATE INDEX ON {s}.workflow (queue, priority, wf) WHERE status = 'ready'",
        "CREATE INDEX ON {s}.workflow (lease) WHERE status = 'running'",
        STEP_DDL,
    ),
    submit="""
INSERT INTO {s}.workflow (slot, id, name, queue, input)
SELECT slot, id, 'noop', $4, input FROM unnest($1::text[], $2::int[], $3::bytea[]) AS t(id, slot, input)
ON CONFLICT (id) DO NOTHING""",
    claim="""
UPDATE {s}.workflow SET status = 'running', lease = $3, attempt = attempt + 1, claimed_at = now()
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {s}.workflow
    WHERE status = 'ready' AND queue = $1 AND (priority, wf) >= ($5, $6) AND $4::bigint IS NOT NULL
    ORDER BY priority, wf LIMIT $2 FOR UPDATE SKIP LOCKED))
RETURNING wf, attempt, priority, wf AS seq, id, name, input""",
    steps=LAYOUT_D.steps,
    finish="""
UPDATE {s}.workflow SET status = 'succeeded', output = t.output, finished_at = now()
FROM (SELECT unnest($1) AS wf, unnest($2) AS output) AS t WHERE workflow.wf = t.wf""",
    release=None,
    done="SELECT count(*) FROM {s}.workflow WHERE status = 'succeeded'",
    held="SELECT count(*) FROM {s}.workflow WHERE status <> 'succeeded'",
)

# The submissions are a log; a cursor moves over it, and a claim is a range of it. No priorities, no skipping.
LOG = replace(
    LAYOUT_D,
    name="c: append-only log, a claim is a range",
    ddl=(
        "CREATE SEQUENCE {s}.seq AS bigint",
        """CREATE TABLE {s}.workflow (
            wf bigint NOT NULL DEFAULT nextval('{s}.seq'), submitted_at timestamptz NOT NULL DEFAULT now(),
            slot integer NOT NULL, id text COLLATE "C" NOT NULL UNIQUE, name text NOT NULL,
            queue text COLLATE "C" NOT NULL, input bytea, PRIMARY KEY (queue, wf))""",
        "CREATE TABLE {s}.cursor (queue text PRIMARY KEY, wf bigint NOT NULL) WITH (fillfactor = 10)",
        "INSERT INTO {s}.cursor VALUES ('default', 0)",
        """CREATE TABLE {s}.claim (
            lease bigint NOT NULL, batch bigint NOT NULL, first bigint NOT NULL, last bigint NOT NULL,
            claimed_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (lease, batch))""",
        STEP_DDL,
        next(text for text in RECORDS_DDL if "{s}.outcome" in text),
    ),
    submit=WIDE.submit,
    claim="""
WITH head AS MATERIALIZED (
    SELECT wf FROM {s}.cursor WHERE queue = $1 AND ($5::smallint, $6::bigint) IS NOT NULL FOR UPDATE
), taken AS MATERIALIZED (
    SELECT wf, id, name, input FROM {s}.workflow
    WHERE queue = $1 AND wf > (SELECT wf FROM head) ORDER BY wf LIMIT $2
), ends AS (SELECT min(wf) AS first, max(wf) AS last FROM taken HAVING count(*) > 0
), moved AS (UPDATE {s}.cursor SET wf = ends.last FROM ends WHERE queue = $1
), receipt AS (INSERT INTO {s}.claim (lease, batch, first, last) SELECT $3, $4, first, last FROM ends)
SELECT wf, 0::smallint, 0::smallint, wf, id, name, input FROM taken""",
    held="SELECT count(*) FROM {s}.claim",
)

# Layout D keyed by the id itself: no surrogate, no second index on workflow, longer keys everywhere else.
TEXT_KEYS = replace(
    LAYOUT_D,
    name="d keyed by id text",
    text_key=True,
    ddl=(
        "CREATE SEQUENCE {s}.seq AS bigint",
        """CREATE TABLE {s}.workflow (
            id text COLLATE "C" PRIMARY KEY, submitted_at timestamptz NOT NULL DEFAULT now(),
            slot integer NOT NULL, priority smallint NOT NULL DEFAULT 0,
            name text NOT NULL, queue text NOT NULL, input bytea)""",
        *(
            text.replace("wfs bigint[]", "wfs text[]").replace("wf bigint", 'wf text COLLATE "C"')
            for text in RECORDS_DDL
            if "SEQUENCE" not in text and "{s}.workflow" not in text
        ),
    ),
    submit="""
WITH written AS (
    INSERT INTO {s}.workflow (slot, id, name, queue, input)
    SELECT slot, id, 'noop', $4, input FROM unnest($1::text[], $2::int[], $3::bytea[]) AS t(id, slot, input)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, priority
)
INSERT INTO {s}.ready (seq, wf, priority, queue) SELECT nextval('{s}.seq'), id, priority, $4 FROM written""",
    claim=CLAIM.replace("WHERE wf = taken.wf LIMIT 1", "WHERE id = taken.wf LIMIT 1"),
)

D = replace(LAYOUT_D, name="d: surrogate key, claim by ctid = ANY")
LAYOUTS = (WIDE, LOG, D, TEXT_KEYS)
CLAIMS = (
    D,
    replace(D, name="d, claim joined on the key", claim=CLAIM.replace(BY_PLACE, BY_KEY)),
    replace(D, name="d, claim joined on ctid", claim=CLAIM.replace(BY_PLACE, BY_PLACE_JOINED)),
    replace(D, name="d, claim locks nothing first", claim=CLAIM.replace(" FOR UPDATE SKIP LOCKED", "")),
    replace(D, name="d, planner left alone", session=()),
    replace(D, name="d, custom plans", session=("SET plan_cache_mode = force_custom_plan",)),
)

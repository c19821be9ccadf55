"""Triggers that make a shard's schema write down, for tests, which backend wrote what and who held which lease.

One sequence orders it all. The fence lets no backend write behind the end of its lease in that order: a turn locks
the lease's row before it writes, and whoever ends or resumes the lease locks it first too, so that one of the two
has committed before the other begins. Whatever the timing, an entry behind the end means that the fence failed.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

#: The tables that a worker writes under its lease.
WRITTEN = ("step", "outcome", "wait", "claim")

# A committed entry has got a number above all those of transactions that ended before it began, also across a crash
# of the server: the sequence is ahead of what was committed. The tables are logged, so a crash loses entries only
# together with the writes they tell of.
_TABLES = (
    "CREATE SEQUENCE {schema}.audit_order",
    """CREATE TABLE {schema}.audit (
        seq bigint PRIMARY KEY DEFAULT nextval('{schema}.audit_order'),
        pid integer NOT NULL DEFAULT pg_backend_pid(),
        what text NOT NULL,
        lease bigint,
        writer integer,
        epoch integer,
        number bigint
    )""",
    """CREATE FUNCTION {schema}.audit_write() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        number bigint;
    BEGIN
        SELECT count(*) INTO number FROM fresh;
        IF number > 0 THEN
            INSERT INTO {schema}.audit (what, number) VALUES (TG_TABLE_NAME, number);
        END IF;
        RETURN NULL;
    END
    $$""",
    """CREATE FUNCTION {schema}.audit_lease() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO {schema}.audit (what, lease, writer, epoch) VALUES ('end', OLD.lease, OLD.writer, OLD.epoch);
        ELSE
            INSERT INTO {schema}.audit (what, lease, writer, epoch)
            VALUES (CASE TG_OP WHEN 'INSERT' THEN 'open' ELSE 'resume' END, NEW.lease, NEW.writer, NEW.epoch);
        END IF;
        RETURN NULL;
    END
    $$""",
    """CREATE TRIGGER audit AFTER INSERT OR UPDATE OF writer, epoch OR DELETE ON {schema}.lease
    FOR EACH ROW EXECUTE FUNCTION {schema}.audit_lease()""",
)
_TRIGGER = """CREATE TRIGGER audit AFTER INSERT ON {schema}.{table} REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.audit_write()"""


def install(dsn: str, schema: str = "shardflow") -> None:
    """Begins the audit of a shard, which must not hold a lease yet."""
    with psycopg.connect(dsn) as conn:
        for text in _TABLES:
            conn.execute(_filled(text, schema))
        for table in WRITTEN:
            conn.execute(_filled(_TRIGGER, schema, table))


def remove_fence(dsn: str, schema: str = "shardflow") -> None:
    """Mutant: the shard's fence lets everybody through."""
    query = """SELECT pg_get_function_arguments(p.oid), pg_get_function_result(p.oid) FROM pg_proc p
               JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = %s AND p.proname = 'fence'"""
    with psycopg.connect(dsn) as conn:
        found = conn.execute(query, (schema,)).fetchall()
        if [result for _, result in found] != ["void"]:
            raise LookupError(f"not the fence that this mutant knows: {found}")
        text = "CREATE OR REPLACE FUNCTION {schema}.fence(" + found[0][0] + ") RETURNS void LANGUAGE plpgsql AS"
        conn.execute(_filled(text + " $$ BEGIN END $$", schema))


def entries(conn: psycopg.Connection[Any], schema: str) -> list[tuple[int, int, str, int | None, int | None, int]]:
    """What was written down, in order: (seq, pid, what, lease, writer, number)."""
    query = "SELECT seq, pid, what, lease, writer, coalesce(number, 0) FROM {schema}.audit ORDER BY seq"
    return conn.execute(_filled(query, schema)).fetchall()


def _filled(text: str, schema: str, table: str = "") -> sql.Composed:
    return sql.SQL(text).format(schema=sql.Identifier(schema), table=sql.Identifier(table or "audit"))

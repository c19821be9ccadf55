-- name: table_exists
-- Whether a relation is there. Parameters: schema, relation.
SELECT EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s)

-- name: create_schema
-- The schema of the shard.
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: create_migrations
-- What was applied to this shard, with the checksum of the file it was.
CREATE TABLE IF NOT EXISTS {schema}.migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: migrations
-- What was applied.
SELECT version, name, checksum, applied_at FROM {schema}.migration ORDER BY version

-- name: record_migration
-- Parameters: version, name, checksum.
INSERT INTO {schema}.migration (version, name, checksum) VALUES (%s, %s, %s)

-- name: lock_shard
-- One at a time: migrations, cluster init. Ends with the transaction.
SELECT pg_advisory_xact_lock(hashtextextended({schema_text} || ':migrate', 0))

-- name: lock_map
-- Keeps every writer out while the slots change. Ends with the transaction.
SELECT pg_advisory_xact_lock(hashtextextended({schema_text} || ':map', 0))

-- name: identity
-- Which cluster and shard this is.
SELECT cluster, cluster_id::text, name, ordinal, slots, generation FROM {schema}.shard

-- name: write_identity
-- Parameters: cluster, cluster id, name, ordinal, slots.
INSERT INTO {schema}.shard (cluster, cluster_id, name, ordinal, slots) VALUES (%s, %s, %s, %s, %s)

-- name: start_keys
-- Moves the key sequence to the shard's own range, so that keys are unique in the cluster. Parameters: first key.
SELECT setval('{schema}.key', %s, false)

-- name: slots
-- What this shard says of every slot it knows of.
SELECT slot, state, shard FROM {schema}.slot ORDER BY slot

-- name: write_slots
-- Writes slots that are not yet known; what is known stays. Parameters, arrays: slots, states, shards.
INSERT INTO {schema}.slot (slot, state, shard) SELECT * FROM unnest(%s, %s, %s) ON CONFLICT (slot) DO NOTHING

-- name: timeline
-- The timeline of the server, in hexadecimal; NULL on a standby.
SELECT CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END

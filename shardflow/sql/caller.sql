-- name: schemas
-- Which of these schemas of the connection's database hold a shard, and whether the role may use it. Parameters: schemas.
SELECT n.nspname, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'shard' AND c.relkind IN ('r', 'p') AND n.nspname = ANY(%s)

-- name: stay
-- Keeps the slots as they are until the transaction ends; answers whether it sees what is committed from now on.
SELECT pg_advisory_xact_lock_shared(hashtextextended({schema_text} || ':map', 0)),
       current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')

-- name: unmoved
-- Behind `stay`: fails a transaction that sees the slots as they were where they have changed since.
SELECT FROM {schema}.shard FOR SHARE

-- name: owns
-- Behind `stay`: whether the slot is the shard's own, and open to writes. Parameters: slot.
SELECT EXISTS (SELECT FROM {schema}.slot WHERE slot = %s AND state = 'active')

-- name: post
-- Leaves something in the outbox for whoever serves the shard, once the transaction has committed.
-- Parameters: target, topic, key, value.
INSERT INTO {schema}.outbox (lease, target, topic, key, value) VALUES (0, %s, %s, %s, %s)

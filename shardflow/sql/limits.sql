-- name: declare
-- Sets a queue's limit unless a later declaration is there. Parameters: queue, kind, when its worker was started in µs since
-- 1970, units in the cluster or NULL, seconds or NULL, units of this shard.
SELECT {schema}.declare_limit(%s, %s, %s, %s, %s, %s)

-- name: limited
-- The queues that have limits.
SELECT DISTINCT queue FROM {schema}.quota WHERE most IS NOT NULL

-- name: claim
-- As the claim of a turn, for lanes some of which are limited. Parameters: bytes; arrays of one length: lanes, mark priorities,
-- mark seqs; then the limit, lease, batch.
SELECT wf, id, name, CASE WHEN sum(octet_length(input)) OVER (ROWS UNBOUNDED PRECEDING) - octet_length(input) < %s THEN input END AS input, attempt,
    replay, queue, priority, seq, options, EXISTS (SELECT FROM {schema}.cancel) AS heed
FROM {schema}.claim_limited(%s, %s, %s, %s, %s, %s)

-- name: states
-- How it stands with the limits of these lanes. Parameters, arrays of one length: lanes, mark priorities, mark seqs.
SELECT queue, kind, share, base, used, ceding, locked, waiting, again FROM {schema}.limit_states(%s, %s, %s)

-- name: have_begun
-- Counts starts from when they have taken place. Parameters: lease, batches, seconds since each.
SELECT {schema}.have_begun(%s, %s, %s)

-- name: settle
-- Lets workflows in whose key became free while somebody else was at it.
SELECT {schema}.settle_keys()

-- name: give
-- Has this shard give some of a share; answers whether more is kept for the asker. Parameters: queue, kind, asking shard, what
-- it has, its part of the limit.
SELECT {schema}.give(%s, %s, %s, %s, %s)

-- name: grants
-- What was given to this shard, and to others a while ago, and may not have arrived. Parameters: shard.
SELECT queue, kind, target, number, units FROM {schema}.granted
WHERE target = %s OR granted_at < now() - interval '1 s'

-- name: accept
-- Takes in a grant, once. Parameters: queue, kind, shard that gave it, number, units.
SELECT {schema}.accept(%s, %s, %s, %s, %s)

-- name: arrived
-- Forgets a grant that has arrived. Parameters: queue, kind, target, number.
DELETE FROM {schema}.granted WHERE queue = %s AND kind = %s AND target = %s AND number = %s

-- name: list
-- The limits with this shard's part of them and what of it is in use.
SELECT queue, kind, most, seconds, share, {schema}.in_use(queue, kind) FROM {schema}.quota
WHERE most IS NOT NULL ORDER BY queue, kind

"""More of the table of the kill tests, see `kill_cases`."""

from __future__ import annotations

from faults import kill_wide_plays as plays
from faults.kill_app import listens
from faults.kill_cases import SOON, UNKEYED, Case
from faults.kill_plays import received, retries, sleeps, started, steps
from faults.kill_wide_app import (
    limited,
    plain_effects,
    plain_family,
    plain_limited,
    plain_listens,
    plain_naps,
    plain_tries,
)

from shardflow.core.topics import AFTER, CHILD

NEVER_FREE = (
    "CREATE FUNCTION public.never() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
    " CREATE TRIGGER never BEFORE DELETE ON dedup FOR EACH ROW EXECUTE FUNCTION public.never()"
)

WIDE_CASES = [
    Case(
        "child's failure: outbox | delivery",
        lambda stand: plays.child_failed(stand, "kids"),
        f"after told {CHILD}",
        "adopt_nothing",
        "left in the outbox: 1",
        shards=2,
        waits=SOON,
    ),
    Case(
        "child's failure: read | said",
        lambda stand: plays.child_failed(stand, "default"),
        f"after heard {CHILD}",
        "read_ends_once",
        "the end was told: 0",
        shards=2,
        waits=SOON,
    ),
    Case(
        "after, fail: outbox | delivery",
        plays.after_failed,
        f"after told {AFTER}",
        "adopt_nothing",
        "behind.* has not ended",
        shards=2,
        later=True,
        waits=SOON,
    ),
    Case(
        "after, run: failure told | deletion",
        plays.after_one_failed,
        f"before relayed {AFTER}",
        UNKEYED,
        "ends still missing",
        shards=2,
    ),
    Case(
        "plain step: effect | checkpoint",
        lambda stand: steps(stand, 2, plain_effects),
        "before step plain_effect",
        "write_the_first_with_the_second",
        "'1': 2",
    ),
    Case(
        "plain step: checkpoint | answer",
        lambda stand: steps(stand, 1, plain_effects),
        "after step plain_effect",
        "forget_checkpoints",
        r"'0': ([2-9]|\d\d)",
    ),
    Case(
        "plain retry: suspended",
        lambda stand: retries(stand, plain_tries),
        "after suspended",
        "forget_tries",
        "'try': [45]",
    ),
    Case(
        "plain sleep: suspended",
        lambda stand: sleeps(stand, 1.5, 1, plain_naps),
        "after suspended",
        "sleep_anew",
        "suspensions: 2",
    ),
    Case(
        "plain receive: taken | answer",
        lambda stand: received(stand, False, plain_listens),
        "after step shardflow.receive",
        "take_messages_later",
        r"heard: \[0, 0, 1",
    ),
    Case(
        "plain send: delivered | checkpoint",
        lambda stand: plays.sent_plainly(stand, listens),
        "before step shardflow.send",
        "send_without_key",
        r"\[1, 1\]",
        shards=2,
    ),
    Case(
        "plain start_many: there | checkpoint",
        lambda stand: started(stand, 4, workflow=plain_family),
        "before step shardflow.start",
        "children_under_new_ids",
        "children: 8 instead of 4",
        shards=2,
    ),
    Case(
        "time limit of a step: failed try | next",
        lambda stand: retries(stand, limited),
        "after retry",
        "forget_tries",
        "'try': 4",
    ),
    Case(
        "time limit of a plain step: suspended",
        lambda stand: retries(stand, plain_limited),
        "after suspended",
        "forget_tries",
        "'try': [45]",
    ),
    Case(
        "time limit of a workflow: its end is not committed",
        plays.out_of_time,
        "before ended failed",
        "timeless",
        "late has not ended",
        later=True,
        waits=SOON,
    ),
    Case(
        "set_event: not committed",
        plays.event_not_set,
        "before step shardflow.set_event.b",
        "acknowledge_before_commit",
        "'between': 2",
    ),
    Case(
        "dedup_key: end not committed",
        lambda stand: plays.one_at_once(stand, False),
        "before ended succeeded",
        "free_keys_early",
        "the key is free: True",
    ),
    Case(
        "dedup_key: end committed | answer",
        lambda stand: plays.one_at_once(stand, True),
        "after ended succeeded",
        NEVER_FREE,
        "the key is free: False",
    ),
    Case(
        "now, uuid4, random: effect | checkpoint",
        lambda stand: plays.drawn(stand, 2),
        "before step effect_of",
        "value_anew",
        "values",
    ),
    Case(
        "now, uuid4, random: not committed",
        lambda stand: plays.drawn(stand, 1),
        "before step shardflow.uuid4",
        "act_before_values_commit",
        "values",
    ),
    Case(
        "values, encrypted and compressed: checkpoint | answer",
        plays.sealed,
        "after step bulk",
        "unsealed",
        "ended so",
        later=True,
    ),
    Case(
        "patched: old code killed | new code",
        plays.patched_under_way,
        "after step closing",
        "patched_always",
        "ended so: .*NonDeterminism",
    ),
    Case(
        "patched: recorded | answer",
        plays.patched_and_killed,
        "after step shardflow.patch",
        "patched_never",
        "order|ended so",
    ),
    Case(
        "version: the last worker of the old one",
        plays.versions,
        "after step effect",
        "any_version",
        "the old one's state",
        later=True,
    ),
]

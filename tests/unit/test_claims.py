"""When a commit loop claims, how much, and when it hangs the bell."""

from __future__ import annotations

import pytest

from shardflow.core.lowwater import START
from shardflow.storage.turn import Claimed, ClaimWanted
from shardflow.worker.claims import BATCH, BUSY, DEAF_LOOK, FIRST_LOOKS, IDLE_LOOK, OWN_LOOK, Claims
from shardflow.worker.places import Place, Places


def claims(queues: tuple[str, ...] = ("q",), total: int = 100, *, deaf: bool = False) -> tuple[Claims, Place]:
    place = Places(total).add(lambda: None)
    return Claims(queues, place, deaf=deaf), place


def rows(count: int, queue: str = "q", first: int = 1) -> list[Claimed]:
    return [Claimed(n, f"w{n}", "work", b"", 0, False, queue, 0, n) for n in range(first, first + count)]


def answer(claim: Claims, wish: ClaimWanted | None, given: list[Claimed], now: float) -> None:
    assert wish is not None
    claim.got(wish, given, now, 0.001)
    claim.answered()


def test_a_claim_is_sized_to_half_of_the_places_at_the_most() -> None:
    claim, _ = claims(total=100)
    wish = claim.wish(0, 1, 0.0, anyway=False)
    assert wish is not None
    assert (wish.batch, wish.queues, wish.most, wish.marks) == (1, ["q"], 50, [START])
    claim, _ = claims(total=1)
    wish = claim.wish(0, 1, 0.0, anyway=False)
    assert wish is not None
    assert wish.most == 1
    claim, _ = claims(total=100 * BATCH)
    wish = claim.wish(0, 1, 0.0, anyway=False)
    assert wish is not None
    assert wish.most == BATCH


def test_nothing_is_claimed_while_all_places_are_taken_and_places_of_ending_ones_count() -> None:
    claim, place = claims(total=10)
    place.running = 10
    assert claim.wish(0, 1, 0.0, anyway=True) is None
    assert claim.patience(0.0) == IDLE_LOOK, "it would ask again and again"
    wish = claim.wish(3, 1, 0.0, anyway=True)
    assert wish is not None
    assert wish.most == 3


def test_every_queue_is_asked_for_all_places_and_another_one_is_the_first_each_time() -> None:
    claim, place = claims(("a", "b", "c"), total=8)
    place.running = 7
    firsts = []
    for _ in range(3):
        wish = claim.wish(0, 1, 0.0, anyway=True)
        assert wish is not None
        assert wish.most == 1
        assert sorted(wish.queues) == ["a", "b", "c"], "a queue was left out"
        firsts.append(wish.queues[0])
        claim.answered()
    assert sorted(firsts) == ["a", "b", "c"]


def test_one_place_and_many_queues_are_not_idle_while_one_of_them_has_work() -> None:
    claim, _ = claims(tuple("abcdefghi"), total=1)
    for n in range(20):
        answer(claim, claim.wish(0, n, 0.0, anyway=False), rows(1, "e", 1 + n), 0.0)
        assert claim.wanted


def test_a_loop_that_was_given_something_asks_again_at_once() -> None:
    claim, _ = claims()
    answer(claim, claim.wish(0, 1, 0.0, anyway=False), rows(5), 0.0)
    assert claim.wanted
    assert claim.wish(0, 2, 0.0, anyway=False) is not None


def test_an_idle_loop_hangs_the_bell_looks_a_few_times_and_then_seldom() -> None:
    claim, _ = claims()
    now = 0.0
    assert claim.bell() is None
    answer(claim, claim.wish(0, 1, now, anyway=False), [], now)
    assert claim.bell() is True
    assert not claim.settled
    claim.bell_is(True)
    pauses = []
    while not claim.settled:
        pause = claim.patience(now)
        pauses.append(pause)
        assert claim.wish(0, 1, now + pause / 2, anyway=False) is None
        now += pause
        answer(claim, claim.wish(0, 1, now, anyway=False), [], now)
        assert claim.bell() is None
    assert len(pauses) >= len(FIRST_LOOKS)
    assert max(pauses) <= max(FIRST_LOOKS) + 1e-9
    assert claim.patience(now) == pytest.approx(OWN_LOOK)
    # Settled: not even at the next look of its own does it claim, but only when told, or along with other writes.
    assert claim.wish(0, 1, now + OWN_LOOK, anyway=False) is None
    assert claim.wish(0, 1, now + OWN_LOOK, anyway=True) is not None
    claim.answered()
    claim.look()
    assert claim.wish(0, 1, now, anyway=False) is not None


def test_a_busy_shard_takes_the_bell_down_and_a_trickle_leaves_it_hanging() -> None:
    claim, place = claims(total=1000)
    claim.bell_is(True)
    answer(claim, claim.wish(0, 1, 0.0, anyway=False), rows(3), 0.0)
    assert claim.bell() is None
    answer(claim, claim.wish(0, 2, 0.0, anyway=False), rows(BUSY), 0.0)
    assert place.hungry
    assert claim.bell() is False
    claim.bell_is(False)
    assert claim.bell() is None


def test_where_no_bell_can_be_heard_it_looks_often() -> None:
    claim, _ = claims(deaf=True)
    answer(claim, claim.wish(0, 1, 0.0, anyway=False), [], 0.0)
    assert claim.bell() is None
    assert claim.settled
    assert claim.patience(0.0) == DEAF_LOOK


def test_a_new_connection_knows_nothing() -> None:
    claim, place = claims()
    answer(claim, claim.wish(0, 1, 0.0, anyway=False), rows(50), 0.0)
    claim.bell_is(True)
    assert claim.wish(0, 2, 0.01, anyway=False) is not None
    assert place.claiming > 0
    claim.reset()
    assert place.claiming == 0
    wish = claim.wish(0, 3, 0.02, anyway=False)
    assert wish is not None
    assert wish.marks == [START]
    assert claim.bell() is None


def test_a_full_claim_moves_the_mark_of_its_queue_only() -> None:
    claim, _ = claims(("a", "b"), total=40)
    wish = claim.wish(0, 1, 0.0, anyway=False)
    answer(claim, wish, rows(20, "a"), 0.0)
    wish = claim.wish(0, 2, 0.01, anyway=False)
    assert wish is not None
    assert dict(zip(wish.queues, wish.marks, strict=True)) == {"a": (0, 20), "b": START}


# -- the places of a worker, shared among its shards


def test_the_promised_places_of_a_claim_under_way_are_not_given_out_twice() -> None:
    places = Places(7)
    first, second = places.add(lambda: None), places.add(lambda: None)
    one, two = Claims(("q",), first, deaf=False), Claims(("q",), second, deaf=False)
    for _ in range(4):
        for claim in (one, two):
            claim.wish(0, 1, 0.0, anyway=True)
        assert first.taken + second.taken <= 7
        for place in (first, second):
            place.running += place.claiming
            place.claiming = 0
            place.hungry = True
    assert first.taken + second.taken == 7


def test_a_shard_that_was_refused_gets_the_next_place() -> None:
    woken: list[str] = []
    places = Places(1)
    first, second = places.add(lambda: woken.append("first")), places.add(lambda: woken.append("second"))
    assert first.allowance(0) == 1
    first.running, first.hungry = 1, True
    first.served_now()
    assert second.allowance(0) == 0
    assert second.refused
    # The first one's workflow ends and it would take the place again in the same turn.
    assert first.allowance(1) == 0
    first.running = 0
    first.freed()
    assert woken == ["second"]
    assert second.allowance(0) == 1


def test_a_shard_alone_may_have_all_places() -> None:
    places = Places(10)
    first, second = places.add(lambda: None), places.add(lambda: None)
    assert first.allowance(0) == 10
    second.hungry = True
    assert first.allowance(0) == 5
    second.away()
    assert first.allowance(0) == 10
    second.leave()
    assert first.allowance(0) == 10


def test_what_comes_behind_a_mark_is_claimed_next() -> None:
    claim, _ = claims()
    answer(claim, claim.wish(0, 1, 0.0, anyway=False), rows(50), 0.0)
    wish = claim.wish(0, 2, 0.01, anyway=True)
    assert wish is not None
    assert wish.marks == [(0, 50)]
    answer(claim, wish, rows(50, first=51), 0.02)
    claim.came_back([("q", 0, 7), ("unknown", 0, 1)])
    wish = claim.wish(0, 3, 0.03, anyway=False)
    assert wish is not None
    assert wish.marks == [(0, 7)]


def test_while_the_bell_hangs_a_claim_that_came_back_short_took_all_there_was() -> None:
    claim, _ = claims(total=100)
    now = 0.0
    answer(claim, claim.wish(0, 1, now, anyway=False), [], now)
    claim.bell_is(True)
    answer(claim, claim.wish(0, 1, claim.patience(now), anyway=False), rows(2), now)
    assert claim.wanted, "a submit that did not see the bell may be committing"
    while not claim.settled:
        now += claim.patience(now)
        claim.look()
        answer(claim, claim.wish(0, 1, now, anyway=False), [], now)
    claim.look()
    answer(claim, claim.wish(0, 2, now, anyway=False), rows(3), now)
    assert claim.settled
    assert claim.rests
    assert claim.wish(0, 3, now, anyway=True) is None, "it asks along with the checkpoints of what it has just taken"
    claim.look()  # the bell rings
    answer(claim, claim.wish(0, 3, now, anyway=False), rows(50), now)
    assert claim.wanted, "there may be more than it could take"
    limited = claim.wish(0, 4, now, anyway=False)
    assert limited is not None
    limited.limited = True
    answer(claim, limited, rows(1), now)
    assert claim.wanted, "what a limit left may be free again"

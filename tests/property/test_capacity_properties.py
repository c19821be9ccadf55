"""The laws of dividing places: max-min fairness, written as what must hold for every division."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from shardflow.core.capacity import divide

wants_lists = st.lists(st.integers(0, 2_000), max_size=12)


@given(st.integers(0, 5_000), wants_lists)
def test_all_places_are_given_out_and_nobody_gets_more_than_it_wants(places: int, wants: list[int]) -> None:
    given_ = divide(places, wants)
    assert len(given_) == len(wants)
    assert sum(given_) == min(places, sum(wants))
    assert all(0 <= g <= w for g, w in zip(given_, wants, strict=True))


@example(590, [196, 198, 197])
@given(st.integers(0, 5_000), wants_lists)
def test_whoever_gets_less_than_it_wants_has_about_as_much_as_any_other(places: int, wants: list[int]) -> None:
    given_ = divide(places, wants)
    for got, want in zip(given_, wants, strict=True):
        if got < want:
            assert all(other <= got + 1 for other in given_), "somebody has more, and this one wants more"


@example(2388, [1, 220, 338, 366, 366, 366, 366, 366])
@given(st.integers(0, 5_000), wants_lists)
def test_of_two_that_want_the_same_the_earlier_gets_no_less(places: int, wants: list[int]) -> None:
    given_ = divide(places, wants)
    for i, want in enumerate(wants):
        for j in range(i + 1, len(wants)):
            if wants[j] == want:
                assert given_[i] >= given_[j]


@given(st.integers(0, 5_000), wants_lists)
def test_one_place_more_takes_nothing_from_anybody(places: int, wants: list[int]) -> None:
    before, after = divide(places, wants), divide(places + 1, wants)
    gained = [more - less for less, more in zip(before, after, strict=True)]
    assert sum(gained) in (0, 1)
    assert min(gained, default=0) >= 0


@given(st.integers(0, 5_000), wants_lists, st.integers(0, 2_000))
def test_a_taker_that_wants_nothing_changes_nothing(places: int, wants: list[int], at: int) -> None:
    position = at % (len(wants) + 1)
    with_idle = [*wants[:position], 0, *wants[position:]]
    given_ = divide(places, with_idle)
    assert given_.pop(position) == 0
    assert given_ == divide(places, wants)

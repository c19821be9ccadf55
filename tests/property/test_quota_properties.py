"""The laws of dividing a limit among shards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardflow.core.quota import State, decide, split

shards = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=12)


@given(st.integers(0, 1_000_000), shards, st.text(max_size=8))
def test_the_parts_add_up_and_differ_by_one_at_most(total: int, names: set[str], queue: str) -> None:
    parts = split(total, names, queue)
    assert parts.keys() == names
    assert sum(parts.values()) == total
    assert max(parts.values()) - min(parts.values()) <= 1
    assert split(total, sorted(names, reverse=True), queue) == parts


def test_what_cannot_be_divided_goes_to_other_shards_for_other_queues() -> None:
    names = [f"s{n}" for n in range(4)]
    chosen = {max(names, key=split(1, names, f"q{n}").__getitem__) for n in range(50)}
    assert chosen == set(names)


states = st.builds(
    State,
    st.just("q"),
    st.sampled_from(["running", "starts"]),
    st.integers(-5, 20),
    st.integers(0, 10),
    st.integers(0, 20),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.none() | st.floats(0, 10),
)


@given(states)
def test_others_are_asked_only_for_what_is_short(state: State) -> None:
    again, needs = decide([state])
    short = state.share < 0 or (state.waiting and state.used + state.ceding >= state.share)
    assert not needs or short
    if short and not (state.locked and state.waiting):
        assert [(n.queue, n.kind, n.share, n.base) for n in needs] == [
            (state.queue, state.kind, state.share, state.base)
        ]
    if not state.waiting:
        assert again is None
    elif state.locked:
        assert again is not None

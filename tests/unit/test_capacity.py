"""Dividing places: the cases that say what is meant. The laws are in property/test_capacity_properties.py."""

from __future__ import annotations

import pytest

from shardflow.core.capacity import divide


@pytest.mark.parametrize(
    ("places", "wants", "given"),
    [
        (0, [5, 5], [0, 0]),
        (10, [], []),
        (10, [3, 3], [3, 3]),
        (10, [20, 20], [5, 5]),
        (10, [1, 20], [1, 9]),
        (10, [20, 1, 20], [5, 1, 4]),
        (1, [1, 1, 1], [1, 0, 0]),
        (2, [0, 5, 5], [0, 1, 1]),
        (7, [2, 10, 3], [2, 3, 2]),
        (100, [0, 0], [0, 0]),
    ],
)
def test_places_go_round_evenly(places: int, wants: list[int], given: list[int]) -> None:
    assert divide(places, wants) == given


def test_the_wants_are_not_changed() -> None:
    wants = [3, 4]
    divide(5, wants)
    assert wants == [3, 4]

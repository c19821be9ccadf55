"""Divides a limited number of places among those that want them."""

from __future__ import annotations

from collections.abc import Sequence


def divide(places: int, wants: Sequence[int]) -> list[int]:
    """Gives out at most `places`, nobody more than it wants, as evenly as that allows (max-min fairness).

    Arguments: `places` ≥ 0; `wants`, one number ≥ 0 per taker, in order of precedence: where places do not divide
    evenly the earlier takers get one more. Returns one number per taker. Source: Bertsekas & Gallager, Data
    Networks, 6.5.2 (water filling).
    """
    given = [0] * len(wants)
    hungry = [i for i, want in enumerate(wants) if want > 0]
    while places > 0 and hungry:
        each = places // len(hungry)
        if each == 0:
            hungry, each = hungry[:places], 1
        for i in hungry:
            more = min(wants[i] - given[i], each)
            given[i] += more
            places -= more
        hungry = [i for i in hungry if given[i] < wants[i]]
    return given

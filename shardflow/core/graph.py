"""The order in which submissions that depend on each other are written: what is waited for comes first."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidInput


def levels(ids: Sequence[str], after: Sequence[Sequence[str]]) -> list[list[int]]:
    """Places of submissions, level by level: each runs after none of its own level or a later one.

    Arguments: `ids`, and for each the ids that it runs after; those that are not among `ids` count as there already.
    Raises InvalidInput, naming the ids, where some wait for each other. Source: Kahn's algorithm (1962).
    """
    places: dict[str, list[int]] = {}
    for place, id in enumerate(ids):
        places.setdefault(id, []).append(place)
    open_ = [sum(len(places.get(each, ())) for each in set(after[place])) for place in range(len(ids))]
    followers: dict[str, list[int]] = {}
    for place, ones in enumerate(after):
        for each in set(ones):
            if each in places:
                followers.setdefault(each, []).append(place)
    level = [place for place, count in enumerate(open_) if count == 0]
    found: list[list[int]] = []
    done = 0
    while level:
        found.append(level)
        done += len(level)
        following = []
        for place in level:
            for follower in followers.get(ids[place], ()):
                open_[follower] -= 1
                if open_[follower] == 0:
                    following.append(follower)
        level = following
    if done < len(ids):
        stuck = [ids[place] for place, count in enumerate(open_) if count > 0]
        raise InvalidInput(
            "these workflows are to run after each other, so none of them could begin: "
            + ", ".join(map(repr, stuck[:5]))
            + (f" and {len(stuck) - 5} more" if len(stuck) > 5 else "")
        )
    return found

"""Helpful endings for messages about a word that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """' (did you mean "x"?)' for the candidate most like `word`, or '' where none is like it.

    Source of the measure: Ratcliff and Obershelp, as in `difflib`.
    """
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    close = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f' (did you mean "{by_folded[close[0]]}"?)' if close else ""

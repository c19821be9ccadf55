"""Keeps the goal of a rebalancer from look to look: when to decide anew, and what is the next step.

A goal is kept until it is reached, or until somebody or something comes or goes or somebody else decides too, so that
steps which take a while are not undone half way; for load alone there is a new one only when the last one is reached
and has rested.
"""

from __future__ import annotations

from collections.abc import Mapping

from .assignment_model import Assignment, Decision, Limits, canonical
from .fleet import Fleet, Step, next_step

#: In a large cluster a step may have one move for so many workers.
SHARE = 20


class Planner:
    """Arguments: `limits`; `moves`, those of one step beyond what short groups need; `cooldown`, seconds between
    decisions for load."""

    def __init__(self, limits: Limits, moves: int, cooldown: float) -> None:
        self.limits = limits
        self._moves = moves
        self._cooldown = cooldown
        self._membership: object = None
        self._goal: Assignment = canonical({})
        self._expected: Assignment = canonical({})
        self._reasons: Mapping[tuple[str, str], str] = {}
        self._decided_at = 0.0

    def forget(self) -> None:
        """What was decided counts no more: somebody else has decided meanwhile."""
        self._membership = None

    def reached(self, fleet: Fleet) -> bool:
        """Whether everybody holds what is wanted, or is about to."""
        return fleet.intended == self._goal

    def due(self, fleet: Fleet, now: float) -> bool:
        """Whether to decide anew at `now`, in seconds of a steady clock."""
        if fleet.membership != self._membership or fleet.intended != self._expected:
            return True  # two who decide would undo each other's steps for ever, if each kept to a goal of its own
        return self.reached(fleet) and now - self._decided_at >= self._cooldown

    def take(self, fleet: Fleet, decision: Decision, now: float) -> None:
        """The decision that was made for this fleet is the goal from `now` on."""
        self._membership = fleet.membership
        self._goal, self._reasons = decision.wanted, decision.reasons
        self._decided_at = now

    def step(self, fleet: Fleet) -> Step:
        """What to tell whom now."""
        moves = max(self._moves, len(fleet.workers) // SHARE)
        step = next_step(fleet, self._goal, self._reasons, min_group=self.limits.min_group, moves=moves)
        self._expected = canonical({**fleet.intended, **step.wishes})
        return step

"""Every state of the lease and claim protocol within bounds, and for each guard that its loss would be noticed.

`SHARDFLOW_MODEL_FULL=1` adds the searches that take a minute. What is modelled, and what not, is in docs/model.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
from model.search import Found, search
from model.state import Rules

full = pytest.mark.skipif(not os.environ.get("SHARDFLOW_MODEL_FULL"), reason="only with SHARDFLOW_MODEL_FULL=1")

ONE = Rules(workflows=1, steps=2, disturbances=3)
TWO = Rules(workflows=2, steps=2, disturbances=1)


def holds(found: Found) -> None:
    print(f"{found.states} states, {found.moves} moves")
    assert not found.broken, "\n".join((found.broken, *found.trace))


def test_one_workflow_and_any_number_of_disturbances() -> None:
    holds(search(Rules(workflows=1, steps=2, waits=True)))


def test_two_workflows() -> None:
    holds(search(Rules(workflows=2, steps=2, disturbances=2)))


@full
def test_two_workflows_and_one_disturbance_more() -> None:
    holds(search(Rules(workflows=2, steps=2, disturbances=3)))


@full
def test_two_old_turns_under_one_lease_add_nothing() -> None:
    one, two = (search(Rules(workflows=1, steps=2, messages=n)) for n in (1, 2))
    holds(two)
    assert one.states == two.states


@full
def test_three_workflows() -> None:
    holds(search(Rules(workflows=3, steps=1, disturbances=1)))


@dataclass(frozen=True)
class Mutant:
    """A guard taken away: the rules without it, the invariant that breaks, and after how many moves."""

    name: str
    rules: Rules
    breaks: str
    moves: int


#: What a user would see, where I2 and the primary keys are not looked at.
HARM = replace(ONE, disturbances=2, check_fence=False, check_refused=False, leases=5)

MUTANTS = [
    Mutant("fence without the lease", replace(ONE, fence_checks_lease=False), "I2", 9),
    Mutant("fence without the lease, harm", replace(HARM, fence_checks_lease=False), "C", 13),
    Mutant("fence without the epoch", replace(ONE, fence_checks_epoch=False), "I2", 5),
    Mutant("fence without the epoch, harm", replace(HARM, fence_checks_epoch=False), "liveness", 5),
    Mutant("fence without the lock", replace(ONE, fence_locks=False), "I2", 9),
    Mutant("fence without the lock, harm", replace(HARM, fence_locks=False), "C", 13),
    Mutant("end reads before it waits", replace(TWO, end_waits=False), "I1", 15),
    Mutant("end does not hand back", replace(ONE, end_hands_back=False), "I1", 5),
    Mutant("end leaves the claims", replace(ONE, end_drops_claims=False), "liveness", 4),
    Mutant("end ignores outcomes", replace(TWO, end_skips_ended=False), "I1", 16),
    Mutant("end does not mark a replay", replace(ONE, end_marks_replay=False), "C", 13),
    Mutant("resume does not wait", replace(ONE, resume_waits=False), "I2", 5),
    Mutant("resume does not wait, harm", replace(HARM, resume_waits=False), "liveness", 5),
    Mutant("resume reads after its transaction", replace(ONE, resume_reads_under_lock=False), "I4", 16),
    Mutant("resume leaves unseen claims", replace(ONE, resume_starts_unseen=False), "liveness", 4),
    Mutant("doubt is taken for committed", replace(ONE, doubt="committed"), "I4", 7),
    Mutant("doubt is taken for not committed", replace(ONE, doubt="not committed"), "keys", 11),
    Mutant("acknowledge before the commit", replace(ONE, acknowledge_after_commit=False), "I4", 6),
    Mutant("claim leaves the ready row", replace(ONE, claim_deletes=False), "I1", 3),
    Mutant("suspension leaves the receipt", replace(ONE, waits=True, wait_leaves_receipt=False), "I1", 6),
]

CALM = replace(ONE, disturbances=2)
#: Guards that others cover: nothing breaks without them.
REDUNDANT = {
    "no keys on step and outcome": replace(CALM, step_key=False, outcome_key=False),
    "no foreign key": replace(CALM, foreign_key=False),
    "doubt is taken for not committed, keys may refuse": replace(
        CALM, doubt="not committed", check_refused=False, leases=5
    ),
}

UNSURE = replace(HARM, doubt="not committed")
PAIRS = [
    Mutant("no key on step, doubt not committed", replace(UNSURE, step_key=False), "I4", 11),
    Mutant("no key on outcome, doubt not committed", replace(UNSURE, outcome_key=False), "one outcome", 18),
    Mutant("no foreign key, fence without the lock", replace(HARM, foreign_key=False, fence_locks=False), "I1", 5),
    Mutant("no foreign key, claims left", replace(ONE, foreign_key=False, end_drops_claims=False), "I1", 5),
]


def test_a_frozen_worker_may_start_the_one_step_that_it_was_about_to() -> None:
    """No lease can hold back a step's first line: see docs/model.md."""
    found = search(replace(ONE, strict_starts=True), symmetry=False)
    print(found.broken, *found.trace, sep="\n")
    assert found.broken.startswith("C, strictly")
    assert found.trace[-1] == "worker 0 starts step 0 of workflow 0"
    assert "worker 1 ends the lease of worker 0" in found.trace


@pytest.mark.parametrize("mutant", [*MUTANTS, *PAIRS], ids=lambda mutant: mutant.name)
def test_without_a_guard_an_invariant_breaks(mutant: Mutant) -> None:
    found = search(mutant.rules, symmetry=False)
    print(found.broken, *(f"{n:3} {move}" for n, move in enumerate(found.trace, 1)), sep="\n")
    assert (found.broken.split(":")[0], len(found.trace)) == (mutant.breaks, mutant.moves)


@pytest.mark.parametrize("name", REDUNDANT)
def test_a_guard_that_another_one_covers(name: str) -> None:
    holds(search(REDUNDANT[name]))

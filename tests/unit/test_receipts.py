"""Receipts against a model: a dictionary of what the claim table must hold after every turn."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shardflow.worker.receipts import MANY, Receipts


class ClaimTable(RuleBasedStateMachine):
    """Plays the commit loop: claims, ends, suspensions, lost answers; `table` is what results from its turns."""

    def __init__(self) -> None:
        super().__init__()
        self.receipts = Receipts()
        self.table: dict[int, dict[int, int]] = {}
        self.open: dict[int, int] = {}
        self.pending: set[int] = set()
        self.numbers: set[int] = set()
        self.next = 1

    @rule(attempts=st.lists(st.integers(0, 5), min_size=1, max_size=12))
    def claim(self, attempts: list[int]) -> None:
        number = self.receipts.number()
        assert number not in self.numbers, "a receipt's number was used before"
        self.numbers.add(number)
        rows = {self.next + n: attempt for n, attempt in enumerate(attempts)}
        self.next += len(rows)
        self.receipts.add(number, rows)
        self.table[number] = dict(rows)
        self.open.update(rows)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end_some(self, data: st.DataObject) -> None:
        for wf in data.draw(st.lists(st.sampled_from(sorted(self.open)), unique=True, max_size=8)):
            named = [number for number, rows in self.table.items() if wf in rows]
            assert [self.receipts.resolve(wf)] == named
            assert self.receipts.resolve(wf) is None
            del self.open[wf]

    @rule(data=st.data(), share=st.integers(0, 3))
    def turn(self, data: st.DataObject, share: int) -> None:
        leaving: list[int] = []
        if share == 0 and self.open:
            leaving = data.draw(st.lists(st.sampled_from(sorted(self.open)), unique=True, max_size=4))
        for wf in leaving:
            del self.open[wf]
        dropped, kept = self.receipts.settle(leaving)
        assert len(set(dropped)) == len(dropped)
        for number in dropped:
            del self.table[number]
        if kept is not None:
            assert kept.wfs
            assert kept.batch not in self.numbers
            self.numbers.add(kept.batch)
            self.table[kept.batch] = dict(zip(kept.wfs, kept.attempts, strict=True))
        in_table = {wf for rows in self.table.values() for wf in rows}
        assert not in_table.intersection(leaving), "a suspended workflow is still claimed"
        assert len(self.table) <= MANY + len(self.open), "receipts pile up"
        assert all(self.open.keys() & rows.keys() for rows in self.table.values()), "an empty receipt is left"

    @rule(empty=st.integers(0, 2))
    def reread(self, empty: int) -> None:
        """After a lost answer: what the shard says the lease holds; some receipts hold nothing any more."""
        for _ in range(empty):
            number = max(self.numbers, default=0) + 1
            self.numbers.add(number)
            self.table[number] = {}
        held = {
            number: left
            for number, rows in self.table.items()
            if (left := {wf: attempt for wf, attempt in rows.items() if wf in self.open})
        }
        self.receipts.replace(held, self.table)

    @invariant()
    def holds_what_is_open_with_its_attempt(self) -> None:
        held = {wf: attempt for rows in self.receipts.held.values() for wf, attempt in rows.items()}
        assert held == self.open
        assert sum(map(len, self.receipts.held.values())) == len(self.open), "in two receipts"
        for number, rows in self.receipts.held.items():
            assert rows.items() <= self.table[number].items()


TestClaimTable = ClaimTable.TestCase
TestClaimTable.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_a_receipt_is_dropped_with_its_last_workflow() -> None:
    receipts = Receipts()
    number = receipts.number()
    receipts.add(number, {1: 0, 2: 3})
    receipts.resolve(1)
    assert receipts.settle(()) == ([], None)
    receipts.resolve(2)
    assert receipts.settle(()) == ([number], None)
    assert receipts.settle(()) == ([], None)


def test_a_suspended_workflow_leaves_and_the_rest_is_written_anew() -> None:
    receipts = Receipts()
    receipts.add(receipts.number(), {1: 0, 2: 3, 4: 1})
    dropped, kept = receipts.settle([1])
    assert dropped == [1]
    assert kept is not None
    assert (kept.batch, kept.wfs, kept.attempts) == (2, [2, 4], [3, 1])


def test_stragglers_of_many_receipts_are_merged_into_one() -> None:
    receipts = Receipts()
    for n in range(MANY + 1):
        receipts.add(receipts.number(), {10 * n + k: 0 for k in range(8)})
    for n in range(MANY + 1):
        for k in range(7):
            receipts.resolve(10 * n + k)
    dropped, kept = receipts.settle(())
    assert len(dropped) == MANY + 1
    assert kept is not None
    assert sorted(kept.wfs) == [10 * n + 7 for n in range(MANY + 1)]
    assert list(receipts.held) == [kept.batch]


def test_what_the_lease_does_not_hold_resolves_to_nothing() -> None:
    receipts = Receipts()
    assert receipts.resolve(7) is None
    assert receipts.settle([7]) == ([], None)

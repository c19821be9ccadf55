"""The states of the lease model: a shard's rows, its workers' memory and what is under way between them.

Everything is a tuple of small integers, so that states compare and hash. See docs/model.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

#: A `ready` row: none, one of a fresh submission, one with `replay` set.
NO, FRESH, AGAIN = 0, 1, 2
#: A run's phase is 4 * (what it is at) + one of these. AT: about to start the step. PENDING: its write has gathered.
#: SENT: the write is in a turn that was not answered. WRITTEN: likewise, and that turn has committed, which the
#: worker does not know. What it is at: a step's number, then the outcome, then a suspension instead of a run.
AT, PENDING, SENT, WRITTEN = range(4)
#: No run here; nothing to write.
NONE = -1
#: A worker's connection: lost, there, resumed without having read, lost for good because the worker leaves.
OFF, ON, RESUMED, LEAVING = range(4)


class Workflow(NamedTuple):
    """What the shard has of one workflow besides the receipts; `acked` (a set of bits like `steps`) is a ghost."""

    ready: int
    waiting: bool
    ended: bool
    steps: int
    acked: int


class Turn(NamedTuple):
    """A turn: whether it is in flight (`open`, fence passed) or not begun (a message in an old connection's socket).

    `stale`: sent under an older epoch. `mine`: the worker that sent it still has the runs it was for.
    `writes`: per workflow what it writes; `claims`: per workflow the `ready` row that it takes, or NO.
    """

    open: bool
    stale: bool
    mine: bool
    writes: tuple[int, ...]
    claims: tuple[int, ...]


class Lease(NamedTuple):
    """A lease, with its receipts (sets of workflows as bits) and the turns of lost connections that name it.

    `gone`: there is no such row any more, but somebody still refers to it.
    """

    gone: bool
    receipts: tuple[int, ...]
    old: tuple[Turn, ...]


#: In place of a lease or turn: there is none. An empty tuple, so that it sorts.
Nothing = tuple[()]


class Worker(NamedTuple):
    """A worker's memory: connection, the lease it believes to hold, its runs, and the turn in flight.

    `answer`: that turn has committed and its answer, with these claims, is under way. A worker that is frozen is one
    that does not move for a while; one that crashed has nothing and may begin anew.
    """

    conn: int
    lease: Lease | Nothing
    runs: tuple[int, ...]
    turn: Turn | Nothing
    answer: tuple[int, ...]


class State(NamedTuple):
    """Everything; `orphans` are leases whose holder is no more, `left` how many disturbances may still happen."""

    workflows: tuple[Workflow, ...]
    workers: tuple[Worker, ...]
    orphans: tuple[Lease, ...]
    left: int


@dataclass(frozen=True)
class Rules:
    """The guards, each of which a mutant takes away, and the bounds."""

    fence_checks_lease: bool = True
    fence_checks_epoch: bool = True
    fence_locks: bool = True
    foreign_key: bool = True
    end_waits: bool = True
    end_hands_back: bool = True
    end_drops_claims: bool = True
    end_skips_ended: bool = True
    end_marks_replay: bool = True
    resume_waits: bool = True
    resume_starts_unseen: bool = True
    resume_reads_under_lock: bool = True
    doubt: str = "asked"  # or "committed", "not committed": what a resume assumes
    acknowledge_after_commit: bool = True
    claim_deletes: bool = True
    wait_leaves_receipt: bool = True
    step_key: bool = True
    outcome_key: bool = True
    # What is looked for.
    check_fence: bool = True
    check_refused: bool = True
    strict_starts: bool = False
    # Bounds.
    workflows: int = 2
    steps: int = 2
    disturbances: int = -1  # without limit
    waits: bool = False
    messages: int = 1  # turns of lost connections per lease
    leases: int = 3

    @property
    def outcome(self) -> int:
        """What a run is at when it writes its outcome."""
        return self.steps

    @property
    def suspension(self) -> int:
        return self.steps + 1


def initial(rules: Rules) -> State:
    """Everything submitted, no worker with a lease."""
    n = rules.workflows
    worker = Worker(OFF, (), (NONE,) * n, (), ())
    return State((Workflow(FRESH, False, False, 0, 0),) * n, (worker, worker), (), rules.disturbances)


def put(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])


def live(state: State) -> Iterator[Lease]:
    """The leases that have a row."""
    for worker in state.workers:
        if worker.lease and not worker.lease.gone:
            yield worker.lease
    for lease in state.orphans:
        if not lease.gone:
            yield lease


def locked(state: State) -> int:
    """The workflows, as bits, whose `ready` row a turn in flight has taken."""
    bits = 0
    for worker in state.workers:
        for turn in (*([worker.turn] if worker.turn else ()), *(worker.lease.old if worker.lease else ())):
            if turn.open:
                bits |= mask(turn.claims)
    for lease in state.orphans:
        for turn in lease.old:
            if turn.open:
                bits |= mask(turn.claims)
    return bits


def mask(claims: tuple[int, ...]) -> int:
    return sum(1 << i for i, kind in enumerate(claims) if kind)


def misplaced(state: State) -> str:
    """Invariant I1, as a complaint or nothing."""
    leases = list(live(state))
    for i, workflow in enumerate(state.workflows):
        claims = sum(receipt >> i & 1 for lease in leases for receipt in lease.receipts)
        waiting = (workflow.ready != NO) + workflow.waiting
        if workflow.ended and waiting:
            return f"I1: workflow {i} has ended and is still to be claimed"
        if not workflow.ended and waiting + claims != 1:
            return f"I1: workflow {i} is in {waiting + claims} places"
    return ""


def finished(state: State) -> bool:
    return all(workflow.ended for workflow in state.workflows)


def canonical(state: State) -> State:
    """One of the states that differ only in the names of workers, workflows and orphaned leases."""
    order = list(range(len(state.workflows)))
    if len(order) > 1:
        order.sort(key=[_looks(state, i) for i in order].__getitem__)
    if order != sorted(order):
        state = State(
            tuple(state.workflows[i] for i in order),
            tuple(
                Worker(
                    w.conn,
                    _reordered(w.lease, order) if w.lease else (),
                    tuple(w.runs[i] for i in order),
                    _turn(w.turn, order) if w.turn else (),
                    tuple(w.answer[i] for i in order) if w.answer else (),
                )
                for w in state.workers
            ),
            tuple(_reordered(lease, order) for lease in state.orphans),
            state.left,
        )
    workers, orphans = state.workers, state.orphans
    if workers[0] > workers[1]:
        workers = (workers[1], workers[0])
    if len(orphans) > 1:
        orphans = tuple(sorted(orphans))
    return State(state.workflows, workers, orphans, state.left)


def _looks(state: State, i: int) -> tuple[Workflow, list[tuple[int, ...]]]:
    """A workflow as it looks whatever it is called; two that look the same keep their order."""
    seen = []
    for w in state.workers:
        held = sum(receipt >> i & 1 for receipt in w.lease.receipts) if w.lease else NONE
        turn = (w.turn.claims[i], w.turn.open) if w.turn else ()
        seen.append((w.conn, w.runs[i], held, w.answer[i] if w.answer else NONE, *turn))
    return state.workflows[i], sorted(seen)


def _reordered(lease: Lease, order: list[int]) -> Lease:
    receipts = tuple(sorted(sum((r >> i & 1) << at for at, i in enumerate(order)) for r in lease.receipts))
    return Lease(lease.gone, receipts, tuple(_turn(turn, order) for turn in lease.old))


def _turn(turn: Turn, order: list[int]) -> Turn:
    writes, claims = turn.writes, turn.claims
    return turn._replace(writes=tuple(writes[i] for i in order), claims=tuple(claims[i] for i in order))

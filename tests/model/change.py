"""States with something changed, for the moves of the lease model."""

from __future__ import annotations

from .state import NONE, OFF, Lease, Rules, State, Worker, Workflow

#: What a move is called; that of a disturbance begins with "!".
Label = tuple[str, *tuple[object, ...]]
#: A label, the state after, and a complaint where the move itself breaks an invariant.
Move = tuple[Label, State, str]
Workflows = tuple[Workflow, ...]


def with_worker(
    state: State,
    x: int,
    worker: Worker,
    *,
    workflows: Workflows | None = None,
    orphans: tuple[Lease, ...] | None = None,
    cost: int = 0,
) -> State:
    """The state with another worker; `cost` disturbances are used up."""
    return State(
        state.workflows if workflows is None else workflows,
        (worker, state.workers[1]) if x == 0 else (state.workers[0], worker),
        state.orphans if orphans is None else orphans,
        state.left if state.left < 0 else state.left - cost,
    )


def with_lease(state: State, rules: Rules, at: int, lease: Lease) -> State:
    """The state with another lease of worker `at`, or of orphan `at - 2`, which goes when nothing refers to it."""
    lease = kept(lease, rules)
    if at < 2:
        return with_worker(state, at, state.workers[at]._replace(lease=lease))
    k = at - 2
    here = () if lease.gone and not lease.old else (lease,)
    return state._replace(orphans=(*state.orphans[:k], *here, *state.orphans[k + 1 :]))


def kept(lease: Lease, rules: Rules) -> Lease:
    """Without the messages that the fence would refuse whenever they are read: they can do nothing any more."""
    if not lease.old:
        return lease
    old = tuple(
        turn
        for turn in lease.old
        if turn.open or not ((lease.gone and rules.fence_checks_lease) or (turn.stale and rules.fence_checks_epoch))
    )
    return lease if len(old) == len(lease.old) else lease._replace(old=old)


def ended(lease: Lease, rules: Rules) -> Lease:
    """The lease as those see it who do not know that its row is gone."""
    return kept(Lease(True, (), lease.old), rules)


def parted(worker: Worker, rules: Rules) -> tuple[Lease, ...]:
    """The lease of a worker that has forgotten everything, as an orphan, with the turns that it sent."""
    if not worker.lease:
        return ()
    old = (*worker.lease.old, *([worker.turn] if worker.turn else []))
    lease = kept(worker.lease._replace(old=tuple(sorted(turn._replace(mine=False) for turn in old))), rules)
    return () if lease.gone and not lease.old else (lease,)


def abandoned(state: State, rules: Rules, x: int, worker: Worker, *, cost: int = 0) -> State:
    """Link._lose, and equally a crash: the worker has no lease and no runs; what it had is left to the peers."""
    blank = Worker(OFF, (), (NONE,) * rules.workflows, (), ())
    return with_worker(state, x, blank, orphans=(*state.orphans, *parted(worker, rules)), cost=cost)

"""Connections and leases of the lease model: losing, resuming, opening, releasing and expiring them."""

from __future__ import annotations

from collections.abc import Iterator

from .change import Label, Move, Workflows, abandoned, ended, kept, with_lease, with_worker
from .state import (
    AGAIN,
    FRESH,
    LEAVING,
    NONE,
    OFF,
    ON,
    PENDING,
    RESUMED,
    SENT,
    Lease,
    Rules,
    State,
    Turn,
    Worker,
    live,
)
from .turns import settle, starts, write, written


def connection_moves(state: State, rules: Rules, x: int, worker: Worker) -> Iterator[Move]:
    """What a worker loses, and how it comes back: Link.serve and Link._session."""
    lease = worker.lease
    if lease and state.left:
        yield from _losses(state, rules, x, worker, lease)
    if not lease:
        if sum(1 for _ in live(state)) < rules.leases:
            opened = worker._replace(conn=ON, lease=Lease(False, (), ()))
            yield ("worker", x, "opens a lease"), with_worker(state, x, opened), ""
    elif lease.gone:
        # The fence refuses, the renewal finds nothing, or so does the resume.
        if worker.conn != RESUMED and not worker.answer:
            yield ("worker", x, "learns that its lease is gone"), abandoned(state, rules, x, worker), ""
    elif worker.conn == OFF and not (rules.resume_waits and _held(lease, (), rules)):
        resumed = kept(lease._replace(old=tuple(sorted(turn._replace(stale=True) for turn in lease.old))), rules)
        after = worker._replace(conn=RESUMED, lease=resumed)
        label: Label = ("worker", x, "resumes its lease")
        if rules.resume_reads_under_lock:
            yield from _reread(with_worker(state, x, after), rules, x, after, (*label, "and reads what it holds"))
        else:
            yield label, with_worker(state, x, after), ""
    elif worker.conn == LEAVING:
        for workflows, rest, _ in _end(state, rules, lease, worker):
            rested = state._replace(workflows=workflows)
            after = worker._replace(lease=rest)
            yield ("worker", x, "releases its lease"), abandoned(rested, rules, x, after), ""
    if worker.conn == RESUMED and lease:
        yield from _reread(state, rules, x, worker, ("worker", x, "reads what its lease holds"))


def _losses(state: State, rules: Rules, x: int, worker: Worker, lease: Lease) -> Iterator[Move]:
    under_way = 1 if worker.turn else 0
    if worker.conn in (ON, RESUMED) and len(lease.old) + under_way <= rules.messages:
        old = (*lease.old, *([worker.turn] if worker.turn else []))
        lost = worker._replace(conn=OFF, lease=lease._replace(old=tuple(sorted(old))), turn=(), answer=())
        yield ("!worker", x, "loses its connection"), with_worker(state, x, lost, cost=1), ""
    if not lease.gone and sum(1 for _ in live(state)) < rules.leases:
        yield ("!worker", x, "crashes"), abandoned(state, rules, x, worker, cost=1), ""
    if worker.conn != LEAVING and len(lease.old) + under_way <= rules.messages:
        old = (*lease.old, *([worker.turn] if worker.turn else []))
        own = lease._replace(old=tuple(sorted(turn._replace(mine=False) for turn in old)))
        leaving = Worker(LEAVING, kept(own, rules), (NONE,) * rules.workflows, (), ())
        yield ("!worker", x, "stops its runs to leave"), with_worker(state, x, leaving, cost=1), ""


def _reread(state: State, rules: Rules, x: int, worker: Worker, label: Label) -> Iterator[Move]:
    """Link._reconcile: the turn in doubt, then claims that were never seen."""
    lease = worker.lease
    assert lease
    named = 0
    for receipt in lease.receipts:
        named |= receipt
    held = {i: AGAIN for i, w in enumerate(state.workflows) if named >> i & 1 and not w.ended}
    doubt = [i for i, phase in enumerate(worker.runs) if phase >= 0 and phase & 3 >= SENT]
    workflows, runs, broken = state.workflows, worker.runs, ""
    if doubt:
        if _asked(state, rules, worker, doubt, held):
            workflows, runs, broken = settle(worker, workflows, rules, doubt)
        else:
            runs = tuple((p & ~3) + PENDING if p >= 0 and p & 3 >= SENT else p for p in runs)
    unseen = {i: kind for i, kind in held.items() if runs[i] == NONE} if rules.resume_starts_unseen else {}
    for begun in starts(state, rules, runs, unseen):
        after = worker._replace(conn=ON, runs=begun)
        yield label, with_worker(state, x, after, workflows=workflows), broken


def _asked(state: State, rules: Rules, worker: Worker, doubt: list[int], held: dict[int, int]) -> bool:
    """storage.turn.written: asked of one step and one outcome of the turn; of the receipts where it had neither."""
    if rules.doubt != "asked":
        return rules.doubt == "committed"
    at = {i: worker.runs[i] >> 2 for i in doubt}
    step = next((i for i in doubt if at[i] < rules.steps), None)
    outcome = next((i for i in doubt if at[i] == rules.outcome), None)
    if step is None and outcome is None:
        return not any(i in held for i in doubt)
    there = step is not None and state.workflows[step].steps >> at[step] & 1
    return bool(there) or (outcome is not None and state.workflows[outcome].ended)


# -- the end of a lease


def ends(state: State, rules: Rules, x: int, worker: Worker) -> Iterator[Move]:
    """Keeper._watch: a worker ends the other's lease, at any time, or one whose holder is no more."""
    if worker.conn != ON or not worker.lease:
        return
    y = 1 - x
    other = state.workers[y]
    if other.lease and not other.lease.gone and state.left:
        for workflows, rest, ran in _end(state, rules, other.lease, other):
            label: Label = ("!worker", x, "ends the lease of worker", y)
            yield label, with_worker(state, y, ran._replace(lease=rest), workflows=workflows, cost=1), ""
    for k, orphan in enumerate(state.orphans):
        if not orphan.gone:
            for workflows, rest, _ in _end(state, rules, orphan, None):
                after = with_lease(state._replace(workflows=workflows), rules, 2 + k, rest)
                yield ("worker", x, "ends the lease of a former worker"), after, ""


def _held(lease: Lease, turns: tuple[Turn, ...], rules: Rules) -> bool:
    """Whether a turn in flight has the lease's row locked: by the fence, or by the foreign key of its claim."""
    return any(
        turn.open and (rules.fence_locks or (rules.foreign_key and any(turn.claims))) for turn in (*lease.old, *turns)
    )


def _end(
    state: State, rules: Rules, lease: Lease, worker: Worker | None
) -> Iterator[tuple[Workflows, Lease, Worker]]:
    """end_lease: waits for turns in flight, puts back what is left, deletes the row. Answers what it leaves."""
    runner = worker or state.workers[0]
    turns = (worker.turn,) if worker is not None and worker.turn else ()
    workflows = state.workflows
    receipts = lease.receipts
    if _held(lease, turns, rules):
        if rules.end_waits or not turns:
            return
        # The mutant reads, then waits in its DELETE of the row: the holder's turn commits in between.
        done = write(state, rules, lease, turns[0])
        if done is None or not set(done[1].receipts) <= set(receipts):
            return  # a new receipt: the foreign key keeps the row
        before, (workflows, lease, _) = workflows, done
        receipts = lease.receipts
        runner = runner._replace(runs=written(runner.runs, turns[0]), turn=(), answer=turns[0].claims)
    else:
        before = workflows
    if not rules.end_drops_claims:
        if receipts and rules.foreign_key:
            return
        receipts = ()
    back = 0
    for receipt in receipts:
        back |= receipt
    if rules.end_hands_back:
        kind = AGAIN if rules.end_marks_replay else FRESH
        workflows = tuple(
            w._replace(ready=kind) if back >> i & 1 and not (rules.end_skips_ended and before[i].ended) else w
            for i, w in enumerate(workflows)
        )
    yield workflows, ended(lease, rules), runner

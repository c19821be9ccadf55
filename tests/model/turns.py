"""Steps, turns and claims of the lease model: what a worker and its turns may do next, as the code does it.

Each function stands for statements or functions of the code; docs/model.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from .change import Label, Move, Workflows, abandoned, kept, with_lease, with_worker
from .state import (
    AGAIN,
    AT,
    NO,
    NONE,
    OFF,
    ON,
    PENDING,
    SENT,
    WRITTEN,
    Lease,
    Rules,
    State,
    Turn,
    Worker,
    locked,
    mask,
    put,
)

# -- a worker's memory


def start_steps(state: State, rules: Rules, x: int, worker: Worker) -> Iterator[Move]:
    """Run._step: the function is called, and its outcome gathers. Whether the lease still stands is not asked."""
    for i, phase in enumerate(worker.runs):
        if phase < 0 or phase & 3 != AT:
            continue
        step = phase >> 2
        broken = ""
        if worker.lease and not worker.lease.gone and state.workflows[i].steps >> step & 1:
            broken = f"C: the holder starts step {step} of workflow {i} behind its checkpoint"
        elif rules.strict_starts and state.workflows[i].acked >> step & 1:
            broken = f"C, strictly: step {step} of workflow {i} starts although it was acknowledged"
        runs = put(worker.runs, i, phase - AT + PENDING)
        after = with_worker(state, x, worker._replace(runs=runs))
        yield ("worker", x, "starts step", step, "of workflow", i), after, broken


def settle(
    worker: Worker, workflows: Workflows, rules: Rules, settled: list[int]
) -> tuple[Workflows, tuple[int, ...], str]:
    """CommitLoop.settle: the workflows behind these writes go on. What they are told must be what is recorded."""
    runs, broken = worker.runs, ""
    for i in settled:
        at = runs[i] >> 2
        recorded = workflows[i]
        if at < rules.steps:
            if runs[i] & 3 != WRITTEN:
                whose = "another value" if recorded.steps >> at & 1 else "nothing"
                broken = f"I4: step {at} of workflow {i} is acknowledged, but {whose} is recorded"
            if rules.strict_starts:
                acked = recorded._replace(acked=recorded.acked | 1 << at)
                workflows = (*workflows[:i], acked, *workflows[i + 1 :])
            runs = put(runs, i, (at + 1) * 4 + (AT if at + 1 < rules.steps else PENDING))
        else:
            if at == rules.outcome and not recorded.ended:
                broken = f"I4: the end of workflow {i} is taken for written, and nothing is recorded"
            runs = put(runs, i, NONE)
    return workflows, runs, broken


def starts(state: State, rules: Rules, runs: tuple[int, ...], claimed: dict[int, int]) -> list[tuple[int, ...]]:
    """Link._begin and _replay: fresh ones from the start, the others behind their checkpoints; or Link.refuse."""
    choices: list[tuple[int, ...]] = []
    for i, phase in enumerate(runs):
        if i not in claimed:
            choices.append((phase,))
            continue
        at = 0
        if claimed[i] == AGAIN:
            while state.workflows[i].steps >> at & 1:
                at += 1
        begun = at * 4 + (AT if at < rules.steps else PENDING)
        choices.append((begun, rules.suspension * 4 + PENDING) if rules.waits else (begun,))
    return list(product(*choices))


# -- a worker's turn


def turn_moves(state: State, rules: Rules, x: int, worker: Worker) -> Iterator[Move]:
    """CommitLoop._compose and storage.turn.commit on the connection that the worker has."""
    if worker.answer:
        settled = [i for i, phase in enumerate(worker.runs) if phase >= 0 and phase & 3 == WRITTEN]
        workflows, runs, broken = settle(worker, state.workflows, rules, settled)
        claimed = {i: kind for i, kind in enumerate(worker.answer) if kind}
        for begun in starts(state, rules, runs, claimed):
            after = worker._replace(runs=begun, answer=())
            yield ("worker", x, "has its answer"), with_worker(state, x, after, workflows=workflows), broken
        return
    if worker.turn:
        yield from _commit_own(state, rules, x, worker, worker.turn)
        return
    if worker.conn != ON or not worker.lease:
        return
    writes, runs = _gather(worker)
    ready = any(w.ready for w in state.workflows)
    if any(at >= 0 for at in writes) or ready:
        if len(worker.lease.old) < rules.messages and state.left:
            turn = Turn(False, False, True, writes, (NO,) * rules.workflows)
            lease = kept(worker.lease._replace(old=tuple(sorted((*worker.lease.old, turn)))), rules)
            lost = worker._replace(conn=OFF, lease=lease, runs=runs)
            yield (
                ("!worker", x, "sends a turn that nobody has read when the connection is lost"),
                with_worker(state, x, lost, cost=1),
                "",
            )
        for claims in _claims(state, rules, worker.lease, writes):
            broken = ""
            if not rules.acknowledge_after_commit and any(0 <= at < rules.steps for at in writes):
                broken = "I4: a step is acknowledged, and nothing is recorded"
            sent = with_worker(state, x, worker._replace(runs=runs, turn=Turn(True, False, True, writes, claims)))
            yield ("worker", x, "has in flight:", _said(writes, claims, rules)), sent, broken


def _gather(worker: Worker) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pending.take: what the next turn writes, and the runs when it is sent."""
    pending = [phase >= 0 and phase & 3 == PENDING for phase in worker.runs]
    writes = tuple(phase >> 2 if p else NONE for phase, p in zip(worker.runs, pending, strict=True))
    runs = tuple(phase - PENDING + SENT if p else phase for phase, p in zip(worker.runs, pending, strict=True))
    return writes, runs


def _claims(state: State, rules: Rules, lease: Lease, writes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The fence, then what the claim may take: any unlocked `ready` rows (SKIP LOCKED). Nothing if refused."""
    if lease.gone and rules.fence_checks_lease:
        return
    taken = locked(state)
    free = [
        w.ready if w.ready and not taken >> i & 1 and not (lease.gone and rules.foreign_key) else NO
        for i, w in enumerate(state.workflows)
    ]
    for claims in product(*((NO, kind) if kind else (NO,) for kind in free)):
        if any(claims) or any(at >= 0 for at in writes):
            yield claims


def write(state: State, rules: Rules, lease: Lease, turn: Turn) -> tuple[Workflows, Lease, str] | None:
    """COMMIT of a turn; None where a primary key refuses it."""
    broken = ""
    if rules.check_fence and (lease.gone or turn.stale):
        broken = f"I2: a turn commits under a lease {'that is gone' if lease.gone else 'of a newer epoch'}"
    workflows = list(state.workflows)
    leaving = 0
    for i, at in enumerate(turn.writes):
        w = workflows[i]
        if at < 0:
            continue
        if at < rules.steps:
            if w.steps >> at & 1:
                if rules.step_key:
                    return None
                broken = broken or f"I4: step {at} of workflow {i} is written twice"
            workflows[i] = w._replace(steps=w.steps | 1 << at)
        elif at == rules.outcome:
            if w.ended:
                if rules.outcome_key:
                    return None
                broken = broken or f"one outcome: workflow {i} ends twice"
            workflows[i] = w._replace(ended=True)
        else:
            if w.waiting:
                return None
            workflows[i] = w._replace(waiting=True)
            leaving |= rules.wait_leaves_receipt << i
    claimed = mask(turn.claims)
    if claimed and rules.claim_deletes:
        workflows = [w._replace(ready=NO) if claimed >> i & 1 else w for i, w in enumerate(workflows)]
    open_ = sum((not w.ended) << i for i, w in enumerate(workflows))
    receipts = [*(r & ~leaving for r in lease.receipts), *([claimed] if claimed else [])]
    left = lease._replace(receipts=tuple(sorted(r for r in receipts if r & open_)))
    return tuple(workflows), left, broken


def _commit_own(state: State, rules: Rules, x: int, worker: Worker, turn: Turn) -> Iterator[Move]:
    assert worker.lease
    if (done := write(state, rules, worker.lease, turn)) is None:
        refused = abandoned(state, rules, x, worker._replace(turn=()))
        broken = "keys: a primary key had to refuse a turn" if rules.check_refused else ""
        yield ("turn of worker", x, "is refused as a duplicate; it drops its lease"), refused, broken
        return
    workflows, lease, broken = done
    after = worker._replace(lease=lease, runs=written(worker.runs, turn), turn=(), answer=turn.claims)
    yield ("turn of worker", x, "commits"), with_worker(state, x, after, workflows=workflows), broken


def written(runs: tuple[int, ...], turn: Turn) -> tuple[int, ...]:
    return tuple(at * 4 + WRITTEN if at >= 0 else phase for phase, at in zip(runs, turn.writes, strict=True))


def old_turns(state: State, rules: Rules, at: int, lease: Lease) -> Iterator[Move]:
    """Turns of lost connections: the server reads one, commits it or rolls it back. `at`: a worker or 2 + orphan."""
    for n, turn in enumerate(lease.old):
        rest = (*lease.old[:n], *lease.old[n + 1 :])
        whose = f"a lost connection of worker {at}" if at < 2 else "a lost connection of a former worker"
        yield ("turn of", whose, "vanishes"), with_lease(state, rules, at, lease._replace(old=rest)), ""
        if not turn.open:
            if turn.stale and rules.fence_checks_epoch:
                continue
            for claims in _claims(state, rules, lease, turn.writes):
                begun = turn._replace(open=True, claims=claims)
                after = lease._replace(old=tuple(sorted((*rest, begun))))
                label: Label = ("turn of", whose, "begins:", _said(turn.writes, claims, rules))
                yield label, with_lease(state, rules, at, after), ""
        elif done := write(state, rules, lease._replace(old=rest), turn):
            workflows, after, broken = done
            changed = with_lease(state._replace(workflows=workflows), rules, at, after)
            if turn.mine and at < 2:
                worker = changed.workers[at]
                changed = with_worker(changed, at, worker._replace(runs=written(worker.runs, turn)))
            yield ("turn of", whose, "commits"), changed, broken


def wake(state: State, x: int, worker: Worker) -> Iterator[Move]:
    """A turn's `wake`, by itself."""
    if worker.conn == ON and worker.lease and not worker.lease.gone:
        for i, w in enumerate(state.workflows):
            if w.waiting:
                woken = w._replace(waiting=False, ready=AGAIN)
                workflows = (*state.workflows[:i], woken, *state.workflows[i + 1 :])
                yield ("worker", x, "wakes workflow", i), state._replace(workflows=workflows), ""


def _said(writes: tuple[int, ...], claims: tuple[int, ...], rules: Rules) -> str:
    """What a turn does, in words."""
    parts = []
    for i, at in enumerate(writes):
        if at >= 0:
            what = f"step {at}" if at < rules.steps else "the end" if at == rules.outcome else "the suspension"
            parts.append(f"{what} of workflow {i}")
    claimed = [str(i) for i, kind in enumerate(claims) if kind]
    return ", ".join(parts + ([f"claim of {'+'.join(claimed)}"] if claimed else [])) or "nothing"

"""Random programs, random edits, and a crash anywhere: what the new code makes of a run that began under the old.

With `patched` the run ends as the old or as the new code would have ended it; without, it may also end with
NonDeterminism that names a step; it never ends with anything else.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardflow
from shardflow import App, NonDeterminism, patched
from shardflow.model import StepInfo
from shardflow.testing import Inline

DAY = 86_400


@dataclass(frozen=True)
class Say:
    """A step, with a name of its own, which takes so many turns of the event loop."""

    name: str
    turns: int


@dataclass(frozen=True)
class Nap:
    days: int


@dataclass(frozen=True)
class Both:
    """Tasks side by side."""

    parts: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Edit:
    """A place where the new code has something else."""

    old: tuple[Any, ...]
    new: tuple[Any, ...]


class Program:
    """`edited`: whether the new code runs; `guarded`: whether it asks `patched`; `linked`: whether what a step gives
    depends on all that came before it."""

    def __init__(self, ops: tuple[Any, ...], edited: bool, guarded: bool, linked: bool) -> None:
        self.app = App()
        self.edited, self.guarded, self.linked = edited, guarded, linked
        self.steps = {say.name: self._step(say) for say in says(ops)}

        @self.app.workflow(name="program")
        async def program() -> list[Any]:
            return await self._run(ops, [])

        self.workflow = program.call().set(id="w")

    def _step(self, say: Say) -> Any:
        @self.app.step(name=say.name)
        async def step(before: str) -> str:
            for _ in range(say.turns):
                await asyncio.sleep(0)
            return f"{say.name} {zlib.crc32(before.encode())}" if self.linked else say.name

        return step

    async def _run(self, ops: tuple[Any, ...], before: list[Any]) -> list[Any]:
        found: list[Any] = []
        for op in ops:
            if isinstance(op, Say):
                found.append(await self.steps[op.name](repr([before, found])))
            elif isinstance(op, Nap):
                await shardflow.sleep(op.days * DAY)
            elif isinstance(op, Both):
                so_far = [before, *found]
                found.append(await asyncio.gather(*(self._run(part, so_far) for part in op.parts)))
            elif self.edited and (not self.guarded or patched("edit")):
                found += await self._run(op.new, [before, *found])
            else:
                found += await self._run(op.old, [before, *found])
        return found


def says(ops: tuple[Any, ...]) -> Iterator[Say]:
    for op in ops:
        if isinstance(op, Say):
            yield op
        elif isinstance(op, Both):
            for part in op.parts:
                yield from says(part)
        elif isinstance(op, Edit):
            yield from says(op.old + op.new)


def numbered(ops: tuple[Any, ...], names: Iterator[int]) -> tuple[Any, ...]:
    """The same with a name of its own for each step."""
    found: list[Any] = []
    for op in ops:
        if isinstance(op, Say):
            op = replace(op, name=f"s{next(names)}")
        elif isinstance(op, Both):
            op = Both(tuple(numbered(part, names) for part in op.parts))
        elif isinstance(op, Edit):
            op = Edit(numbered(op.old, names), numbered(op.new, names))
        found.append(op)
    return tuple(found)


leaf = st.one_of(st.builds(Say, st.just(""), st.integers(0, 3)), st.builds(Nap, st.integers(1, 3)))
few = st.lists(leaf, max_size=3).map(tuple)


def op(depth: int) -> st.SearchStrategy[Any]:
    if depth == 0:
        return leaf
    parts = st.lists(st.lists(op(depth - 1), max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)
    return st.one_of(leaf, leaf, st.builds(Both, parts))


@st.composite
def programs(draw: st.DrawFn, depth: int) -> tuple[Any, ...]:
    """A program with one edit somewhere in it."""
    ops = list(draw(st.lists(op(depth), max_size=5)))
    ops.insert(draw(st.integers(0, len(ops))), draw(st.builds(Edit, few, few)))
    found = tuple(ops)
    for _ in range(draw(st.integers(0, depth))):  # the edit may be in a task of a task
        before, after = draw(few), draw(few)
        found = (*before, Both((found, *draw(st.lists(few, max_size=2)))), *after)
    count = iter(range(1000))
    return numbered(found, count)


async def records(program: Program) -> tuple[Any, list[StepInfo]]:
    """The result of a program, and its records in the order in which they were made."""
    async with Inline() as env:
        result = await env.run(program.workflow)
        order = list(env._world.records["w"].checkpoints)
        by_seq = {step.seq: step for step in env.steps("w")}
        # A shard's turns follow each other in time, where the clock here may stand still.
        later = (timedelta(microseconds=n) for n in range(len(order)))
        return result, [replace(by_seq[seq], finished_at=by_seq[seq].finished_at + next(later)) for seq in order]


async def crossed(
    ops: tuple[Any, ...], crash: float, *, guarded: bool, linked: bool = True
) -> tuple[Any, Any, Any, int, list[StepInfo]]:
    """The results of old code, new code, and of new code that meets the records of an old run that crashed."""
    old, made = await records(Program(ops, False, guarded, linked))
    new, _ = await records(Program(ops, True, guarded, linked))
    cut = round(crash * len(made))
    async with Inline() as env:
        handle = await env.restore(made[:cut], Program(ops, True, guarded, linked).workflow)
        try:
            return old, new, await handle.result(), cut, made
        except NonDeterminism as error:
            return old, new, error, cut, made


@settings(max_examples=100, deadline=None)
@given(programs(2), st.floats(0, 1))
def test_patched_code_ends_as_the_old_or_as_the_new(ops: tuple[Any, ...], crash: float) -> None:
    old, new, found, cut, _ = asyncio.run(crossed(ops, crash, guarded=True))
    assert found in (old, new)
    if cut == 0:
        assert found == new


@settings(max_examples=100, deadline=None)
@given(programs(0), st.floats(0, 1))
def test_without_tasks_it_is_known_where_the_run_was(ops: tuple[Any, ...], crash: float) -> None:
    old, new, found, cut, _ = asyncio.run(crossed(ops, crash, guarded=True))
    place = next(n for n, op in enumerate(ops) if isinstance(op, Edit))
    assert found == (old if cut > place else new)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([0, 2]).flatmap(lambda depth: st.tuples(st.just(depth), programs(depth))), st.floats(0, 1))
def test_without_patched_a_mismatch_is_never_a_wrong_result(drawn: tuple[int, tuple[Any, ...]], crash: float) -> None:
    """A step is known by its place and its name: one that is new at the end of a task, behind which the run was, is
    run late; so with tasks what a step gives must not depend on others here."""
    depth, ops = drawn
    _, new, found, cut, made = asyncio.run(crossed(ops, crash, guarded=False, linked=depth == 0))
    if isinstance(found, NonDeterminism):
        assert re.search(r"step \d+ (is |\()'", str(found))
        assert any(f"'{step.name}'" in str(found) for step in made[:cut])
    else:
        assert found == new


def test_the_property_test_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `patched` always goes the new way, old runs come to something else."""
    monkeypatch.setattr("shardflow.worker.operations.passed", lambda here, left: False)
    ops = (Edit((Say("a", 0),), (Say("b", 0),)), Say("c", 0))
    _, _, found, _, _ = asyncio.run(crossed(ops, 1.0, guarded=True))
    assert isinstance(found, NonDeterminism)

"""Random programs of workflows: drawn by hypothesis, run by `program_app`, and evaluated here in memory without
crashes.

A program is a list of operations, as JSON. Every operation has one possible answer, whatever runs beside it and
however often it is replayed; so the value of a program run durably under crashes must equal the one computed here.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

#: An operation: its kind and what it needs.
Op = list[Any]
Program = list[Op]


def mix(value: int, number: int) -> int:
    """What a step makes of the number that it gets."""
    return (value * 31 + number * 17 + 7) % 1_000_003


def evaluate(program: Program, value: int = 1) -> list[Any]:
    """The answers of the operations, in order, when nothing fails."""
    answers: list[Any] = []
    for kind, *rest in program:
        if kind in ("step", "flaky"):
            value = mix(value, rest[0])
            answers.append(value)
        elif kind == "fails":
            answers.append("failed")
        elif kind in ("sleep", "event", "timeout"):
            answers.append(None)
        elif kind == "child":
            answers.append(evaluate(rest[0], value))
        elif kind == "bad_child":
            answers.append("child failed")
        elif kind in ("children", "branches"):
            answers.append([evaluate(each, value + n) for n, each in enumerate(rest[0])])
        elif kind == "mail":
            answers.append(list(range(rest[0])))
        elif kind == "cancelled":
            answers.append("child cancelled")
        else:
            raise AssertionError(kind)
    return answers


def size(program: Program) -> int:
    """How many operations there are in all."""
    return sum(
        1
        + sum(
            size(each)
            for each in (op[1:2] if op[0] == "child" else op[1] if op[0] in ("children", "branches") else [])
        )
        for op in program
    )


_number = st.integers(0, 99)

_leaf = st.one_of(
    st.tuples(st.just("step"), _number),
    st.tuples(st.just("flaky"), _number, st.integers(1, 2)),
    st.tuples(st.just("fails"), _number),
    st.tuples(st.just("sleep"), st.sampled_from([0, 0.01, 0.05, 0.2, 1.05, 1.3])),
    st.tuples(st.just("event"), _number),
    st.tuples(st.just("timeout"), st.sampled_from([0, 0.02, 0.3])),
    st.tuples(st.just("mail"), st.integers(1, 4)),
    st.tuples(st.just("bad_child"), _number),
    st.tuples(st.just("cancelled"), _number),
).map(list)


def _grown(programs: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    nested = st.one_of(
        _leaf,
        st.tuples(st.just("child"), programs).map(list),
        st.tuples(st.just("children"), st.lists(programs, min_size=1, max_size=3)).map(list),
        st.tuples(st.just("branches"), st.lists(programs, min_size=2, max_size=3)).map(list),
    )
    return st.lists(nested, min_size=2, max_size=5)


programs: st.SearchStrategy[Program] = st.recursive(st.lists(_leaf, min_size=2, max_size=4), _grown, max_leaves=14)

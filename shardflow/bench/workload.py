"""What the bench runs: a workflow of S steps that do nothing but give a result which only that step can give.

Every input, checkpoint and outcome follows from the workflow's number, so that every row can be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..app import App
from ..definitions import Call

app = App("bench")

#: A result has at least this many bytes: the step's number and the workflow's, with which its payload begins.
LEAST_RESULT = 26
LEAST_PAYLOAD = 32

_FILL = "".join(f"{n * 2_654_435_761 & 0xFFFFFFFF:08x}" for n in range(64))


@dataclass(slots=True)
class Ran:
    """What this process has begun to run; a step that runs again because of a lost lease counts again."""

    workflows: int = 0
    steps: int = 0


ran = Ran()


def result_of(payload: str, seq: int, size: int) -> str:
    """The text that step `seq` gives for `payload` (the workflow itself: seq -1); `size` bytes as JSON."""
    return f"{seq:+013d}:{payload}"[: size - 2]


@app.step
async def bench_step(payload: str, seq: int, size: int) -> str:
    ran.steps += 1
    return result_of(payload, seq, size)


@app.workflow
async def bench_workflow(payload: str, steps: int, size: int) -> str:
    ran.workflows += 1
    for seq in range(steps):
        await bench_step(payload, seq, size)
    return result_of(payload, -1, size)


@dataclass(frozen=True, slots=True)
class Load:
    """So many workflows of so many steps.

    `payload` is the bytes of each stored input, `result` those of each checkpoint and outcome.
    """

    workflows: int
    steps: int
    payload: int
    result: int

    def text(self, number: int) -> str:
        """The payload of one workflow: its number, then digits that compress badly."""
        size = self.payload - len(f'[["",{self.steps},{self.result}],{{}}]')
        start = number * 7 % 256
        fill = _FILL[start:] + _FILL * (size // len(_FILL) + 1)
        return f"{number:010d}{fill}"[: max(size, 10)]

    def call(self, number: int) -> Call[str]:
        """The workflow of that number as it is submitted."""
        return bench_workflow.call(self.text(number), self.steps, self.result).set(id=id_of(number))

    def calls(self, numbers: Sequence[int]) -> list[Call[str]]:
        """Those of several."""
        return [self.call(number) for number in numbers]

    def stored(self, number: int, seq: int) -> bytes:
        """The bytes of the right checkpoint `seq`, or of the outcome (seq -1), as a shard holds them."""
        return f'"{result_of(self.text(number), seq, self.result)}"'.encode()


def id_of(number: int) -> str:
    """The id of a workflow by its number."""
    return f"bench-{number:010d}"


def number_of(id: str) -> int | None:
    """The number that `id_of` was given; None for another's id."""
    head, _, tail = id.rpartition("-")
    return int(tail) if head == "bench" and len(tail) == 10 and tail.isdigit() else None

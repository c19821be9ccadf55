"""Every program in docs/guide.md runs and prints what stands below it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from conftest import MakeCluster

from shardflow.cli.run import load, play

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
_PROGRAMS = [
    (code, printed, GUIDE.read_text().count("\n", 0, found.start()) + 1)
    for found in _BLOCK.finditer(GUIDE.read_text())
    for code, printed in [found.groups()]
    if "def main(" in code
]


def test_there_are_programs() -> None:
    assert len(_PROGRAMS) > 8


@pytest.mark.parametrize(
    ("code", "printed"), [(c, p) for c, p, _ in _PROGRAMS], ids=[f"line-{n}" for *_, n in _PROGRAMS]
)
async def test_a_program_of_the_guide_prints_what_it_says(
    code: str, printed: str | None, make_cluster: MakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "example.py"
    file.write_text(code)
    module = load(file)
    await asyncio.to_thread(play, module, make_cluster(shards=2))
    assert printed is not None, "say in a text block below what it prints"
    assert capsys.readouterr().out == printed

"""`shardflow demo`: it succeeds, it can fail, and whatever ends it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support import memory

#: Changes one record of the direct computation, so that the cluster's right answer is the wrong one.
FALSIFIED = """
from dataclasses import replace
from shardflow.demo import truth
compute = truth.compute
def falsified(root, file, seen=[]):
    record = compute(root, file)
    if not seen:
        record = replace(record, code=replace(record.code, classes=record.code.classes + 1))
    seen.append(file)
    return record
truth.compute = falsified
from shardflow.cli.main import main
main()
"""


class Demo:
    """A demo in a process of its own, whose temporary files lie in `folder`; knows every process it ever started."""

    def __init__(self, folder: Path, *words: str, script: str | None = None) -> None:
        command = ["-m", "shardflow.cli"] if script is None else ["-c", script]
        self._out, self._err = folder / "out", folder / "err"
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._temporary.chmod(0o1777)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command, "demo", *words],
                stdout=out,
                stderr=err,
                env={**os.environ, "TMPDIR": str(self._temporary)},
            )
        self._seen: set[psutil.Process] = set()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def watch(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.out + self.err
            try:
                self._seen |= set(psutil.Process(self.process.pid).children(recursive=True))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def left(self) -> list[str]:
        """Processes and files that are left."""
        alive = [p for p in self._seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert len(self._seen) > 5, "the demo's processes were not seen at all"
        return [f"{p}" for p in alive] + os.listdir(self._temporary)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users get into: run by root, the servers run as one of those."""
    with memory.temporary_folder() as made:
        yield made


def test_the_demo_succeeds_and_leaves_nothing(folder: Path) -> None:
    demo = Demo(folder, "--files", "60", "--json")
    demo.watch(demo.ended)
    assert demo.process.returncode == 0, demo.out + demo.err
    data = json.loads(demo.out)
    assert data["files"] == data["equal_digests"] == sum(data["shards"].values()) == 60
    assert data["checkpoints"] == 180
    assert data["step_starts"] == 180 + data["started_again"]
    assert data["cluster"] == data["direct"]
    assert (data["lost"], data["run_past_checkpoint"], data["differences"]) == (0, 0, [])
    assert data["killed"]["held"] > 0
    assert data["killed"]["left"] > 0
    assert "killed by SIGKILL" in demo.err
    assert demo.left() == []


def test_the_demo_fails_where_the_comparison_does(folder: Path) -> None:
    demo = Demo(folder, "--files", "30", script=FALSIFIED)
    demo.watch(demo.ended)
    assert demo.process.returncode == 1
    assert "Error: sum of classes: the cluster says" in demo.err
    assert "2 differences." in demo.out
    assert demo.left() == []


def test_an_interrupted_demo_leaves_nothing(folder: Path) -> None:
    demo = Demo(folder, "--files", "400")
    demo.watch(lambda: "workflows submitted" in demo.out)
    assert len(os.listdir(folder / "tmp")) == 2  # the demo's own folder and its servers'
    demo.process.send_signal(signal.SIGTERM)
    demo.watch(demo.ended)
    assert demo.process.returncode == 130, demo.out + demo.err
    assert demo.left() == []

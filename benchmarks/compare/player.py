"""A rival's process: started in the rivals' environment, told what to do line by line, ended with its block."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

RIVALS = Path(__file__).resolve().parent / "rivals"
_END_SECONDS = 10.0


class PlayerFailed(Exception):
    """A rival's process has ended, has failed, or is silent; says what it said last."""


class Player:
    """One process of the rival whose script is `script`."""

    def __init__(self, python: Path, script: str, spec: Mapping[str, Any]) -> None:
        self._name = script
        # Not our own environment variables: a rival is configured by its settings alone.
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        self._process = subprocess.Popen(
            [str(python), str(RIVALS / f"{script}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**kept, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self._heard = b""
        self.tell(json.dumps(spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def tell(self, line: str) -> None:
        """Sends an order."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise PlayerFailed(f"{self._name} has ended with code {self._process.wait(_END_SECONDS)}") from None

    def check(self) -> None:
        """Raises PlayerFailed where it has ended, or says that it has failed."""
        assert self._process.stdout is not None
        if self._heard or select.select([self._process.stdout.fileno()], [], [], 0)[0]:
            raise PlayerFailed(f"{self._name} says {self.hear(_END_SECONDS)} unasked")

    def hear(self, seconds: float) -> dict[str, Any]:
        """Its next answer. Raises PlayerFailed where there is none within so many seconds, or it is an error."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        until = time.monotonic() + seconds
        while b"\n" not in self._heard:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                raise PlayerFailed(f"{self._name} has not answered within {seconds:.0f} s")
            got = os.read(pipe, 65536)
            if not got:
                raise PlayerFailed(f"{self._name} has ended with code {self._process.wait(_END_SECONDS)}")
            self._heard += got
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PlayerFailed(f"{self._name}: {answer['error']}")
        return answer

"""The demo's worker processes: `shardflow worker run`, as a user would start them.

Each holds the end of a pipe: when the demo ends, however it does, so do they.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from . import ledger


class WorkerProcess:
    """One worker in a process of its own, started at once.

    Arguments: `name`, shown in its leases; `config`, the cluster's file; `folder`, where its log and the ledger lie;
    `concurrency`, workflows at once.
    """

    def __init__(self, name: str, config: Path, folder: Path, concurrency: int) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        reading, self._pipe = os.pipe()
        words = ["--config", str(config), "worker", "run", "shardflow.demo.app:app", "--name", name]
        words += ["--concurrency", str(concurrency), "--supervisor-fd", str(reading)]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "shardflow.cli", *words],
                    cwd=folder,
                    env={**os.environ, ledger.VARIABLE: str(folder / "ledger")},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(reading,),
                )
        finally:
            os.close(reading)
        self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def freeze(self) -> None:
        """Suspends it, so that it can be looked at while nothing changes."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: it does not see it coming and cleans nothing up."""
        self._process.kill()
        self._process.wait()

    def stop(self, seconds: float) -> int | None:
        """Lets it drain for so long and then kills it; answers its exit code."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        return self._process.returncode

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

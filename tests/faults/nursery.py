"""Worker processes by fork, since hundreds are killed and each would take a second to import what it needs.

`nursery.py CONFIG LEDGER LOGS CONCURRENCY [mutant …]` reads names, one a line; each becomes a process, whose id it
prints. When its standard input ends it ends, and with it, at the latest, all that it made.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


class Process:
    """A worker process, known by a descriptor of its own, so that no signal can hit another under its old number."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    @property
    def alive(self) -> bool:
        return not select.select([self._handle], [], [], 0)[0]

    @property
    def stopped(self) -> bool:
        """Whether it is frozen, which the kernel says."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self.send(signal.SIGKILL)
        select.select([self._handle], [], [])

    def close(self) -> None:
        os.close(self._handle)


class Nursery:
    """Makes worker processes of one cluster.

    Arguments: `config`, the cluster's file; `address`, the ledger's socket; `logs`, the folder of the workers' logs;
    `mutants`, see `worker_main`; `concurrency`, each worker's; `module`, that makes them.
    """

    def __init__(
        self,
        config: Path,
        address: Path,
        logs: Path,
        mutants: Sequence[str],
        concurrency: int,
        module: str = "faults.nursery",
    ) -> None:
        self.processes: list[Process] = []
        self._mother = subprocess.Popen(
            [
                sys.executable,
                "-m",
                module,
                str(config),
                str(address),
                str(logs),
                str(concurrency),
                *mutants,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TOP,
            env={**os.environ, "PYTHONPATH": f"{TOP}{os.pathsep}{TOP / 'tests'}"},
        )

    def worker(self, name: str) -> Process:
        """A new worker process, which has its leases a little later."""
        assert self._mother.stdin is not None
        assert self._mother.stdout is not None
        self._mother.stdin.write(f"{name}\n")
        self._mother.stdin.flush()
        made = Process(name, int(self._mother.stdout.readline()))
        self.processes.append(made)
        return made

    def close(self) -> None:
        """Ends all of them, frozen ones too."""
        for process in self.processes:
            process.kill()
            process.close()
        self._mother.kill()
        self._mother.communicate()


def main(serve: Callable[[str], None]) -> None:
    """Forks a child for each name that comes, which calls `serve`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    end, held = os.pipe()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(held)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)
            threading.Thread(target=_end_with, args=(end,), daemon=True).start()
            serve(line.strip())
            os._exit(0)
        print(pid, flush=True)


def _end_with(mother: int) -> None:
    os.read(mother, 1)
    os._exit(1)


def _log_to(path: Path) -> None:
    from shardflow.cli.logs import TextFormatter

    handler = logging.FileHandler(path)
    handler.setFormatter(TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)


if __name__ == "__main__":
    from faults import worker_main

    config, address, logs, concurrency, *mutants = sys.argv[1:]

    def serve(name: str) -> None:
        _log_to(Path(logs) / f"{name}.log")
        asyncio.run(worker_main.serve(config, address, name, mutants, int(concurrency), forever=True))

    main(serve)

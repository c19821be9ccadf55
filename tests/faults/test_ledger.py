"""The ledger: whoever was answered has its line on disk, in an order that is true over processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from faults.ledger import Ledger, LedgerProcess, start_ledger
from faults.stage import until

#: Sends two lines and a half, then says so and waits to be killed, without ever reading an answer.
DOOMED = """
import socket, sys, time
ledger = socket.socket(socket.AF_UNIX)
ledger.connect(sys.argv[1])
ledger.sendall(b"begin a 0 7 w1\\nbegin b 0 7 w1\\nbegin c")
print("sent", flush=True)
sys.stdin.read()
"""


async def test_an_answered_line_is_in_the_file(tmp_path: Path) -> None:
    with start_ledger(tmp_path / "ledger") as process:
        ledger = Ledger(process.address)
        for number in range(20):
            await ledger.line("intend", f"run-{number}")
            assert list(process.lines())[-1] == f"intend run-{number}\n"
        ledger.close()
        process.write("accept", "run-0")
        assert list(process.lines())[-1] == "accept run-0\n"


async def test_lines_are_written_in_the_order_of_each_writer(tmp_path: Path) -> None:
    with start_ledger(tmp_path / "ledger") as process:
        ledgers = [Ledger(process.address) for _ in range(3)]
        await asyncio.gather(*(ledger.line(w, n) for n in range(2000) for w, ledger in enumerate(ledgers)))
        for ledger in ledgers:
            ledger.close()
        written = [line.split() for line in process.lines()]
        for w in range(3):
            assert [n for writer, n in written if writer == str(w)] == [str(n) for n in range(2000)]
    assert process.count == 6000


def test_what_has_come_in_the_meantime_is_written_with_one_sync(tmp_path: Path) -> None:
    with start_ledger(tmp_path / "ledger") as process, ExitStack() as stack:
        writers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        os.kill(process.pid, signal.SIGSTOP)
        for writer in writers:
            writer.connect(str(process.address))
            writer.sendall(b"intend a\n" * 100)
        os.kill(process.pid, signal.SIGCONT)
        assert [writer.recv(16) for writer in writers] == [b"100\n"] * 3
    assert (process.count, process.groups) == (300, 1)


def test_lines_of_a_killed_writer_come_before_the_answer_to_a_later_line(tmp_path: Path) -> None:
    with start_ledger(tmp_path / "ledger") as process, socket.socket(socket.AF_UNIX) as later:
        later.connect(str(process.address))
        later.sendall(b"intend a\n")
        assert later.recv(16) == b"1\n"
        os.kill(process.pid, signal.SIGSTOP)  # so that the lines' writer is dead when they are read
        doomed = subprocess.Popen(
            [sys.executable, "-c", DOOMED, str(process.address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == b"sent\n"
        doomed.kill()
        doomed.communicate()
        later.sendall(b"accept a\n")
        os.kill(process.pid, signal.SIGCONT)
        assert later.recv(16) == b"1\n"
        # Not the half one.
        assert list(process.lines()) == ["intend a\n", "begin a 0 7 w1\n", "begin b 0 7 w1\n", "accept a\n"]


def test_a_writer_that_reads_no_answers_gets_all_of_them_later(tmp_path: Path) -> None:
    with start_ledger(tmp_path / "ledger") as process, socket.socket(socket.AF_UNIX) as busy:
        busy.connect(str(process.address))
        for number in range(500):
            busy.sendall(b"intend a\n")
            process.write("accept", number)  # so that each is in a group of its own
        answered = 0
        while answered < 500:
            answered += sum(map(int, busy.recv(1 << 16).split()))


async def test_whoever_waits_hears_that_the_ledger_is_gone(tmp_path: Path) -> None:
    process = LedgerProcess(tmp_path / "ledger", tmp_path / "s")
    ledger = Ledger(process.address)
    os.kill(process.pid, signal.SIGSTOP)
    waiting = asyncio.create_task(ledger.line("intend", "a"))
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ConnectionError, match="ledger is gone"):
        await waiting
    ledger.close()
    with pytest.raises(ValueError):
        process.stop()


async def test_a_line_is_one_line(tmp_path: Path) -> None:
    with start_ledger(tmp_path / "ledger") as process:
        with pytest.raises(ValueError, match="one line"):
            process.write("intend", "a\nb")
        assert until(lambda: list(process.lines()) == [], "nothing is written", 1)

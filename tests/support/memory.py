"""Postgres servers of tests, in memory where there is plenty: real ones, with the settings they have on a disk.

One that is killed there recovers as from a disk, whose cache outlives processes too. Only a power cut differs: tests
that cut the power, and those that crash servers in a storm, have servers on a disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from shardflow.embedded import Server, Servers

SHARED = Path("/dev/shm")
#: What all the servers of a run of the tests may need, in bytes.
PLENTY = 8 << 30
#: Old log would be memory that nobody uses.
LITTLE_LOG = {"max_wal_size": "128MB", "min_wal_size": "32MB"}


@contextmanager
def servers(count: int, settings: Mapping[str, str]) -> Iterator[Servers]:
    """So many servers, for as long as the block lasts.

    Arguments: `settings`, of Postgres. SHARDFLOW_TEST_SERVERS=disk keeps them out of memory.
    """
    made = Servers(count, settings=settings)
    if roomy():
        directory = tempfile.mkdtemp(prefix="shardflow-tests-", dir=SHARED)
        made = Servers(count, directory=directory, settings={**LITTLE_LOG, **settings})
    with made as started:
        for server in started:
            open_quickly(server)
        yield started


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """For temporary files of programs that start servers: other users get into it, and it goes with the block."""
    folder = Path(tempfile.mkdtemp(prefix="shardflow-tests-", dir=SHARED if roomy() else "/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def open_quickly(server: Server) -> None:
    """Makes a connection cheap: its password is random, so hashing it thousands of times keeps nobody out."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        if conn.info.server_version >= 160000:
            conn.execute("SET scram_iterations = 1")
            user, password = conn.info.user, conn.info.password
            conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), sql.Literal(password)))


def holds(started: Servers) -> bool:
    """Whether these lie in memory."""
    return started.directory is not None and started.directory.is_relative_to(SHARED)


def roomy() -> bool:
    """Whether the files may lie in memory."""
    if os.environ.get("SHARDFLOW_TEST_SERVERS") == "disk" or not os.access(SHARED, os.W_OK):
        return False
    disk = os.statvfs(SHARED)
    return min(disk.f_bavail * disk.f_frsize, available()) >= PLENTY


def available() -> int:
    """The system's memory that programs may take, in bytes; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)

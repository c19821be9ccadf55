"""The pytest plugin, as the tests of somebody else's project use it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import memory

pytest_plugins = ["pytester"]

SHOP = """
import shardflow

app = shardflow.App()

@app.step
async def charge(cents: int) -> str:
    return f"paid {cents}"

@app.workflow
async def checkout(cents: int) -> str:
    paid = await charge(cents)
    await shardflow.receive("go", timeout=60)
    return paid
"""


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    """Where the servers of those projects lie."""
    with memory.temporary_folder() as made, pytest.MonkeyPatch.context() as patch:
        made.chmod(0o1777)
        patch.setenv("TMPDIR", str(made))
        yield


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    pytester.makepyfile(shop=SHOP)
    return pytester.runpytest_subprocess("-p", "pytest_shardflow", "-p", "no:cacheprovider", *words, timeout=100)


def test_a_workflow_on_a_real_cluster(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        from shop import app, checkout
        from shardflow import AsyncClient, LeaseConfig

        def test_it(shardflow_client, shardflow_worker):
            worker = shardflow_worker(app, concurrency=5)
            handle = shardflow_client.submit(checkout, 5)
            assert worker.worker.concurrency == 5
            shardflow_client.send(handle.id, "go")
            assert handle.result(timeout=30) == "paid 5"
            assert len(shardflow_client.config.shards) == 1

        def test_databases_are_the_tests_own(shardflow_client):
            assert shardflow_client.count().total == 0

        @pytest.mark.shardflow(shards=3, slots=12)
        def test_three_shards_and_a_worker_that_dies(shardflow_cluster, shardflow_client, shardflow_worker):
            assert [s.name for s in shardflow_cluster.shards] == ["s0", "s1", "s2"]
            assert shardflow_cluster.slots == 12
            first = shardflow_worker(app)
            handles = shardflow_client.submit_many(checkout.call(n) for n in range(9))
            first.leave()
            first.stop()
            second = shardflow_worker(app)
            for handle in handles:
                shardflow_client.send(handle.id, "go")
            assert [h.result(timeout=60) for h in handles] == [f"paid {n}" for n in range(9)]

        def test_in_an_event_loop(shardflow_cluster, shardflow_worker):
            shardflow_worker(app)

            async def main():
                async with AsyncClient(shardflow_cluster) as client:
                    handle = await client.submit(checkout, 1)
                    await client.send(handle.id, "go")
                    return await handle.result(30)

            assert asyncio.run(main()) == "paid 1"

        def test_a_worker_that_cannot_start(shardflow_worker):
            with pytest.raises(ValueError, match="no shard is named"):
                shardflow_worker(app, shards=["nowhere"])

        @pytest.mark.shardflow(shard=3)
        def test_a_word_too_many(shardflow_cluster):
            pass

        @pytest.mark.shardflow(shards=0)
        def test_no_shards(shardflow_cluster):
            pass
        """
    )
    result = run(pytester, "--strict-markers")
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*UsageError: the marker is shardflow(shards*shard'*"])
    result.stdout.fnmatch_lines(["*shards must be a whole number from 1, not 0*"])


def test_settings(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nshardflow_shards = 2\nshardflow_servers = 2\n")
    pytester.makepyfile(
        """
        def test_it(shardflow_cluster):
            a, b = shardflow_cluster.shards
            assert a.dsn.split("@")[1].split("/")[0] != b.dsn.split("@")[1].split("/")[0]
        """
    )
    run(pytester).assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nshardflow_shards = none\n")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*shardflow_shards must be a whole number from 1, not 'none'*"])


def test_without_postgres_it_says_what_to_install(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def nowhere():
            from shardflow.embedded import servers
            from shardflow.errors import EmbeddedError

            def none(*_):
                raise EmbeddedError("no programs")

            servers.Servers.start = none
        """
    )
    pytester.makepyfile("def test_it(shardflow_client): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*need Postgres: pip install 'shardflow?embedded?'*"])


def test_nothing_is_loaded_before_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert "pytest_shardflow" in sys.modules
            assert not [name for name in sys.modules if name.split(".")[0] in ("shardflow", "psycopg", "yaml")]
        """
    )
    pytester.runpytest_subprocess("-p", "pytest_shardflow").assert_outcomes(passed=1)


def test_it_is_a_plugin_of_pytest() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    code = (
        "import sys, tomllib; points = tomllib.load(open(sys.argv[1], 'rb'))['project']['entry-points'];"
        "print(points['pytest11'])"
    )
    found = subprocess.run([sys.executable, "-c", code, project], capture_output=True, text=True, env=os.environ)
    assert found.stdout.strip() == "{'pytest_shardflow': 'pytest_shardflow'}"

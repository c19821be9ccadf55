"""`workflow list` and `workflow count`: what they print, how they page, and their exit codes."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.many import Made, fill
from support.work import ids_on

from shardflow import ClusterConfig, Status
from shardflow.cli.filters import moment
from shardflow.cli.main import invoke

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[ClusterConfig], None]:
    """Writes a configuration file and makes it the one in use."""

    def configured(config: ClusterConfig) -> None:
        shards = [{"name": s.name, "dsn": s.dsn, "schema": s.schema} for s in config.shards]
        data = {"name": config.name, "slots": config.slots, "shards": shards, "pool": {"timeout": "2s"}}
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(data))
        monkeypatch.setenv("SHARDFLOW_CONFIG", str(tmp_path / "cluster.yaml"))

    return configured


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command line in this process; answers its exit code and what it printed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = invoke(words)
        found = capsys.readouterr()
        return code, found.out, found.err

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def filled(cluster_config: ClusterConfig, configured: Callable[[ClusterConfig], None]) -> ClusterConfig:
    """Three shards with a failed, a suspended and two ready workflows each."""
    configured(cluster_config)
    for k in range(3):
        a, b, c, d = ids_on(cluster_config, k, 4)
        fill(cluster_config, k, [Made(a, "ship", "default", {"tenant": "a", "size": 3}, Status.FAILED)])
        fill(cluster_config, k, [Made(b, "bill", "orders", {"tenant": "b"}, Status.SUSPENDED)])
        fill(cluster_config, k, [Made(each, "bill", "default", None, Status.READY) for each in (c, d)])
    return cluster_config


def data(answer: tuple[int, str, str]) -> Any:
    assert answer[0] == 0, answer
    return json.loads(answer[1])


def test_a_list_is_filtered_and_read_page_by_page(filled: ClusterConfig, run: Run) -> None:
    def ids(*words: str) -> list[str]:
        return [w["id"] for w in data(run("workflow", "list", "--json", *words))["workflows"]]

    every = ids()
    assert len(every) == 12
    assert ids("--oldest") == every[::-1]
    first = [ids_on(filled, k, 4)[0] for k in range(3)]
    assert ids("--status", "failed", "--oldest") == ids("--name", "ship", "--oldest") == first
    assert len(ids("--status", "failed", "--status", "ready")) == 9
    assert len(ids("--queue", "orders")) == 3
    assert ids("--attribute", "tenant=a", "--attribute", "size=3", "--oldest") == first
    assert ids("--attribute", "tenant=a", "--attribute", 'size="3"') == []
    assert ids("--since", "1h") == every
    assert ids("--until", "1h") == []
    page = data(run("workflow", "list", "--json", "-n", "5"))
    rest = data(run("workflow", "list", "--json", "--cursor", page["cursor"]))
    assert [w["id"] for w in page["workflows"] + rest["workflows"]] == every
    assert rest["cursor"] is None


def test_a_table_says_how_to_go_on(filled: ClusterConfig, run: Run) -> None:
    code, out, err = run("workflow", "list", "--status", "ready", "-n", "4")
    assert code == 0
    assert len(out.splitlines()) == 5
    assert err.startswith("more: --cursor ")
    code, out, err = run("workflow", "list", *err.split()[1:])
    assert (code, len(out.splitlines()), err) == (0, 3, "")


def test_a_count_is_by_status(filled: ClusterConfig, run: Run) -> None:
    told = data(run("workflow", "count", "--json"))
    assert told["total"] == 12
    assert {k: v for k, v in told["by_status"].items() if v} == {"failed": 3, "suspended": 3, "ready": 6}
    code, out, _ = run("workflow", "count", "--name", "bill", "--status", "ready")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [["STATUS", "WORKFLOWS"], ["ready", "6"], ["total", "6"]]


def test_a_shard_that_is_away_is_named_with_an_exit_code_of_its_own(
    filled: ClusterConfig, configured: Callable[[ClusterConfig], None], run: Run
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dead = replace(filled.shards[1], dsn=f"postgresql://u:secret@127.0.0.1:{port}/gone")
    configured(replace(filled, shards=(filled.shards[0], dead, filled.shards[2])))
    for words in (("workflow", "list"), ("workflow", "count")):
        code, out, err = run(*words)
        assert code == 5
        assert err.startswith("Error: shard 's1' does not answer")
        code, out, _ = run(*words, "--json")
        assert code == 5
        assert [u["shard"] for u in json.loads(out)["unreachable"]] == ["s1"]
        assert "secret" not in out + err
    assert json.loads(out)["total"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--since", "yesterday"), "neither an age"),
        (("--until", "99999999999999w"), "neither an age"),
        (("--attribute", "tenant"), "not of the form KEY=VALUE"),
        (("--attribute", "=a"), "not of the form KEY=VALUE"),
        (("--status", "lost"), "'lost' is not one of"),
    ],
)
def test_wrong_options_are_told(filled: ClusterConfig, run: Run, words: tuple[str, ...], message: str) -> None:
    for verb in ("list", "count"):
        code, _, err = run("workflow", verb, *words)
        assert code == 2
        assert message in err


def test_a_wrong_cursor_is_told(filled: ClusterConfig, run: Run) -> None:
    code, _, err = run("workflow", "list", "--cursor", "abc")
    assert code == 1
    assert "this is not a cursor" in err


def test_a_time_is_an_age_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(text: str) -> datetime:
        found = moment(None, None, text)  # type: ignore[arg-type]
        assert found is not None
        return found

    for text, age in (("90s", 90), ("1.5m", 90), ("2h", 7_200), ("7d", 604_800), ("1w", 604_800)):
        assert abs(datetime.now(UTC) - read(text) - timedelta(seconds=age)) < timedelta(seconds=30)
    assert read("2026-01-31T12:00Z") == read("2026-01-31 13:00+01:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert read("2026-01-31") == datetime(2026, 1, 31).astimezone(UTC)

"""`shardflow schedule` against real shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardflow import ClusterConfig
from shardflow.cli.main import invoke

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    cluster_config: ClusterConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command line; answers its exit code and what it printed."""
    path = tmp_path / "cluster.yaml"
    shards = [{"name": s.name, "dsn": s.dsn} for s in cluster_config.shards]
    data = {"name": "test", "slots": cluster_config.slots, "shards": shards, "pool": {"timeout": "2s"}}
    path.write_text(yaml.safe_dump(data))
    monkeypatch.setenv("SHARDFLOW_CONFIG", str(path))

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = invoke(words)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def data(answer: tuple[int, str, str]) -> Any:
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)


CREATE = ("schedule", "create", "nightly", "30 2 * * *", "report", '"all"', "--tz", "Europe/Vienna")


def test_a_schedule_is_made_shown_paused_resumed_and_deleted(run: Run) -> None:
    made = data(run(*CREATE, "--missed", "latest", "--queue", "slow", "--json"))
    assert {key: made[key] for key in ("name", "when", "zone", "workflow", "queue", "missed", "state", "input")} == {
        "name": "nightly",
        "when": "30 2 * * *",
        "zone": "Europe/Vienna",
        "workflow": "report",
        "queue": "slow",
        "missed": "latest",
        "state": "active",
        "input": [["all"], {}],
    }
    assert [each["name"] for each in data(run("schedule", "list", "--json"))["schedules"]] == ["nightly"]
    shown = data(run("schedule", "show", "nightly", "--json"))
    assert len(shown["ahead"]) == 5
    assert shown["ahead"][0] == shown["next_at"]
    _, out, _ = run("schedule", "show", "nightly")
    assert out.count("next: ") == 5
    assert 'input: [["all"], {}]' in out
    assert data(run("schedule", "pause", "nightly", "--json"))["state"] == "paused"
    assert "paused" in run("schedule", "list")[1]
    assert data(run("schedule", "resume", "nightly", "--json"))["state"] == "active"
    assert run("schedule", "delete", "nightly", "--yes")[0] == 0
    assert data(run("schedule", "list", "--json"))["schedules"] == []


def test_ticks_are_run_by_hand(run: Run) -> None:
    assert run(*CREATE, "--paused")[0] == 0
    code, id, _ = run("schedule", "trigger", "nightly")
    assert (code, id.startswith("schedule:nightly:")) == (0, True)
    assert data(run("schedule", "trigger", "nightly", "--id", "once", "--json"))["id"] == "once"
    code, ids, _ = run("schedule", "backfill", "nightly", "2026-03-28", "2026-03-30T00:00+02:00")
    assert (code, ids.split()) == (
        0,
        ["schedule:nightly:2026-03-28T01:30:00Z", "schedule:nightly:2026-03-29T01:00:00Z"],
    )
    again = data(run("schedule", "backfill", "nightly", "2026-03-28", "2026-03-30", "--json"))["workflows"]
    assert [each["id"] for each in again[:2]] == ids.split()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("schedule", "show", "nightl"), 1, "no schedule named 'nightl'"),
        (("schedule", "create", "x", "61 * * * *", "work"), 1, "bad minute"),
        (("schedule", "create", "x", "every 5s", "work", "no-json"), 2, "is not JSON"),
        (("schedule", "create", "x", "every 5s", "work", "--missed", "never"), 2, "latest"),
        (("schedule", "create", "x", "every 5s", "work", "--tz", "Mars/Base"), 1, "no time zone"),
        (("schedule", "backfill", "x", "yesterday", "2026-03-30"), 2, "START"),
        (("schedule", "creat", "x"), 2, 'did you mean "create"'),
    ],
)
def test_what_is_wrong_is_said(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    found = run(*words)
    assert found[0] == code
    assert said in found[2]


def test_another_schedule_of_the_name_is_an_error_and_can_be_replaced(run: Run) -> None:
    assert run(*CREATE)[0] == 0
    assert run(*CREATE)[0] == 0
    code, _, err = run(*CREATE, "--pass-time")
    assert (code, "another schedule" in err) == (1, True)
    assert run(*CREATE, "--pass-time", "--replace")[0] == 0


def test_a_deletion_is_confirmed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*CREATE)[0] == 0
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert run("schedule", "delete", "nightly")[0] != 0
    assert run("schedule", "show", "nightly")[0] == 0

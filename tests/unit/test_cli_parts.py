"""The command line without servers: help, options, errors, the app's loading, logging, printing."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from shardflow import ResultTimeout, ShardUnavailable, UsageError, WorkflowFailed
from shardflow.cli import logs, output
from shardflow.cli.loading import load_app
from shardflow.cli.main import NOUNS, cli, invoke
from shardflow.cli.settings import Settings

CONFIG = "name: test\nslots: 64\nshards:\n  - {name: s0, dsn: 'postgresql://u:hidden@127.0.0.1:1/db'}\n"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty directory, no settings in the environment, logging and the path as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("SHARDFLOW_CONFIG", "SHARDFLOW_LOG_FORMAT", "SHARDFLOW_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(leaves(cli))


def test_the_list_of_nouns_says_what_each_says_of_itself():
    context = click.Context(cli)
    told = {name: command.get_short_help_str(200) for name in NOUNS if (command := cli.get_command(context, name))}
    assert told == NOUNS


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_is_described_and_takes_the_shared_options(path: tuple[str, ...]):
    command = LEAVES[path]
    options = {name for parameter in command.params for name in parameter.opts}
    assert command.help
    assert {"--config", "-c", "--log-format", "--log-level", "-v"} <= options
    assert ("--json" in options) == (path not in {("worker", "run"), ("rebalancer", "run"), ("dev",), ("run",)})
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name


def test_help_does_not_load_the_nouns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"loaded {name}"))
    assert invoke(["--help"]) == 0
    assert "Submit workflows, look at them, end them and begin them again." in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]):
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out.startswith("shardflow 0.")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["workflw"], 'did you mean "workflow"?'),
        (["worker", "rum"], 'did you mean "run"?'),
        (["cluster", "zzz"], "one of init, status"),
        (["workflow", "list", "--limt", "3"], "--limit"),
    ],
)
def test_an_unknown_word_is_answered_with_the_one_that_was_meant(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
):
    assert invoke(words) == 2
    found = capsys.readouterr()
    assert hint in found.err
    assert not found.out


def test_without_a_configuration_it_is_said_what_to_do(capsys: pytest.CaptureFixture[str]):
    assert invoke(["workflow", "list"]) == 1
    found = capsys.readouterr().err
    assert found.startswith("Error: no configuration: name its file with --config or SHARDFLOW_CONFIG")
    assert "Traceback" not in found


def test_the_configuration_is_the_flags_then_the_environments_then_the_usual_file():
    Path("config").mkdir()
    Path("shardflow.yaml").touch()
    assert Settings(env={}).path() == Path("shardflow.yaml")
    Path("config/cluster.yaml").touch()
    assert Settings(env={}).path() == Path("config/cluster.yaml")
    assert Settings(env={"SHARDFLOW_CONFIG": "a"}).path() == Path("a")
    assert Settings("b", env={"SHARDFLOW_CONFIG": "a"}).path() == Path("b")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_the_configuration_is_taken_behind_every_word(place: int, capsys: pytest.CaptureFixture[str]):
    Path("other.yaml").write_text(CONFIG)
    words = ["slot", "show", "{t}-1", "--offline", "--json"]
    words[place:place] = ["-c", "other.yaml"]
    assert invoke(words) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "{t}-1", "key": "t", "slot": 13, "shard": None}


@pytest.mark.parametrize(("name", "value"), [("FORMAT", "jsn"), ("LEVEL", "inf")])
def test_a_bad_value_in_the_environment_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(f"SHARDFLOW_LOG_{name}", value)
    assert invoke(["workflow", "list"]) == 1
    found = capsys.readouterr().err
    assert f"SHARDFLOW_LOG_{name} must be one of" in found
    assert "did you mean" in found


def test_an_unreachable_cluster_is_named_without_its_password(capsys: pytest.CaptureFixture[str]):
    Path("shardflow.yaml").write_text(CONFIG)
    assert invoke(["shard", "list"]) == 5
    found = capsys.readouterr()
    assert "shard 's0' does not answer" in found.err
    assert "hidden" not in found.out + found.err
    assert "postgresql://u:***@127.0.0.1:1/db" in found.out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["hello"],
            """argument 1 is not JSON, 'hello' (Expecting value: line 1 column 1 (char 0)): text needs its own""",
        ),
        (["1", "{a: 1}"], "argument 2 is not JSON"),
        (["--qeue", "1"], "is it an option that this command lacks?"),
    ],
)
def test_arguments_that_are_no_json_are_refused(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]):
    Path("shardflow.yaml").write_text(CONFIG)
    assert invoke(["workflow", "submit", "name", *words]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkflowFailed("a", "E", "m"), 3),
        (ResultTimeout(), 4),
        (ShardUnavailable(), 5),
        (UsageError("x"), 1),
        (click.UsageError("x"), 2),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: Exception, code: int):
    assert output.exit_code(error) == code


# -- the app


def write_modules() -> None:
    Path("shopping_cart.py").write_text(
        "import shardflow\napplication = shardflow.App()\nclass box: app = application\nnumber = 1\n"
    )
    Path("raises_cart.py").write_text("x = 1\nraise ValueError('broken')\n")
    Path("imports_cart.py").write_text("import not_there_at_all\n")
    Path("exits_cart.py").write_text("raise SystemExit(0)\n")


@pytest.mark.parametrize("target", ["shopping_cart:application", "shopping_cart:box.app"])
def test_an_app_is_found_in_the_current_directory(target: str):
    write_modules()
    assert load_app(target).name == "app"


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("shopping_cart", "'shopping_cart' is not MODULE:ATTR: write it like 'shopping_cart:app'"),
        ("shopping_cart.py:application", "is a file, not a module: write 'shopping_cart:application'"),
        ("shoping_cart:application", "there is no module 'shoping_cart' in .*did you mean \"shopping_cart\""),
        ("shopping_cart:aplication", "has no 'aplication' \\(did you mean \"application\""),
        ("shopping_cart:number", "is a int, not a shardflow.App \\(it has: application\\)"),
        ("raises_cart:app", "(?s)failed while it was imported:.*line 2.*ValueError: broken"),
        ("imports_cart:app", "imports 'not_there_at_all', which is not installed"),
        ("exits_cart:app", "(?s)failed while it was imported:.*SystemExit"),
        ("json:app", "has no 'app' \\(it has no App at all\\)"),
    ],
)
def test_what_is_wrong_with_an_app_is_said(target: str, complaint: str):
    write_modules()
    with pytest.raises(click.UsageError, match=complaint):
        load_app(target)


# -- logging and printing


def a_record(**extra: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "shardflow.worker", "levelno": 20, "levelname": "INFO", "msg": "done"})
    record.created = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC).timestamp()
    vars(record).update(extra)
    return record


def test_text_logs_have_their_extras_behind_the_message():
    line = logs.TextFormatter().format(a_record(shard="s0", n=3, text="a b\n", queues=["q"], ratio=0.5))
    assert line == (
        '2026-01-02T03:04:05.678Z INFO    shardflow.worker: done shard=s0 n=3 text="a b\\n" queues=["q"] ratio=0.5'
    )


def test_json_logs_are_one_object_a_line():
    try:
        raise ValueError("no")
    except ValueError:
        line = logs.JsonFormatter().format(a_record(shard="s0", path=Path("x"), exc_info=sys.exc_info()))
    assert "\n" not in line
    data = json.loads(line)
    assert data.pop("exception").endswith("ValueError: no")
    assert data == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "logger": "shardflow.worker",
        "message": "done",
        "shard": "s0",
        "path": "x",
    }


@pytest.mark.parametrize(
    ("level", "verbose", "server", "expected"),
    [
        ("", 0, False, "WARNING"),
        ("", 1, False, "INFO"),
        ("", 0, True, "INFO"),
        ("", 5, True, "DEBUG"),
        ("error", 1, True, "ERROR"),
    ],
)
def test_the_level_follows_the_options(level: str, verbose: int, server: bool, expected: str):
    logs.configure("text", level, verbose=verbose, server=server)
    assert logging.getLevelName(logging.getLogger().level) == expected


def test_a_table_is_aligned_never_cut_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]):
    output.table(
        ("id", "on", "at"), [("x" * 200, True, None), ("\x1b[31m[b]", False, datetime(2026, 1, 2, tzinfo=UTC))]
    )
    head, long, short = capsys.readouterr().out.splitlines()
    assert head == "ID" + " " * 200 + "ON   AT"
    assert long == "x" * 200 + "  yes  -"
    assert short.split() == ["\\x1b[31m[b]", "no", "2026-01-02", "00:00:00Z"]

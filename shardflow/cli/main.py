"""`shardflow`: the command line's root.

Each noun is a file of this package, loaded when it is used. Exit codes: 0 done, 1 error, 2 wrong usage, 3 the
workflow failed, 4 timed out, 5 some shards do not answer.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ..errors import ShardflowError
from .output import ERROR, OK, exit_code, say
from .settings import Group

#: Noun → what it is about, shown without loading it. The command `x` is the attribute `x` of the module `x`.
NOUNS = {
    "bench": "Measure throughput and latency: on embedded servers, or with --config on yours.",
    "cluster": "Make shards into a cluster, and see how it is.",
    "demo": "Index Python's standard library on three servers while a worker is killed.",
    "dev": "Run the app MODULE:ATTR, such as shop:app, on Postgres servers of its own.",
    "doctor": "Check the shards, their servers and what runs on them, and say what to do.",
    "lease": "The leases that workers hold.",
    "migrate": "Bring the shards' schemas up to date.",
    "queue": "What waits in the queues, and pausing them.",
    "rebalance": "Which worker is to serve which shard, and why.",
    "rebalancer": "Run a rebalancer that is not part of a worker.",
    "run": "Run an example program on Postgres servers of its own.",
    "schedule": "Workflows that run by the clock.",
    "shard": "The shards of the cluster.",
    "slot": "Where a workflow id belongs.",
    "worker": "Run workers, and see which ones run.",
    "workflow": "Submit workflows, look at them, end them and begin them again.",
}
INTERRUPTED = 130


class Root(Group):
    """Loads the noun that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in NOUNS if importlib.util.find_spec(f"{__package__}.{name}") is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = getattr(importlib.import_module(f"{__package__}.{cmd_name}"), cmd_name)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, NOUNS[name]) for name in self.list_commands(ctx)])


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from .. import __version__

        click.echo(f"shardflow {__version__}")
        context.exit()


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done, 1 error, 2 wrong usage, 3 the workflow failed, 4 timed out, 5 some shards do not answer."
    ),
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def cli() -> None:
    """Durable workflows on the Postgres servers you already run."""


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and answers its exit code; no error gets through."""
    try:
        result: Any = cli.main(arguments, prog_name="shardflow", standalone_mode=False)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else OK if leaving.code is None else ERROR
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted.")
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # Whoever read stdout is gone, and the flush at exit would fail like this print did.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except ShardflowError as error:
        say(f"Error: {error}")
        return exit_code(error)
    except Exception as error:
        state = getattr(error, "sqlstate", None)
        if state is None:
            raise
        say(f"Error: the server refused: {error} (SQLSTATE {state})")
        return ERROR
    return result if isinstance(result, int) else OK


def main() -> NoReturn:
    """The entry point of the script."""
    sys.exit(invoke())

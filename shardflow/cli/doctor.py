"""`shardflow doctor`: asks all shards at once how they are, and says what to do."""

from __future__ import annotations

import sys
from collections import Counter

import click
from rich.console import Console
from rich.text import Text

from ..core.checkup import examine
from ..core.facts import Away, Facts
from ..core.finding import Finding, Severity
from ..core.redact import redact_dsn
from ..errors import ShardBusy, ShardflowError, ShardUnavailable
from ..model import ShardConfig
from ..storage import checkup
from .ask import ask_all
from .output import ERROR, emit_json, printable
from .settings import Command, Settings, json_option, pass_settings

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.OK: "green"}


@click.command(cls=Command)
@click.option("--all", "everything", is_flag=True, help="Tell what is well too; so does --verbose.")
@click.option(
    "--deep", is_flag=True, help="Look for misplaced workflows among all, not in a sample: may take minutes."
)
@json_option
@pass_settings
def doctor(settings: Settings, everything: bool, deep: bool, as_json: bool) -> None:
    """Check the shards, their servers and what runs on them, and say what to do.

    It only reads, and needs no more rights than a worker. Exits with 0 where nothing is worse than a warning, with
    1 where there is an error, with 5 where the only errors are shards that do not answer.
    """
    settings.log()
    config = settings.config()
    answers = ask_all(config, lambda shard, conn: checkup.examine(shard, conn, deep=deep))
    facts: list[Facts] = [answers.values[s.name] for s in config.shards if s.name in answers.values]
    away = [_away(s, answers.errors[s.name]) for s in config.shards if s.name in answers.errors]
    found = examine(config, facts, away)
    if as_json:
        counts = Counter(finding.severity for finding in found)
        emit_json(
            {
                "cluster": config.name,
                "counts": {severity.value: counts[severity] for severity in Severity},
                "findings": found,
                "unreachable": answers.unreachable,
            }
        )
    else:
        _report(found, len(config.shards), everything or settings.verbose > 0)
    code = answers.report()
    if any(f.severity is Severity.ERROR and f.check != "reach" for f in found):
        code = ERROR
    raise SystemExit(code)


def _away(shard: ShardConfig, error: ShardflowError) -> Away:
    return Away(
        shard.name,
        str(error),
        redact_dsn(shard.dsn),
        busy=isinstance(error, ShardBusy),
        refuses=not isinstance(error, ShardUnavailable),
    )


def _report(found: list[Finding], shards: int, everything: bool) -> None:
    """The findings by severity, each with its remedy, and the command for it on a line to copy."""
    console = Console(soft_wrap=True, highlight=False) if sys.stdout.isatty() else None

    def line(text: str, style: str = "") -> None:
        if console is None:
            click.echo(printable(text))
        else:
            console.print(Text(printable(text), style=style))

    counts = Counter(finding.severity for finding in found)
    for severity in Severity:
        some = [finding for finding in found if finding.severity is severity]
        if not some or (severity is Severity.OK and not everything):
            continue
        line(f"{severity.value} ({len(some)})", _STYLES[severity])
        for finding in some:
            line(f"  {finding.shard or 'cluster'}: {finding.check}: {finding.found}")
            if finding.remedy:
                line(f"      {finding.remedy}{':' if finding.command else ''}")
            if finding.command:
                line(f"          {finding.command}", "bold")
    line(
        f"{shards} shard{'' if shards == 1 else 's'}, {len(found)} findings: {counts[Severity.ERROR]} errors,"
        f" {counts[Severity.WARNING]} warnings, {counts[Severity.OK]} well"
    )

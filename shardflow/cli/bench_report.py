"""`shardflow bench report`."""

from __future__ import annotations

from pathlib import Path

import click

from ..bench.report.make import make
from .output import emit_json, say
from .settings import Command, Settings, json_option, pass_settings


@click.command(cls=Command)
@click.argument(
    "results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="RESULTS|FOLDER..."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"), show_default=True,
    help="The page.",
)  # fmt: skip
@click.option("--png", type=click.Path(file_okay=False, path_type=Path), help="A folder for the pictures as PNG.")
@json_option
@pass_settings
def report(shared: Settings, /, results: tuple[Path, ...], out: Path, png: Path | None, as_json: bool) -> None:
    """One page, and pictures, from the JSON files that benchmarks have written with --out.

    The page needs no other file. What cannot be shown is named on the page and on stderr; the exit code is 1 only
    where nothing could be shown. Needs the extra `report`.
    """
    shared.log()
    try:
        made = make(results, out, png)
    except OSError as error:
        raise click.FileError(str(error.filename or out), error.strerror) from error
    for each in made.unread:
        say(f"not shown: {each.path}: {each.reason}")
    if as_json:
        emit_json(
            {
                "page": str(made.page),
                "pictures": [str(path) for path in made.pictures],
                "shown": [str(path) for path in made.shown],
                "not_shown": {str(each.path): each.reason for each in made.unread},
            }
        )
        return
    for path in (made.page, *made.pictures):
        click.echo(path)

"""Writes the page: one HTML file that needs nothing else, with every picture as SVG and every figure in a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from . import drawing
from .charts import Ink, Picture, Section, Table
from .files import Result, Unread
from .words import durability, machine

_TITLE = "How fast shardflow is"
_ORIGIN = (
    '<p class="soft">Measured by <code>shardflow bench</code> and the scripts in <code>benchmarks/</code>;'
    " every figure is from the files named beside it. Made {made}.</p>"
)


def html(sections: Sequence[Section], drawn: Mapping[str, str], unread: Sequence[Unread], made: str) -> str:
    """The page. `drawn`: each picture's name and its SVG; `made` says when."""
    body = [
        f"<h1>{_TITLE}</h1>",
        _ORIGIN.format(made=escape(made)),
        _unread(unread),
        _contents(sections),
        *(_section(section, drawn) for section in sections),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_TITLE}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _style() -> str:
    text = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    for place, colours in (("--LIGHT--: 0;", drawing.LIGHT), ("--DARK--: 0;", drawing.DARK)):
        text = text.replace(place, _colours(colours))
    return text


def _colours(colours: Mapping[Ink, str]) -> str:
    return " ".join(f"--{ink.value}: {colour};" for ink, colour in colours.items())


def _unread(unread: Sequence[Unread]) -> str:
    if not unread:
        return ""
    items = "".join(f"<li><code>{escape(each.path.name)}</code>: {escape(each.reason)}</li>" for each in unread)
    return f'<div class="warning"><strong>Not shown</strong><ul>{items}</ul></div>'


def _contents(sections: Sequence[Section]) -> str:
    pictures = [picture for section in sections for picture in section.pictures]
    if len(pictures) < 2:
        return ""
    items = "".join(f'<li><a href="#{escape(each.name)}">{escape(each.title)}</a></li>' for each in pictures)
    return f"<nav><ul>{items}</ul></nav>"


def _section(section: Section, drawn: Mapping[str, str]) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.warnings:
        items = "".join(f"<li>{escape(each)}</li>" for each in section.warnings)
        parts.append(
            f'<div class="warning"><strong>Something went wrong in these runs</strong><ul>{items}</ul></div>'
        )
    parts += [_picture(picture, drawn[picture.name]) for picture in section.pictures]
    parts.append(_origins(section.results))
    return "\n".join([*parts, "</section>"])


def _picture(picture: Picture, svg: str) -> str:
    note = f"<figcaption>{escape(picture.note)}</figcaption>" if picture.note else ""
    return (
        f'<figure id="{escape(picture.name)}">\n<h3>{escape(picture.title)}</h3>\n{note}\n'
        f'<div class="scroll">{svg}</div>\n{_table(picture.table)}\n</figure>'
    )


def _table(table: Table) -> str:
    def cells(row: Sequence[str], heading: bool) -> str:
        made = []
        for place, cell in enumerate(row):
            tag = "th" if heading or place == 0 else "td"
            scope = ' scope="col"' if heading else ' scope="row"' if place == 0 else ""
            look = ' class="text"' if place in table.texts else "" if heading else ' class="number"'
            made.append(f"<{tag}{scope}{look}>{escape(cell)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    rows = "".join(cells(row, heading=False) for row in table.rows)
    head = cells(table.columns, heading=True)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _origins(results: Sequence[Result]) -> str:
    """How the figures came about, folded up."""
    places = list(dict.fromkeys(place for result in results if (place := machine(result))))
    where = f" ({'; '.join(places)})" if places else ""
    told = "".join(f"<dl>{_result(result)}</dl>" for result in results)
    return f"<details><summary>How this was measured{escape(where)}</summary>{told}</details>"


def _result(result: Result) -> str:
    """Of one file: command, machine, options."""
    facts = [("file", result.path.name), ("command", result.command), ("time", result.time)]
    facts += [("machine", ", ".join(part for part in (machine(result), durability(result)) if part))]
    known = {"cpus", "cpu_model", "system", "postgres", "python"}
    rest = {key: value for key, value in result.environment.items() if key not in known}
    facts += [("environment", _flat(rest)), ("options", _flat(result.options))]
    return "".join(_facts(facts))


def _facts(facts: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, text in facts:
        if text:
            shown = f"<code>{escape(text)}</code>" if name in ("file", "command") else escape(text)
            yield f"<dt>{name}</dt><dd>{shown}</dd>"


def _flat(values: Mapping[str, Any], before: str = "") -> str:
    parts = []
    for key, value in values.items():
        if isinstance(value, dict):
            parts += [_flat(value, f"{before}{key}.")]
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f"{before}{key} = {text}")
    return ", ".join(part for part in parts if part)

"""The SQL files: every statement named, explained and used; and the loader that splits them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardflow.sql import load, parse

ROOT = Path(__file__).parents[2]
CONCERNS = sorted(path.stem for path in (ROOT / "shardflow" / "sql").glob("*.sql"))
#: What only the slot mover needs, which is still to come; the tests of invariant I3 use it.
LATER = {("cluster", "lock_map")}
ALL = [(concern, name) for concern in CONCERNS for name in load(concern)]


def test_parse_gives_the_statements_in_order_without_comments_and_semicolons() -> None:
    text = """-- About the file.
-- name: first
-- Why it is there.
SELECT 1
-- in between
FROM t;

-- name: second_2
-- Why.

SELECT ';' || '--'
"""
    assert parse(text, "x.sql") == {"first": "SELECT 1\nFROM t", "second_2": "SELECT ';' || '--'"}
    assert list(parse(text, "x.sql")) == ["first", "second_2"]


def test_parse_keeps_the_body_of_a_function() -> None:
    body = "CREATE FUNCTION f() AS $$\nBEGIN\n    PERFORM 1;\nEND\n$$"
    assert parse(f"-- name: f\n-- Why.\n{body};\n", "x.sql") == {"f": body}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("SELECT 1\n", "a statement stands before the first"),
        ("-- name: a\n-- Why.\nSELECT 1\n-- name: a\n-- Why.\nSELECT 2\n", "the name 'a' is used twice"),
        ("-- name: a\nSELECT 1\n", "'a' lacks its comment"),
        ("-- name: a\n-- Why.\n", "'a' lacks its statement"),
        ("-- name: a\n-- Why.\n;\n", "'a' lacks its statement"),
        ("-- name: a\n-- Why.\n-- name: b\n-- Why.\nSELECT 1\n", "'a' lacks its statement"),
        ("-- name: Capital\n-- Why.\nSELECT 1\n", "before the first"),
    ],
)
def test_parse_refuses_a_malformed_file_and_names_it(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        parse(text, "some.sql")
    assert str(error.value).startswith("some.sql: ")


def test_a_file_of_comments_has_no_statements() -> None:
    assert parse("-- nothing here\n\n", "x.sql") == {}
    assert parse("", "x.sql") == {}


def test_there_are_files_to_load() -> None:
    assert {"cluster", "lease", "read", "submit", "turn"} <= set(CONCERNS)
    assert len(ALL) > 30


@pytest.mark.parametrize(("concern", "name"), [each for each in ALL if each not in LATER], ids=lambda value: value)
def test_every_statement_is_used_by_the_storage_layer(concern: str, name: str) -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "shardflow" / "storage").glob("*.py"))
    assert f'statements("{concern}")' in code or f'load("{concern}")' in code
    assert re.search(rf'\["{name}"\]|"{name}"(?= if| else|\])', code), f"{concern}.{name} is used nowhere"


@pytest.mark.parametrize(("concern", "name"), ALL, ids=lambda value: value)
def test_a_statement_names_the_schema_of_whatever_it_touches(concern: str, name: str) -> None:
    text = load(concern)[name]
    own = set(re.findall(r"\b([a-z_]+)(?: \([a-z_, ]+\))? AS (?:MATERIALIZED )?\(", text))
    allowed = own | {"unnest", "set", "range"} | set(re.findall(r"\)\s+([a-z]+)(?=[ ,\n])", text))
    for keyword, what in re.findall(r"\b(INSERT INTO|DELETE FROM|UPDATE|FROM|JOIN)\s+([a-z_.{}\"]+)", text):
        assert what.startswith(("{schema}.", "pg_")) or what in allowed, f"{keyword} {what}"


@pytest.mark.parametrize(("concern", "name"), ALL, ids=lambda value: value)
def test_values_are_parameters_and_the_comment_lists_them(concern: str, name: str) -> None:
    text = load(concern)[name]
    assert set(re.findall(r"\{([^}]*)\}", text)) <= {"schema", "schema_text", "bell_text", "fits", "order"}
    assert not re.search(r"%[^s]", text.replace("%%", "")), "only %s stands for a value"
    source = (ROOT / "shardflow" / "sql" / f"{concern}.sql").read_text()
    block = source.split(f"-- name: {name}\n", 1)[1].split("-- name:", 1)[0]
    comment = "\n".join(line for line in block.splitlines() if line.startswith("--"))
    takes = "%s" in text or "{fits}" in text
    assert takes == ("Parameters" in comment), "the comment and the statement disagree on parameters"


def test_a_loaded_file_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        load("turn")["fence"] = "SELECT 1"  # type: ignore[index]
    assert load("turn") is load("turn")

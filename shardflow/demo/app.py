"""The demo's workflows: one per source file of Python's standard library, each of three steps.

A file that is no valid Python has a `problem` in its record; that is a result like any other, not a failure.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import shardflow

from . import ledger

ROOT = Path(sysconfig.get_path("stdlib"))

# The library's own tests contain odd literals on purpose.
warnings.filterwarnings("ignore", category=SyntaxWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

app = shardflow.App("stdlib-index")

# Plain `def` steps run in threads, and CPython 3.11 may fail where two of them parse at once (gh-106905).
_one_parser = threading.Lock()


@dataclass(frozen=True)
class Content:
    """What a file's bytes say."""

    sha256: str
    bytes: int
    lines: int


@dataclass(frozen=True)
class Code:
    """What a file's syntax tree says; `problem` names the error where it has none."""

    functions: int = 0
    classes: int = 0
    imports: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Record:
    """One line of the index."""

    file: str
    package: str
    content: Content
    code: Code


@app.step
def read(file: str) -> Content:
    """Reads and hashes the file."""
    ledger.note("read", file)
    data = (ROOT / file).read_bytes()
    return Content(hashlib.sha256(data).hexdigest(), len(data), len(data.splitlines()))


@app.step
def parse(file: str) -> Code:
    """Parses the file and counts what it defines."""
    ledger.note("parse", file)
    data = (ROOT / file).read_bytes()
    try:
        with _one_parser:
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Code(problem=type(error).__name__)
    nodes = list(ast.walk(tree))
    return Code(
        functions=sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        imports=sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes),
    )


@app.step
def summarise(file: str, content: Content, code: Code) -> Record:
    """Makes one record of both."""
    ledger.note("summarise", file)
    return Record(file, Path(file).parts[0].removesuffix(".py"), content, code)


@app.workflow
def index(file: str) -> Record:
    """Indexes one file, named relative to the standard library's folder."""
    content = read(file)
    code = parse(file)
    record = summarise(file, content, code)
    ledger.note("end", file)
    return record

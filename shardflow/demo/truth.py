"""The same index computed directly, without shardflow, and the comparison of both.

It shares no function with the demo's steps, so that it can disagree with them.
"""

from __future__ import annotations

import ast
import hashlib
import random
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .app import Code, Content, Record
from .ledger import STEPS, Audit

SUMS = ("bytes", "lines", "functions", "classes", "imports")


def find_files(root: Path, limit: int | None, seed: int) -> list[str]:
    """The Python files below `root`, relative to it, without installed packages, in an order drawn by `seed`.

    `limit`: no more than these (None: all).
    """
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if not {"site-packages", "dist-packages", "__pycache__"} & set(path.parts) and path.is_file() and _sane(name):
            found.append(name)
    found.sort()
    random.Random(seed).shuffle(found)
    return found[:limit]


def _sane(name: str) -> bool:
    return name.isprintable() and len(name.encode("utf-8", "replace")) < 500


def compute(root: Path, file: str) -> Record:
    """The record of one file."""
    path = root / file
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    data = path.read_bytes()
    ends = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = ends.count(b"\n") + (not ends.endswith(b"\n") and bool(ends))
    kinds: Counter[str] = Counter()
    problem = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pending: list[ast.AST] = [ast.parse(data)]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            pending, problem = [], type(error).__name__
    while pending:
        node = pending.pop()
        kinds[type(node).__name__] += 1
        pending.extend(ast.iter_child_nodes(node))
    code = Code(
        kinds["FunctionDef"] + kinds["AsyncFunctionDef"],
        kinds["ClassDef"],
        kinds["Import"] + kinds["ImportFrom"],
        problem,
    )
    return Record(file, file.partition("/")[0].removesuffix(".py"), Content(digest, path.stat().st_size, lines), code)


def sums(records: Collection[Record]) -> dict[str, int]:
    """The totals over all records."""
    found = {name: sum(getattr(r.content, name) for r in records) for name in SUMS[:2]}
    found |= {name: sum(getattr(r.code, name) for r in records) for name in SUMS[2:]}
    return found | {"not valid Python": sum(r.code.problem is not None for r in records)}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the cluster says at the end.

    `records`, the workflows' results by id; `failures`, those that ended otherwise, with the reason; `counts`, per
    shard, from its database; `routed`, how many workflows were submitted to each shard; `audit`, of the ledger.
    """

    records: Mapping[str, Record]
    failures: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]
    routed: Mapping[str, int]
    audit: Audit


def differences(truth: Mapping[str, Record], evidence: Evidence) -> list[str]:
    """All in which the cluster's index is not what it should be; empty where it is."""
    found = [f"workflow {id!r} has no result: {reason}" for id, reason in evidence.failures.items()]
    for file, wanted in truth.items():
        record = evidence.records.get(file)
        if record is None:
            if file not in evidence.failures:
                found.append(f"{file}: lost, there is no result")
        elif record != wanted:
            found.append(f"{file}: the cluster says {record}, the direct computation {wanted}")
    found += [f"{file}: has a result and was never submitted" for file in evidence.records.keys() - truth.keys()]
    for name, value in sums(list(truth.values())).items():
        theirs = sums(list(evidence.records.values()))[name]
        if theirs != value:
            found.append(f"sum of {name}: the cluster says {theirs}, the direct computation {value}")
    for shard, counts in evidence.counts.items():
        found += _wrong_counts(shard, counts, evidence.routed.get(shard, 0))
    if sum(evidence.routed.values()) != len(truth):
        found.append(f"{sum(evidence.routed.values())} workflows were submitted for {len(truth)} files")
    found += [f"{file}: step {step} started after its checkpoint" for file, step in evidence.audit.past]
    found += [f"{file}: step {step} never started" for file, step in evidence.audit.missing]
    return found


def _wrong_counts(shard: str, counts: Mapping[str, int], routed: int) -> Sequence[str]:
    wanted = {"submitted": routed, "succeeded": routed, "steps": routed * len(STEPS)}
    wanted |= dict.fromkeys(("failed", "ready", "running", "suspended"), 0)
    return [
        f"shard {shard}: its database has {counts[name]} {name}, not {number}"
        for name, number in wanted.items()
        if counts[name] != number
    ]

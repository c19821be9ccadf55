"""From the runs to medians, ratios and a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from systems import SYSTEMS

#: What has a median.
MEASURED = (
    "workflows_per_s",
    "submit_per_s",
    "worker_cpu_us_per_workflow",
    "postgres_cpu_us_per_workflow",
    "wal_bytes_per_workflow",
    "disk_bytes_per_workflow",
    "worker_max_rss_mb",
)
_CPU = ("worker_cpu_us_per_workflow", "postgres_cpu_us_per_workflow")
OURS = "shardflow"
Run = dict[str, Any]


def figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Medians of each system at each number of steps, and how many times ours is as fast."""
    found = []
    for steps in sorted({run["steps"] for run in runs}):
        here = [run for run in runs if run["steps"] == steps and "error" not in run]
        names = [name for name in SYSTEMS if any(run["system"] == name for run in here)]
        rows = {name: _medians([run for run in here if run["system"] == name]) for name in names}
        for name, row in rows.items():
            if OURS in rows and name != OURS:
                row["shardflow_times_as_fast"] = _ratio(rows[OURS]["workflows_per_s"], row["workflows_per_s"])
            found.append({"steps": steps, "system": name, **row})
    return found


def _medians(runs: Sequence[Run]) -> dict[str, Any]:
    row: dict[str, Any] = {"runs": len(runs), "verified": all(run["verified"] for run in runs)}
    if processes := {run["processes"] for run in runs if "processes" in run}:
        row["processes"] = max(processes)
    for key in MEASURED:
        values = [run[key] for run in runs if run.get(key) is not None]
        if values:
            row[key] = round(statistics.median(values), 1)
    rates = [run["workflows_per_s"] for run in runs]
    row["workflows_per_s_range"] = [min(rates), max(rates)]
    return row


def _ratio(ours: float, theirs: float) -> float:
    return round(ours / theirs, 2)


def table(found: Sequence[dict[str, Any]]) -> str:
    """For people: a line for each system and number of steps."""
    head = f"{'steps':>5} {'system':<14}{'processes':>10}{'workflows/s':>12}{'x':>8}{'submits/s':>11}"
    lines = [head + f"{'worker µs':>11}{'Postgres µs':>12}{'WAL B':>8}{'disk B':>8}  keeps"]
    for row in found:
        times = row.get("shardflow_times_as_fast")
        lines.append(
            f"{row['steps']:>5} {row['system']:<14}{_number(row.get('processes')):>10}"
            f"{_number(row['workflows_per_s']):>12}"
            f"{'' if times is None else f'{times:g}':>8}{_number(row.get('submit_per_s')):>11}"
            f"{_number(row.get('worker_cpu_us_per_workflow')):>11}{_number(row.get('postgres_cpu_us_per_workflow')):>12}"
            f"{_number(row.get('wal_bytes_per_workflow')):>8}{_number(row.get('disk_bytes_per_workflow')):>8}"
            f"  {SYSTEMS[row['system']].keeps}{'' if row['verified'] else ' (NOT VERIFIED)'}"
        )
    return "\n".join([*lines, "", "x: how many times as fast shardflow is in the same runs"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def slim(run: Run) -> Run:
    """A run of a sweep, of which there are many: only what tells the variants apart."""
    kept = ("run", "system", "steps", "variant", "error", "workflows", "workflows_per_s", "verified")
    return {key: run[key] for key in (*kept, *_CPU) if key in run}


def best_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The variants of a sweep, best median first."""
    found = []
    keys = list(dict.fromkeys((run["system"], run["steps"], run["variant"]) for run in runs))
    for system, steps, variant in keys:
        here = [run for run in runs if (run["system"], run["steps"], run["variant"]) == (system, steps, variant)]
        errors = [run["error"] for run in here if "error" in run]
        done = [run for run in here if "error" not in run]
        row = {"system": system, "steps": steps, "variant": variant, **(_medians(done) if done else {})}
        found.append({**row, "errors": errors} if errors else row)
    return sorted(found, key=lambda row: (row["system"], row["steps"], -row.get("workflows_per_s", 0.0)))


def sweep_table(found: Sequence[dict[str, Any]]) -> str:
    """For people: the variants of a sweep."""
    lines = [f"{'system':<14}{'steps':>6}{'workflows/s':>13}{'worker µs':>11}{'Postgres µs':>12}  variant"]
    for row in found:
        lines.append(
            f"{row['system']:<14}{row['steps']:>6}{_number(row.get('workflows_per_s')):>13}"
            f"{_number(row.get('worker_cpu_us_per_workflow')):>11}{_number(row.get('postgres_cpu_us_per_workflow')):>12}"
            f"  {row['variant']}{' ' + '; '.join(row['errors']) if 'errors' in row else ''}"
        )
    return "\n".join(lines)

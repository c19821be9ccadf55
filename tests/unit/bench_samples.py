"""Result files as the benchmarks write them, with figures of a size that is met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "cpus": 2,
    "cpu_model": "A Processor",
    "load_average": 0.3,
    "system": "Linux 6.1",
    "postgres": "18.4",
    "postgres_settings": {"fsync": "on", "synchronous_commit": "on", "autovacuum": "on"},
    "python": "3.11.7",
    "psycopg": "3.3.9",
    "uvloop": None,
    "shardflow": "0.1.0",
}


def head(benchmark: str, **options: Any) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "command": f"python benchmarks/{benchmark}.py",
        "time": "2026-01-02T03:04:05+00:00",
        "environment": ENVIRONMENT,
        "options": options,
    }


def throughput(steps: int, rate: int = 28_000, floor: int = 41_000) -> dict[str, Any]:
    """What `bench throughput --out` writes."""
    runs = [
        {
            "workflows_per_s": rate + at,
            "overlapped_workflows_per_s": rate * 0.8 + at,
            "floor_workflows_per_s": floor + at,
            "tight_floor_workflows_per_s": 3 * floor + at,
        }
        for at in (-900, 0, 1_400)
    ]
    figures = {
        **runs[1],
        "steps_per_s": rate * steps,
        "submit_per_s": 41_000,
        "ratio_to_floor": round(rate / floor, 3),
        "ratio_to_tight_floor": round(rate / floor / 3, 3),
        "worker_cpu_us_per_workflow": 31.4,
        "postgres_cpu_us_per_workflow": 17.7,
        "wal_bytes_per_workflow": 1_250,
        "lost": 0,
        "duplicated": 0,
        "wrong": 0,
        "left": 0,
        "verified": True,
    }
    options = {
        "workflows": 40_000,
        "steps": steps,
        "payload": 100,
        "result": 100,
        "workers": 1,
        "shards": 1,
        "runs": 3,
    }
    return {**head("throughput", **options), "figures": figures, "runs": runs}


def latency(rate: float, p50: float = 4.6, p99: float = 17.0, **options: Any) -> dict[str, Any]:
    """What `bench latency --out` writes."""
    figures = {
        "p50_ms": p50,
        "p90_ms": (p50 + p99) / 2,
        "p99_ms": p99,
        "max_ms": p99 * 3,
        "submit_p50_ms": 1.8,
        "submit_p99_ms": 4.0,
        "count": 1_000,
        "errors": 0,
        "late_p99_ms": 0.4,
        "idle_queries_per_s": 1.9,
        "idle_worker_cpu_percent": 0.5,
    }
    usual = {
        "rate": rate,
        "seconds": 10.0,
        "arrivals": "poisson",
        "steps": 1,
        "payload": 100,
        "workers": 1,
        "shards": 1,
    }
    return {**head("latency", **{**usual, **options}), "figures": figures}


def scaleout() -> dict[str, Any]:
    """What `benchmarks/scaleout.py --out` writes."""
    drained = [
        {
            "shards": shards,
            "runs": 3,
            "workflows_per_s": rate,
            "least_per_s": rate * 0.97,
            "most_per_s": rate * 1.02,
            "server_cpu_percent": 4.0,
            "workers_cpu_percent": 10.0 * shards,
            "efficiency_percent": round(rate / 2_000 / shards * 100, 1),
            "lost": 0,
            "duplicated": 0,
            "wrong": 0,
            "left": 0,
        }
        for shards, rate in ((1, 2_000), (2, 3_950), (4, 7_800), (8, 14_900))
    ]
    opened = [{**point, "workflows_per_s": point["shards"] * 1_000, "result_p99_ms": 90.0} for point in drained]
    for point in opened:
        point["offered_per_s"] = point["shards"] * 1_010
    options = {"shards": [1, 2, 4, 8], "steps": 1, "runs": 3, "throttle": "cgroup v1", "share_of_a_core": 0.04}
    series = {"drained": drained, "apart": drained[-1:], "open": opened}
    return {**head("scaleout", **options), "series": series, "verified": True, "runs": []}


_KEEPS = {
    "shardflow": "every workflow and step",
    "floor": "what shardflow keeps",
    "dbos": "every workflow and step",
    "absurd": "every task and step",
    "pgqueuer": "a line of its log for each job",
}
_RATES: dict[str, dict[int, float]] = {
    "dbos": {0: 680, 1: 300, 3: 100},
    "absurd": {0: 1_700, 1: 950, 3: 430},
    "pgqueuer": {0: 12_200},
    "floor": {0: 64_100, 1: 41_800, 3: 21_300},
    "shardflow": {0: 50_100, 1: 27_800, 3: 16_000},
}


_PROCESSES = {"dbos": {0: 2, 1: 3, 3: 3}, "pgqueuer": {0: 2}, "shardflow": {0: 1, 1: 1, 3: 1}}


def sweep() -> dict[str, Any]:
    """What `benchmarks/compare --sweep --out` writes."""
    figures = [
        {"system": system, "steps": 0, "variant": variant, "runs": 1, "verified": True, "workflows_per_s": rate}
        for system, variant, rate in (
            ("dbos", '{"threads": 8}', 680),
            ("dbos", '{"processes": 2}', 1_120),
            ("dbos", "{}", 750),
            ("awa", "{}", 6_000),
        )
    ]
    figures.append({**figures[0], "steps": 1, "workflows_per_s": 320})
    return {**head("compare-sweep", payload=100, shards=1), "systems": {}, "figures": figures, "runs": []}


def compare() -> dict[str, Any]:
    """What `benchmarks/compare --out` writes."""
    figures, runs = [], []
    for system, rates in _RATES.items():
        for steps, rate in rates.items():
            figures.append(
                {
                    "steps": steps,
                    "system": system,
                    "runs": 3,
                    "verified": True,
                    "processes": _PROCESSES.get(system, {}).get(steps),
                    "workflows_per_s": rate,
                    "submit_per_s": 3_000,
                    "wal_bytes_per_workflow": 3_100,
                    "workflows_per_s_range": [rate * 0.93, rate * 1.05],
                }
            )
            runs.append({"run": 1, "system": system, "steps": steps, "workflows_per_s": rate, "verified": True})
    systems = {
        name: {"version": "1.2", "keeps": keeps, "remark": None, "settings": {"1": {"pool": 20, "style": "sync"}}}
        for name, keeps in _KEEPS.items()
    }
    return {**head("compare", payload=100, workers=1, shards=1), "systems": systems, "figures": figures, "runs": runs}


def _series(count: int, seconds: float) -> list[dict[str, Any]]:
    """Samples that fall from 14,000 a second by two in a hundred; sizes grow at first."""
    return [
        {
            "seconds": seconds * number,
            "workflows_per_s": 14_000 * (1 - 0.02 * (number * 10 // count) / 9),
            "probe_p50_ms": 20.0,
            "probe_p99_ms": 60.0 + number % 7 * 10 if number else None,
            "table_bytes": min(number, 30) * 10_000_000,
            "index_bytes": min(number, 30) * 3_000_000,
            "dead": number % 11 * 5_000,
            "autovacuums": number // 6,
            "rss_mb": 83.0,
            "pinned": False,
        }
        for number in range(count)
    ]


_ACCOUNT = {"submitted": 50_000_000, "lost": 0, "duplicated": 0, "failed": 0, "left_over": 0, "errors": 0}


def soak() -> dict[str, Any]:
    """What `benchmarks/soak.py --out` writes."""
    options = {
        "minutes": 60.0,
        "age": 180.0,
        "every": 10.0,
        "workers": 1,
        "payload": 100,
        "rate": "as many as are taken",
    }
    figures = {"last_to_first": 0.981, "size_growth": 1.02, **_ACCOUNT, "passed": True}
    return {**head("soak", **options), "series": _series(361, 10), "figures": figures}


def horizon() -> dict[str, Any]:
    """What `benchmarks/horizon.py --out` writes."""
    series = [{**each, "pinned": 60 <= number < 121} for number, each in enumerate(_series(180, 10))]
    for each in series:
        each["workflows_per_s"] = 12_180.0 if each["pinned"] else 14_000.0
    options = {"minutes": 13.0, "held_minutes": 10.0, "age": 30.0, "workers": 1, "payload": 100, "rate": 500.0}
    figures = {"pinned_to_unpinned": 0.87, **_ACCOUNT, "passed": True}
    return {**head("horizon", **options), "series": series, "figures": figures}


def million() -> dict[str, Any]:
    """What `benchmarks/million.py --out` writes."""
    taken = [("submit", 2.1, 1.03), ("claim 500", 4.0, 1.45), ("list all", 3.0, 7.5), ("send", 2.4, 0.99)]
    taken += [(f"list {number}", 3.0, 0.9) for number in range(14)]
    operations, memory, counts = [], [], []
    for state in ("never analysed", "analysed"):
        for operation, few, ratio in taken:
            row = {"operation": operation, "state": state, "few_ms": few, "many_ms": few * ratio, "ratio": ratio}
            operations.append(row)
        rss = {"few_mb": 80.0, "many_mb": 81.0, "ratio": 1.01}
        memory.append({"operation": "memory of the worker", "state": state, **rss})
        counts.append({"operation": "count", "state": state, "few_ms": 9.0, "many_ms": 900.0, "ratio": 100.0})
    shards = [{"workflows": 3_000_000, "ready": 1_000_000, "misplaced": 0}]
    figures = {"operations": operations, "memory": memory, "counts": counts, "shards": shards, "over": ["list all"]}
    return {**head("million", few=10_000, rows=1_000_000, rounds=15, limit=1.5, quick=False), "figures": figures}


def sleepers() -> dict[str, Any]:
    """What `benchmarks/sleepers.py` prints, with a head."""
    part = {"rss_mb_at_a_hundredth": 80.1, "rss_mb_at_all": 83.2, "suspended_per_second": 9_000}
    figures = {
        "count": 100_000,
        "at_once": {**part, "awake_per_second": 9_100},
        "one_by_one": {**part, "rate": 2_000, "late_p99_seconds": 0.41},
        "by_message": part,
    }
    return {**head("sleepers"), "figures": figures}


def everything() -> dict[str, dict[str, Any]]:
    """A result of each benchmark, by the name of its file."""
    return {
        "throughput": throughput(1),
        "latency-100": latency(100),
        "latency-1000": latency(1_000, 7.8, 31),
        "compare": compare(),
        "sweep": sweep(),
        "scaleout": scaleout(),
        "soak": soak(),
        "horizon": horizon(),
        "million": million(),
        "sleepers": sleepers(),
    }


def short(data: dict[str, Any]) -> dict[str, Any]:
    """The same result with few samples and entries, so that each of its values can be spoilt in turn."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(each) for key, each in value.items()}
        return [cut(each) for each in value[-2:]] if isinstance(value, list) else value

    return {key: value if key == "environment" else cut(value) for key, value in data.items()}


def write(folder: Path, name: str, data: Any) -> Path:
    """The file `name`.json in the folder."""
    path = folder / f"{name}.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path

"""`benchmarks/million.py`: that it asks all it says, of shards that hold what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_quick_run_times_every_operation_on_both_sides(tmp_path: Path) -> None:
    out = tmp_path / "million.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "million.py"), "--quick", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(out.read_text())
    assert answer["benchmark"] == "million"
    assert (answer["options"]["few"], answer["options"]["rows"]) == (2_000, 20_000)
    assert {"postgres", "cpus"} <= answer["environment"].keys()
    figures = answer["figures"]
    for state in ("never analysed", "analysed"):
        asked = {each["operation"] for each in figures["operations"] if each["state"] == state}
        assert {"submit", "claim 500 of the backlog", "send", "wake 500", "count, roughly", "doctor"} <= asked
        assert sum(name.startswith("list ") for name in asked) >= 30
    assert all(each["few_ms"] > 0 and each["many_ms"] > 0 for each in figures["operations"])
    assert all(20 < each["few_mb"] < 500 for each in figures["memory"])
    counted = next(each for each in figures["counts"] if each["operation"] == "count")
    assert counted["ratio"] > 1
    for shard in figures["shards"]:
        assert shard["misplaced"] == 0
        assert shard["workflows"] == shard["ready"] + shard["suspended"] + shard["ended"]

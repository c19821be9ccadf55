"""`benchmarks/all.py` on a real server: one of its commands in small, and what it says of the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_quick_run_writes_its_result_and_touches_no_documentation(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "all.py"), "--quick", "--results", str(tmp_path)]
    before = (ROOT / "README.md").read_bytes()
    done = subprocess.run(
        [*command, "--only", "throughput-1"], capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["command"].startswith("shardflow bench throughput --workflows 40000 --steps 1 --runs 5")
    assert found["options"]["workflows"] == 2_000  # what is said last counts
    assert found["figures"]["verified"] is True
    assert (ROOT / "README.md").read_bytes() == before
    judged = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert judged.returncode == 1
    assert "not measured" in judged.stdout

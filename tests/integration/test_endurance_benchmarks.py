"""`benchmarks/soak.py` and `benchmarks/horizon.py` for some seconds: their figures are there and true."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def quick(name: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert out.exists(), done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    assert json.loads(done.stdout) == found["figures"]
    assert done.returncode == (0 if found["figures"]["passed"] else 1)  # so short a time may well give either
    return found


@pytest.mark.parametrize("name", ["soak", "horizon"])
def test_a_quick_run_accounts_for_every_workflow_and_tells_what_it_saw(name: str, tmp_path: Path) -> None:
    found = quick(f"{name}.py", tmp_path / "result.json")
    assert found["benchmark"] == name
    assert {"command", "environment", "options", "figures", "series"} <= found.keys()
    figures, series = found["figures"], found["series"]
    assert figures["submitted"] > 500
    for fault in ("lost", "duplicated", "failed", "left_over", "errors"):
        assert figures[fault] == 0, figures
    assert len(series) >= 5
    assert all(later["seconds"] > earlier["seconds"] for earlier, later in itertools.pairwise(series))
    assert sum(each["workflows_per_s"] for each in series) > 0
    assert any(each["probe_p99_ms"] for each in series)
    last = series[-1]
    assert last["table_bytes"] > 0 < last["index_bytes"]
    assert last["rss_mb"] > 20
    assert 1 < max(each["worker_cpu_us"] for each in series) < 1e6
    assert 1 < max(each["postgres_cpu_us"] for each in series) < 1e6
    assert last["machine_us"] > 1
    assert (
        [each["pinned"] for each in series].count(True) == 0 if name == "soak" else any(e["pinned"] for e in series)
    )


def test_what_was_lost_or_there_twice_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import horizon
    import soak
    from _soak_stand import Stand, Wanted

    at = Stand.__new__(Stand)
    at.wanted, at.largest = Wanted(10.0, 30.0, 2.0), {"workflow": 1}
    good = dict.fromkeys(("lost", "duplicated", "failed", "left_over", "errors"), 0)

    def samples(rate: float, size: int, pinned_rate: float | None = None) -> list[dict[str, Any]]:
        made = []
        for n in range(1, 301):
            pinned = pinned_rate is not None and 100 <= n < 250
            late = pinned_rate is None and n > 180
            ended = pinned_rate if pinned else rate if late else 1000.0
            each = {"seconds": n * 2.0, "workflows_per_s": ended, "pinned": pinned, "rss_mb": 1.0, "dead": 1}
            each |= dict.fromkeys(soak.COSTS, 1000 / ended)
            made.append({**each, "table_bytes": size if late else 1000, "index_bytes": 0})
        return made

    for rate, size, passed in ((960.0, 1100, True), (940.0, 1100, False), (960.0, 1250, False)):
        at.samples = samples(rate, size)
        assert soak.figures(at, good)["passed"] is passed
    at.samples = samples(500.0, 1000)
    assert [soak.figures(at, good)[f"machine_us_{tenth}_tenth"] for tenth in ("first", "last")] == [1.0, 2.0]
    fresh = Stand.__new__(Stand)
    fresh.samples = samples(500.0, 1000)[-30:]
    fresh.samples.insert(0, {**fresh.samples[0], "seconds": 80.0, "workflows_per_s": 9.0})  # while it warms up
    found = soak.figures(at, good, fresh)
    assert (found["fresh_per_s"], found["last_to_fresh"], found["machine_us_fresh"]) == (500, 1.0, 2.0)
    for rate, passed in ((810.0, True), (790.0, False)):
        at.samples = samples(1000.0, 1000, rate)
        assert horizon.figures(at, good, 30.0)["passed"] is passed
    for fault in good:
        at.samples = samples(1000.0, 1000, 1000.0)
        assert not horizon.figures(at, {**good, fault: 1}, 30.0)["passed"]
        at.samples = samples(1000.0, 1000)
        assert soak.figures(at, good)["passed"]
        assert not soak.figures(at, {**good, fault: 1})["passed"]

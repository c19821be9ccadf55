"""The comparison with other systems: what is lost is not called verified, and a short run of all of them works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shardflow.embedded import Servers
from shardflow.resources import folder

COMPARE = folder("benchmarks") / "compare"
PARTS = ("ground", "home", "measure", "ours", "player", "race", "report", "systems")

#: A rival of our own, which does what its settings say.
STAND_IN = """
import sys
sys.path.insert(0, {rivals!r})
import psycopg
from stage import in_thread, payload_of, serve

class StandIn:
    def __init__(self, stage):
        self.stage = stage
        self.conn = psycopg.connect(stage.work.dsn, autocommit=True)

    def prepare(self):
        if self.stage.work.first:
            self.conn.execute("CREATE TABLE job (id int, ended bool DEFAULT false); CREATE TABLE step (id int)")
        return "1.0"

    def submit(self):
        for number in self.stage.numbers:
            self.conn.execute("INSERT INTO job VALUES (%s)", (number,))

    def run(self):
        in_thread(self.work)

    def work(self):
        fault = self.stage.work.settings.get("fault")
        process, processes = self.stage.work.process, self.stage.work.processes
        for number in self.stage.numbers[process::processes]:
            if fault == "dies":
                raise SystemExit("out of luck")
            self.stage.begin()
            for seq in range(self.stage.work.steps):
                self.stage.step(payload_of(number), seq)
                if not (fault == "loses a step" and number == 7):
                    self.conn.execute("INSERT INTO step VALUES (%s)", (number,))
            if not (fault == "loses" and number == 7):
                self.conn.execute("UPDATE job SET ended = true WHERE id = %s", (number,))
            else:
                self.conn.execute("DELETE FROM job WHERE id = %s", (number,))
            if fault == "twice" and number == 7:
                self.stage.end(payload_of(number))
            self.stage.end(payload_of(number))

serve(StandIn)
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of the benchmark, for this test only."""
    monkeypatch.syspath_prepend(str(COMPARE))
    yield {name: __import__(name) for name in PARTS}
    for name in PARTS:
        sys.modules.pop(name, None)


@pytest.fixture
def stand_in(parts: dict[str, ModuleType], tmp_path: Path) -> Any:
    (tmp_path / "with_stand_in.py").write_text(STAND_IN.format(rivals=str(COMPARE / "rivals")))
    return parts["systems"].System(
        name="dbos",
        script=str(tmp_path / "with_stand_in"),
        steps=(0, 1),
        keeps="all",
        guess={0: 100, 1: 100},
        left="SELECT count(*) FROM job WHERE NOT ended",
        finished="SELECT count(*) FROM job WHERE ended",
        steps_kept="SELECT count(*) FROM step",
    )


@pytest.fixture
def one_server() -> Iterator[Servers]:
    with Servers(1) as started:
        yield started


@pytest.fixture
def two_servers() -> Iterator[Servers]:
    with Servers(2) as started:
        yield started


def test_a_rival_that_loses_or_repeats_is_not_verified(
    parts: dict[str, ModuleType], stand_in: Any, one_server: Servers
) -> None:
    def play(**settings: str) -> dict[str, Any]:
        found: dict[str, Any] = parts["measure"].play(
            stand_in, Path(sys.executable), one_server, workflows=20, steps=1, settings=settings
        )
        return found

    good = play()
    assert good["verified"] is True
    assert (good["version"], good["workflows"], good["finished"], good["steps_found"]) == ("1.0", 20, 20, 20)
    assert good["workflows_per_s"] == pytest.approx(20 / good["seconds"], rel=0.1)
    assert good["wal_bytes_per_workflow"] > good["submit_wal_bytes_per_workflow"] > 0
    for fault in ("loses", "loses a step", "twice"):
        assert play(fault=fault)["verified"] is False, fault
    with pytest.raises(parts["player"].PlayerFailed, match="SystemExit: out of luck"):
        play(fault="dies")


def test_over_several_servers_each_gets_its_share(
    parts: dict[str, ModuleType], stand_in: Any, two_servers: Servers
) -> None:
    found = parts["measure"].play(stand_in, Path(sys.executable), two_servers, workflows=40, steps=0, settings={})
    assert (found["verified"], found["finished"]) == (True, 40)


def test_several_processes_at_a_server_share_its_workflows(
    parts: dict[str, ModuleType], stand_in: Any, one_server: Servers
) -> None:
    def play(**settings: Any) -> dict[str, Any]:
        found: dict[str, Any] = parts["measure"].play(
            stand_in, Path(sys.executable), one_server, workflows=41, steps=1, settings={"processes": 2, **settings}
        )
        return found

    found = play()
    assert (found["verified"], found["processes"], found["finished"], found["steps_found"]) == (True, 2, 41, 41)
    assert play(fault="twice")["verified"] is False
    with pytest.raises(parts["player"].PlayerFailed, match="SystemExit: out of luck"):
        play(fault="dies")


def test_a_sweep_keeps_what_tells_its_variants_apart(parts: dict[str, ModuleType]) -> None:
    def run(variant: str, rate: float) -> dict[str, Any]:
        measured = {"workflows_per_s": rate, "verified": True, "worker_cpu_us_per_workflow": 9.0, "wal_start": 1}
        return {"run": 1, "system": "dbos", "steps": 1, "variant": variant, **measured}

    failed = {"run": 1, "system": "dbos", "steps": 1, "variant": "c", "error": "gone"}
    kept = [parts["report"].slim(each) for each in (run("a", 100), run("b", 300), run("a", 200), failed)]
    assert "wal_start" not in kept[0]
    found = parts["report"].best_of(kept)
    assert [(row["variant"], row.get("workflows_per_s")) for row in found] == [("b", 300), ("a", 150), ("c", None)]
    assert found[0]["worker_cpu_us_per_workflow"] == 9.0
    assert found[2]["errors"] == ["gone"]


def test_runs_add_up_and_failures_are_told(
    parts: dict[str, ModuleType], stand_in: Any, one_server: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts["home"], "python", lambda: Path(sys.executable))
    runs: list[dict[str, Any]] = []
    race = parts["race"].Race(one_server, runs, seconds=0.1, tries=False)
    race.one(stand_in, 0, 1)
    race.one(stand_in, 0, 2, {"fault": "dies"})
    assert ("error" in runs[0], runs[0]["verified"], runs[0]["workflows"]) == (False, True, parts["race"].LEAST)
    assert "out of luck" in runs[1]["error"]
    assert [row["runs"] for row in parts["report"].figures(runs[:1])] == [1]


def test_medians_and_ratios(parts: dict[str, ModuleType]) -> None:
    def run(system: str, rate: float, verified: bool = True) -> dict[str, Any]:
        return {"system": system, "steps": 1, "workflows_per_s": rate, "verified": verified}

    runs = [run("dbos", 100), run("dbos", 400), run("dbos", 200, False)]
    runs += [run("shardflow", 10_000), run("shardflow", 8_000), run("shardflow", 9_000)]
    runs.append({"system": "absurd", "steps": 1, "error": "gone"})
    found = {row["system"]: row for row in parts["report"].figures(runs)}
    assert found["dbos"]["workflows_per_s"] == 200
    assert found["dbos"]["shardflow_times_as_fast"] == 45.0
    assert found["dbos"]["verified"] is False
    assert found["shardflow"]["verified"] is True
    assert "absurd" not in found
    assert "NOT VERIFIED" in parts["report"].table(list(found.values()))


@pytest.mark.slow
def test_a_quick_run_of_all_of_them_loses_nothing(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    try:
        parts["home"].python()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the rivals cannot be installed here: {error}")
    out = tmp_path / "compare.json"
    done = subprocess.run(
        [sys.executable, str(COMPARE), "--quick", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["benchmark"] == "compare"
    assert result["environment"]["postgres_settings"]["synchronous_commit"] == "on"
    rows = {row["system"]: row for row in result["figures"]}
    assert set(rows) == set(parts["systems"].SYSTEMS)
    for run in result["runs"]:
        assert run["verified"] is True, run
        if run["system"] != "floor":
            assert (run["finished"], run["steps_found"]) == (run["workflows"], run["workflows"] * run["steps"])
    assert rows["dbos"]["shardflow_times_as_fast"] > 1
    for name, system in result["systems"].items():
        assert system["keeps"], name
        assert system["version"] or name in ("floor", "shardflow")

"""What benchmarks/scaleout.py makes of its figures, and which control groups it finds; without a server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardflow.bench.arena import Ground
from shardflow.bench.processes import BenchFailed
from shardflow.model import ClusterConfig, ShardConfig


def run(shards: int, rate: float, **more: Any) -> dict[str, Any]:
    return {"load": "drained", "shards": shards, "workflows_per_s": rate, "lost": 0, "duplicated": 0} | {
        "wrong": 0,
        "left": 0,
        **more,
    }


def test_efficiency_is_the_median_against_as_many_times_the_first(part: Any) -> None:
    runs = [
        run(1, 90),
        run(1, 100),
        run(1, 900),
        run(4, 390, lost=1),
        run(4, 360),
        run(4, 1),
        run(4, 360, load="open"),
    ]
    one, four = part("scaleout").series(runs, "drained")
    assert (one["shards"], one["workflows_per_s"], one["efficiency_percent"]) == (1, 100, 100.0)
    assert (four["shards"], four["workflows_per_s"], four["efficiency_percent"]) == (4, 360, 90.0)
    assert (four["least_per_s"], four["most_per_s"], four["runs"], four["lost"]) == (1, 390, 3, 1)


def test_linear_starts_at_the_first_number_of_shards_that_was_measured(part: Any) -> None:
    two, six = part("scaleout").series([run(2, 100), run(6, 240)], "drained")
    assert (two["efficiency_percent"], six["efficiency_percent"]) == (100.0, 80.0)


def test_beside_clusters_apart_the_same_numbers_of_shards_are_compared(part: Any) -> None:
    runs = [run(1, 100), run(2, 150), run(2, 200, load="apart"), run(4, 999, load="apart")]
    one, two = part("scaleout").series(runs, "drained")
    assert "of_apart_percent" not in one
    assert (two["efficiency_percent"], two["of_apart_percent"]) == (75.0, 75.0)


def test_what_all_is_compared_with_is_measured_at_both_ends(part: Any) -> None:
    order = part("scaleout").order
    there = order((1, 2, 4), ("drained", "apart"), 0)
    assert there == [(1, "drained"), (2, "drained"), (4, "drained"), (4, "apart"), (1, "drained")]
    assert order((1, 2, 4), ("drained", "apart"), 1) == [
        *((1, "drained"), (4, "drained"), (4, "apart"), (2, "drained"), (1, "drained"))
    ]
    assert order((1,), ("drained", "apart"), 0) == [(1, "drained")]
    assert order((1, 2), ("open",), 1) == [(2, "open"), (1, "open")]


def test_runs_are_added_to_earlier_ones_of_the_same_kind(part: Any, tmp_path: Path) -> None:
    scaleout = part("scaleout")

    def answer(rate: float, steps: int) -> dict[str, Any]:
        options = {"runs": 1, "shards": (1,), "steps": steps}
        return {"options": options, **scaleout.summary([run(1, rate, run=0, lost=rate == 10)])}

    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(answer(10, 1)))
    both = scaleout.add(answer(30, 1), path)
    assert [(each["run"], each["workflows_per_s"]) for each in both["runs"]] == [(0, 10), (1, 30)]
    assert (both["options"]["runs"], both["series"]["drained"][0]["workflows_per_s"]) == (2, 20)
    assert both["figures"]["verified"] is False
    with pytest.raises(BenchFailed, match="steps 1, not 3"):
        scaleout.add(answer(30, 3), path)


def test_while_all_are_busy_is_between_the_last_to_begin_and_the_first_to_end(part: Any) -> None:
    rate = part("_scaleout_loads")._while_all_busy
    # From 2 to 6 seconds, four workflows of the one and two of the other end.
    assert rate([[0.0, 1.0, 3.0, 4.0, 5.0, 6.0], [2.0, 4.0, 6.0, 9.0]]) == pytest.approx(6 / 4)
    assert rate([[0.0, 1.0], [2.0, 3.0]]) == 0.0
    assert rate([[0.0, 1.0], []]) == 0.0


def test_the_tail_is_from_the_first_shard_without_work_to_the_last(part: Any) -> None:
    tail = part("_scaleout_loads")._tail
    assert tail([[0.0, 5.0], [1.0, 7.5], [2.0, 6.0], []]) == 2.5
    assert tail([[], []]) == 0.0


def test_what_a_server_spent_counts_for_the_ends_of_the_same_time(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = part("_scaleout_loads")
    clock = iter((1000.0, 100.0))  # since 1970, and of the steady clock at the same moment
    monkeypatch.setattr(loads, "time", SimpleNamespace(time=lambda: next(clock), monotonic=lambda: next(clock)))
    stand: Any = SimpleNamespace(place=SimpleNamespace(shards=[0, 1]))
    samples = [loads.Sample(110.0, 1.0, 0.0, 0.0, None), loads.Sample(120.0, 2.0, 10.0, 40.0, None)]
    found = loads.Observed(stand, samples).figures([[1009.0, 1011.0, 1020.0], [1015.0, 1020.5]])
    assert found["server_cpu_percent"] == 5.0
    assert found["server_cpu_us_per_workflow"] == pytest.approx(1e6 / 3, abs=0.01)
    assert found["machine_idle_percent"] == 25.0


def test_each_worker_has_a_shard_or_all_have_all(part: Any) -> None:
    crew = part("_scaleout_loads").Crew
    config = ClusterConfig("c", tuple(ShardConfig(f"s{n}", "") for n in range(2)))
    assert crew(2).shards(config) == [["s0"], ["s0"], ["s1"], ["s1"]]
    assert crew(1, shared=True).shards(config) == [["s0", "s1"]]


@pytest.mark.parametrize(
    "wrong", [["--shards", "0,1"], ["--share", "2"], ["--loads", "open"], ["--runs", "0"], ["--payload", "1"]]
)
def test_arguments_that_make_no_sense_are_refused(part: Any, wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        part("scaleout").parse(wrong)


# -- control groups


def system(tmp_path: Path, version: int, controllers: str, own: str = "/mine") -> Path:
    """A /proc/self of a machine with the CPU controller mounted at `tmp_path`/cpu."""
    mount = tmp_path / "cpu"
    (mount / "mine").mkdir(parents=True)
    (mount / "cgroup.controllers").write_text(controllers)
    proc = tmp_path / "proc"
    proc.mkdir()
    end = f"cgroup cgroup rw,{controllers}" if version == 1 else "cgroup2 cgroup2 rw,nsdelegate"
    root = f"22 1 254:0 / {tmp_path} rw - ext4 /dev/vda rw\n"
    (proc / "mountinfo").write_text(f"{root}30 22 0:26 / {mount} rw,nosuid shared:9 - {end}\n")
    (proc / "cgroup").write_text(f"3:{controllers}:{own}\n" if version == 1 else f"0::{own}\n")
    return proc


@pytest.mark.parametrize(
    ("version", "controllers", "own", "base"),
    [
        (1, "cpu,cpuacct", "/mine", "cpu/mine"),
        (1, "cpu,cpuacct", "/of/another/namespace", "cpu"),
        (2, "cpuset cpu io", "/mine", "cpu"),
        (1, "cpuset", "/mine", None),
        (2, "hugetlb", "/mine", None),
    ],
)
def test_groups_are_made_where_the_kernel_has_its_cpu_controller(
    part: Any, tmp_path: Path, version: int, controllers: str, own: str, base: str | None
) -> None:
    found = part("_scaleout_throttle").find_controller(system(tmp_path, version, controllers, own))
    assert (found and (found.base, found.version)) == (base and (tmp_path / base, version))


def test_without_anything_to_read_there_is_no_controller(part: Any, tmp_path: Path) -> None:
    assert part("_scaleout_throttle").find_controller(tmp_path) is None


@pytest.mark.parametrize(
    ("version", "held", "free"),
    [
        (1, {"cpu.cfs_quota_us": "5000", "cpu.cfs_period_us": "100000"}, {"cpu.cfs_quota_us": "-1"}),
        (2, {"cpu.max": "5000 100000"}, {"cpu.max": "max 100000"}),
    ],
)
def test_a_share_is_a_quota_of_each_period(
    part: Any, tmp_path: Path, version: int, held: dict[str, str], free: dict[str, str]
) -> None:
    controller = part("_scaleout_throttle").Controller(tmp_path, version)
    group = controller.make("g")
    assert {name: (group / name).read_text() for name in free} == free
    controller.limit(group, 0.05)
    assert {name: (group / name).read_text() for name in held} == held
    assert (tmp_path / "cgroup.subtree_control").exists() == (version == 2)


def test_without_a_controller_commits_wait_and_servers_of_others_are_left_alone(
    part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttles = part("_scaleout_throttle")
    monkeypatch.setattr(throttles, "find_controller", lambda: None)
    config = ClusterConfig("c", (ShardConfig("s0", ""),))
    ours: Any = Ground(config.shards, config, [])  # type: ignore[arg-type]
    theirs = Ground(config.shards, config, None)
    for place, kind, expected in ((ours, "auto", "commit_delay"), (ours, "none", "none"), (theirs, "auto", "none")):
        with throttles.throttle(place, kind, 0.05) as made:
            assert made.kind == expected
    for place, kind in ((ours, "cgroup"), (theirs, "delay"), (theirs, "cgroup")):
        with pytest.raises(BenchFailed), throttles.throttle(place, kind, 0.05):
            pass

"""The bench's load, figures and processes, without a server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shardflow.bench import child, latency, meters, workload
from shardflow.bench.processes import BenchFailed, Child
from shardflow.bench.workload import LEAST_PAYLOAD, LEAST_RESULT, Load, id_of, number_of
from shardflow.cli.bench import bench
from shardflow.model import ClusterConfig, RetentionConfig, ShardConfig


@pytest.mark.parametrize("payload", [LEAST_PAYLOAD, 100, 4096])
@pytest.mark.parametrize("number", [0, 7, 99_999])
@pytest.mark.parametrize("steps", [0, 3])
def test_an_input_has_exactly_the_bytes_asked_for(payload: int, number: int, steps: int) -> None:
    call = Load(100_000, steps, payload, 100).call(number)
    assert len(workload.bench_workflow.codec.encode_call(call.args, call.kwargs)) == payload


@pytest.mark.parametrize("result", [LEAST_RESULT, 100, 5000])
async def test_what_runs_gives_the_bytes_that_the_audit_expects(result: int) -> None:
    load = Load(10, 2, max(100, result), result)
    value = await workload.bench_workflow(*load.call(3).args)
    assert workload.bench_workflow.codec.encode_result(value) == load.stored(3, -1)
    step = await workload.bench_step(load.text(3), 1, result)
    assert workload.bench_step.codec.encode_result(step) == load.stored(3, 1)
    assert len(load.stored(3, 1)) == result


def test_every_result_is_another_one() -> None:
    load = Load(500, 3, 100, LEAST_RESULT)
    results = {load.stored(number, seq) for number in range(500) for seq in range(-1, 3)}
    assert len(results) == 500 * 4


def test_a_number_is_found_again_in_its_id_and_in_no_other() -> None:
    assert number_of(id_of(1234)) == 1234
    assert [number_of(id) for id in ("order-1", "bench-1", "bench-x234567890", "")] == [None] * 4


def test_a_quantile_is_the_least_value_that_covers_its_part() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [latency._quantile(values, q) for q in (0.5, 0.9, 0.99, 1.0)] == [50.0, 90.0, 99.0, 100.0]
    assert latency._quantile([3.0], 0.99) == 3.0
    assert latency._quantile([], 0.5) is None


def test_cpu_of_a_server_counts_processes_that_live_and_that_have_ended() -> None:
    burn = "import time\nend = time.process_time() + 0.15\nwhile time.process_time() < end: pass"
    # A tree of its own: what else this process has started comes and goes.
    server = f"""
import subprocess, sys
print(flush=True)
input()
subprocess.run([sys.executable, "-c", {burn!r}], check=True)
print(flush=True)
input()
subprocess.run([sys.executable, "-c", {burn!r} + "\\nprint(flush=True)\\ninput()"], check=True)
"""
    with subprocess.Popen([sys.executable, "-c", server], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = []
        for _ in range(3):
            assert process.stdout.readline()
            seen.append(meters.server_cpu([process.pid]) or 0.0)
            process.stdin.write(b"\n")
            process.stdin.flush()
    before, ended, both = seen
    assert ended - before >= 0.14
    assert both - ended >= 0.14


def test_no_server_of_ours_has_no_cpu_figure() -> None:
    assert meters.server_cpu([]) is None


def test_a_worker_process_has_the_clusters_retention() -> None:
    config = ClusterConfig("it", (ShardConfig("s0", "dbname=it"),), retention=RetentionConfig(succeeded=0.5, dead=9))
    assert child._config(json.loads(json.dumps(asdict(config)))).retention == config.retention


def _spec() -> dict[str, object]:
    config = ClusterConfig("bench", (ShardConfig("s", "host=127.0.0.1 port=1"),))
    shard = config.shards[0]
    return {
        "config": {
            "name": config.name,
            "slots": config.slots,
            "shards": [{"name": shard.name, "dsn": shard.dsn}],
            "lease": {},
            "pool": {},
        },
        "concurrency": 5,
        "timed": True,
        "shards": None,
        "queues": None,
    }


def test_a_worker_process_ends_with_its_pipe() -> None:
    with Child(_spec()) as child:
        assert child.hear(60) == {"ready": True}
        assert not child.ended
    assert child.ended


def test_a_worker_process_ends_when_the_bench_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "bench_stand_in.py"
    script.write_text(
        "import sys, time\nfrom shardflow.bench.processes import Child\n"
        f"child = Child({_spec()!r})\nchild.hear(60)\nprint(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        owner.kill()
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in (Path(f"/proc/{pid}/stat").read_text().split()[2]):
        assert time.monotonic() < until, "the worker has outlived the bench"
        time.sleep(0.02)


def test_a_process_that_ends_is_named() -> None:
    with Child({"neither": "floor nor worker"}) as child, pytest.raises(BenchFailed, match="ended with code 1"):
        child.hear(60)


@pytest.mark.parametrize("given", ["shared_buffers", "=1"])
def test_a_malformed_setting_is_wrong_usage(given: str) -> None:
    answer = CliRunner().invoke(bench, ["throughput", "--set", given])
    assert answer.exit_code == click.UsageError.exit_code
    assert "NAME=VALUE" in answer.output

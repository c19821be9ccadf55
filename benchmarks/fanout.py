"""One parent with many children over several shards, which it starts and then gathers; one worker process.

python benchmarks/fanout.py --children 10000 --shards 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, ShardConfig, Worker
from shardflow.bench.meters import environment
from shardflow.bench.processes import loop_factory
from shardflow.bench.results import write
from shardflow.embedded import Servers
from shardflow.storage import cluster
from shardflow.worker.worker import tune_process

app = App("fanout")


@app.step
async def double(n: int) -> int:
    return 2 * n


@app.workflow
async def child(n: int) -> int:
    return await double(n)


@app.workflow
async def parent(children: int) -> int:
    handles = await shardflow.start_many([child.call(n) for n in range(children)])
    return sum(await shardflow.gather(handles))


async def measure(config: ClusterConfig, children: int) -> dict[str, Any]:
    """Seconds from the submit of the parent to its result; what it waits for is started and ended by then."""
    await cluster.init(config)
    worker = Worker(config, app)
    tune_process()
    async with AsyncClient(config) as client:
        await worker.start()
        await worker.connected()
        await (await client.submit(parent, 10)).result(60)  # connections and prepared statements
        began = time.perf_counter()
        total = await (await client.submit(parent, children)).result(600)
        took = time.perf_counter() - began
        await worker.stop(grace=10)
    if total != children * (children - 1):
        raise SystemExit(f"the children gave {total}")
    figures = {"seconds": round(took, 2), "children_per_s": round(children / took)}
    return {"environment": await environment(config), "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for the result as JSON")
    arguments = parser.parse_args()
    if arguments.children < 1 or arguments.shards < 1:
        parser.error("numbers must be above 0")
    with Servers(arguments.shards) as servers:
        shards = [ShardConfig(f"s{n}", servers[n].dsn, "fanout") for n in range(arguments.shards)]
        config = ClusterConfig("fanout", tuple(shards))
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            answer = runner.run(measure(config, arguments.children))
    answer["options"] = {"children": arguments.children, "shards": arguments.shards}
    if arguments.out:
        write(arguments.out, "fanout", answer)
    print(json.dumps(answer["figures"]))


if __name__ == "__main__":
    main()

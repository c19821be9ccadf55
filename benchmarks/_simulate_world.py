"""A cluster that exists only in an event queue: workers, leases, servers, faults, and who decides when.

Time is a number of seconds. Everything random comes from one seed: the faults from one generator, so that each
algorithm meets the same faults, and the delays of workers from another.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable

from _simulate_faults import Faults
from _simulate_rivals import Algorithm, demands
from _simulate_setup import Figures, Setup, Worker

from shardflow.core.assignment_model import ShardFacts, WorkerFacts, canonical
from shardflow.core.fleet import Fleet
from shardflow.core.planner import Planner

HISTORY = 12.0


class World(Faults):
    """Runs one simulation; `figures` has the result."""

    def __init__(self, setup: Setup, algorithm: Algorithm) -> None:
        self.setup, self.algorithm = setup, algorithm
        self.faults = random.Random(setup.seed)
        self.delays = random.Random(setup.seed + 1)
        self.now = 0.0
        self.end = setup.hours * 3_600 + setup.warm_up
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.ticket = 0
        self.workers: dict[str, Worker] = {}
        self.backlog = {f"s{i:03}": 0.0 for i in range(setup.shards)}
        self.server = {name: i // setup.shards_per_server for i, name in enumerate(self.backlog)}
        self.away: Counter[str] = Counter()
        self.rows: dict[str, set[str]] = {name: set() for name in self.backlog}
        self.served = {name: 0 for name in self.backlog}
        self.dark_since = dict.fromkeys(self.backlog, 0.0)
        self.on_server: Counter[int] = Counter()
        self.rebalancers = int(setup.rebalancer)
        self.version = 0
        self.rested_at = -1
        self.unrest_since: float | None = 0.0
        self.views: list[tuple[float, Fleet]] = []
        self.planners = [Planner(setup.limits, setup.moves_per_decision, setup.cooldown) for _ in range(2)]
        self.figures = Figures()
        self.born = 0

    def run(self) -> Figures:
        setup = self.setup
        for _ in range(setup.workers):
            self.join()
        for shard in self.backlog:
            self.set_served(shard, 0)
        self.at(0.5, self.decide)
        self.at(setup.decide_every / 2, self.second_rebalancer)
        self.at(setup.warm_up, self.start_counting)
        for fault, rate in (
            (self.crash, setup.crashes * setup.workers),
            (self.host_lost, setup.hosts_lost * setup.workers / 1_000),
            (self.leave, setup.leaves * setup.workers),
            (self.freeze, setup.freezes * setup.workers),
            (self.partition, setup.partitions * setup.workers),
            (self.outage, setup.outages * setup.shards / setup.shards_per_server),
            (self.burst, setup.bursts * setup.shards),
            (self.no_rebalancer, 4.0),
            (self.two_rebalancers, 4.0),
        ):
            self.every(rate, fault)
        self.at(10.0, self.sample)
        while self.queue and self.queue[0][0] <= self.end:
            self.now, _, event = heapq.heappop(self.queue)
            event()
        self.now = self.end
        for shard in self.backlog:
            self.set_served(shard, 0)
        return self.figures

    def at(self, delay: float, event: Callable[[], None]) -> None:
        self.ticket += 1
        heapq.heappush(self.queue, (self.now + delay, self.ticket, event))

    def every(self, per_hour: float, fault: Callable[[], None]) -> None:
        """A Poisson process that begins after the warm-up."""
        time = self.setup.warm_up
        while per_hour > 0 and (time := time + self.faults.expovariate(per_hour / 3_600)) < self.end:
            heapq.heappush(self.queue, (time, self.ticket, fault))
            self.ticket += 1

    def start_counting(self) -> None:
        first, first_cover = self.figures.first_rest, self.figures.first_cover
        for shard, served in self.served.items():
            if not served:
                self.dark_since[shard] = self.now
        self.figures = Figures(first_rest=first, first_cover=first_cover)

    # Leases

    def open(self, worker: Worker, shard: str) -> None:
        if shard in worker.leases or not self.able(worker, shard):
            return
        self.ticket += 1
        worker.leases[shard] = self.ticket
        self.rows[shard].add(worker.name)
        self.on_server[self.server[shard]] += 1
        self.figures.most_leases = max(self.figures.most_leases, self.on_server[self.server[shard]])
        self.figures.opened += 1
        self.changed(shard)

    def close(self, worker: Worker, shard: str) -> None:
        if worker.leases.pop(shard, None) is not None:
            self.rows[shard].discard(worker.name)
            self.on_server[self.server[shard]] -= 1
            self.figures.closed += 1
            self.changed(shard)
            if worker.draining and not worker.leases:
                self.unlist(worker)

    def end_lease(self, worker: Worker, shard: str, ticket: int) -> None:
        """Peers end a lease that is past its time or whose session is closed, once the shard answers again."""
        if worker.leases.get(shard) != ticket:
            return
        if self.away[shard]:
            self.at(1.0, lambda: self.end_lease(worker, shard, ticket))
        elif not self.able(worker, shard):
            self.close(worker, shard)

    def able(self, worker: Worker, shard: str) -> bool:
        """Whether the worker can do anything on the shard now."""
        return worker.up and self.now >= worker.frozen_until and not worker.cut_off[shard] and not self.away[shard]

    def changed(self, *shards: str) -> None:
        self.version += 1
        if self.unrest_since is None:
            self.unrest_since = self.now
        for shard in shards:
            self.set_served(shard, sum(self.able(self.workers[name], shard) for name in self.rows[shard]))

    def set_served(self, shard: str, served: int) -> None:
        was, self.served[shard] = self.served[shard], served
        ended = self.now >= self.end
        if was == 0 and (served > 0 or ended):
            dark = self.now - self.dark_since[shard]
            if self.away[shard]:
                self.figures.unreachable += dark
            else:
                self.figures.uncovered += dark
                self.figures.longest_uncovered = max(self.figures.longest_uncovered, dark)
            if math.isinf(self.figures.first_cover) and all(self.served.values()):
                self.figures.first_cover = self.now
        elif was > 0 and served == 0 and not ended:
            self.dark_since[shard] = self.now
        if served == 0 and not self.rows[shard] and not ended:
            self.at(self.delays.uniform(*self.setup.adopt_after), lambda: self.adopt(shard))

    def adopt(self, shard: str) -> None:
        """One to three workers see that nobody holds a lease on the shard, and take it."""
        if self.rows[shard] or self.away[shard]:
            return
        able = [worker for worker in self.workers.values() if not worker.draining and self.able(worker, shard)]
        if not able:
            self.at(1.0, lambda: self.adopt(shard))
        for worker in self.delays.sample(able, min(len(able), self.delays.randint(1, 3))):
            self.figures.adopted += 1
            worker.wish = worker.intended | {shard}
            self.open(worker, shard)

    # Decisions

    def decide(self) -> None:
        self.at(self.setup.decide_every, self.decide)
        fleet = self.fleet()
        self.views = [view for view in self.views if view[0] > self.now - HISTORY] + [(self.now, fleet)]
        if self.rebalancers:
            self.rebalance(fleet)

    def second_rebalancer(self) -> None:
        """The one that only believes that it is elected, and looks at leases as they were seconds ago."""
        self.at(self.setup.decide_every, self.second_rebalancer)
        if self.rebalancers == 2 and self.views:
            self.rebalance(self.views[max(0, len(self.views) - 3)][1], stale=True)

    def rebalance(self, fleet: Fleet, *, stale: bool = False) -> None:
        self.figures.decisions += 1
        version, planner = self.version, self.planners[stale]
        if planner.due(fleet, self.now):
            decision = self.algorithm(fleet.workers, fleet.shards, fleet.intended, self.setup.limits)
            planner.take(fleet, decision, self.now)
        step = planner.step(fleet)
        for name, wish in step.wishes.items():
            self.at(self.delays.uniform(*self.setup.notice), lambda name=name, wish=wish: self.obey(name, wish))  # type: ignore[misc]
            if name in self.workers:
                self.workers[name].wish = wish
        if not step.wishes and not step.later and not stale:
            self.rested_at = version
            if self.unrest_since is not None and all(w.intended == set(w.leases) for w in self.able_workers()):
                self.figures.unrest.append(self.now - self.unrest_since)
                self.unrest_since = None
                self.figures.first_rest = min(self.figures.first_rest, self.now)

    def able_workers(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.up and w.listed and not w.draining and not w.cut_off.total()]

    def obey(self, name: str, wish: frozenset[str]) -> None:
        """A worker sees its wish: it opens, and closes what it is not wanted on only once it holds all of that."""
        worker = self.workers.get(name)
        if worker is None or not worker.up or self.now < worker.frozen_until or worker.wish != wish:
            return
        for shard in sorted(wish):
            self.open(worker, shard)
        missing = [shard for shard in wish if shard not in worker.leases and self.able(worker, shard)]
        for shard in sorted(worker.leases) if not missing else []:
            if shard not in wish and self.able(worker, shard):
                ticket = worker.leases[shard]
                self.at(
                    self.delays.uniform(*self.setup.drain),
                    lambda shard=shard, ticket=ticket: self.step_back(worker, shard, ticket),  # type: ignore[misc]
                )
        if any(shard not in worker.leases for shard in wish):
            self.at(self.setup.renew, lambda: self.obey(name, wish))

    def step_back(self, worker: Worker, shard: str, ticket: int) -> None:
        """The last one on a shard stays, whatever it was told."""
        if worker.leases.get(shard) != ticket or (worker.wish is not None and shard in worker.wish):
            return
        if len(self.rows[shard]) > 1:
            self.close(worker, shard)
        else:
            self.at(1.0, lambda: self.step_back(worker, shard, ticket))

    def fleet(self) -> Fleet:
        """What the rebalancer can know."""
        listed = {worker.name: worker for worker in self.workers.values() if worker.listed}
        return Fleet(
            tuple(self.worker_facts()),
            tuple(self.shard_facts()),
            canonical({name: worker.intended for name, worker in listed.items()}),
            {shard: frozenset(rows) for shard, rows in self.rows.items() if not self.away[shard]},
            {name: ("", worker) for name, worker in listed.items() if not worker.draining},  # type: ignore[misc]
        )

    def worker_facts(self) -> list[WorkerFacts]:
        return [
            WorkerFacts(
                worker.name,
                capacity=0 if worker.draining else 100,
                cut_off=frozenset(shard for shard, times in worker.cut_off.items() if times > 0),
            )
            for worker in self.workers.values()
            if worker.listed
        ]

    def shard_facts(self) -> list[ShardFacts]:
        return [
            ShardFacts(name, backlog=backlog, reachable=not self.away[name]) for name, backlog in self.backlog.items()
        ]

    def sample(self) -> None:
        """Every ten seconds: backlogs drain by what serves them, and the balance is looked at."""
        self.at(10.0, self.sample)
        for shard, backlog in self.backlog.items():
            self.backlog[shard] = max(0.0, backlog - 10 * 20 * self.served[shard])
        self.version += 1
        shards = [shard for shard in self.shard_facts() if shard.reachable]
        demand = demands(shards, self.setup.limits)
        loads = [demand[shard.name] / max(1, self.served[shard.name]) for shard in shards]
        self.figures.imbalance.append(
            max(loads, default=0) * sum(self.served.values()) / max(1, sum(demand.values()))
        )
        for name in [name for name, worker in self.workers.items() if not worker.up and not worker.leases]:
            del self.workers[name]

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

from _simulate_rivals import Algorithm, demands
from _simulate_setup import Figures, Setup, Worker

from shardflow.core.assignment_model import Assignment, Move, ShardFacts, WorkerFacts, canonical, plan_moves

HISTORY = 12.0


class World:
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
        self.views: list[tuple[float, Assignment]] = []
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
            self.open(worker, shard)

    # Faults

    def join(self) -> None:
        name = f"w{self.born:05}"
        self.born += 1
        self.workers[name] = Worker(name)
        self.figures.events["join"] += 1
        self.changed()

    def replace_later(self) -> None:
        self.at(self.faults.uniform(5, 60), self.join)

    def victim(self) -> Worker:
        alive = [
            worker
            for worker in self.workers.values()
            if worker.up and not worker.draining and self.now >= worker.frozen_until
        ]
        return self.faults.choice(alive) if alive else Worker("nobody")

    def crash(self) -> None:
        self.lose(self.victim())

    def lose(self, worker: Worker) -> None:
        if not worker.up:
            return
        self.figures.events["crash"] += 1
        worker.up = False
        self.changed(*worker.leases)
        delay = self.delays.uniform(*self.setup.closed)
        for shard, ticket in worker.leases.items():
            self.at(delay, lambda shard=shard, ticket=ticket: self.end_lease(worker, shard, ticket))  # type: ignore[misc]
        self.at(delay, lambda: self.unlist(worker))
        self.replace_later()

    def host_lost(self) -> None:
        """A host hangs: its sessions stay open, so its leases end by their TTL."""
        first = int(self.victim().name[1:] or 0) if self.workers else 0
        for number in range(first, first + self.setup.host):
            worker = self.workers.get(f"w{number:05}")
            if worker is not None and worker.up:
                self.stall(worker, math.inf, "host lost")
                self.replace_later()

    def freeze(self) -> None:
        self.stall(self.victim(), self.faults.uniform(1, 60), "freeze")

    def stall(self, worker: Worker, seconds: float, what: str) -> None:
        self.figures.events[what] += 1
        worker.frozen_until = max(worker.frozen_until, self.now + seconds)
        self.changed(*worker.leases)
        self.expire(worker, *worker.leases)
        self.at(self.setup.ttl + 1, lambda: self.unlist(worker, if_frozen=True))
        if math.isfinite(seconds):
            self.at(seconds, lambda: self.wake(worker))

    def expire(self, worker: Worker, *shards: str) -> None:
        """Unrenewed from now on, the leases end after the rest of the TTL and up to a second until a peer looks."""
        for shard in shards:
            ticket = worker.leases[shard]
            delay = self.setup.ttl - self.delays.uniform(0, self.setup.renew) + self.delays.random()
            self.at(delay, lambda shard=shard, ticket=ticket: self.end_lease(worker, shard, ticket))  # type: ignore[misc]

    def wake(self, worker: Worker) -> None:
        if worker.up and self.now >= worker.frozen_until:
            worker.listed = True
            self.workers[worker.name] = worker
            self.changed(*worker.leases)

    def unlist(self, worker: Worker, *, if_frozen: bool = False) -> None:
        if if_frozen and self.now >= worker.frozen_until:
            return
        worker.listed = False
        if not if_frozen:
            worker.up = False
        self.changed()

    def leave(self) -> None:
        worker = self.victim()
        self.figures.events["leave"] += 1
        worker.draining = True
        self.changed()
        self.at(30.0, lambda: self.release(worker))
        self.replace_later()

    def release(self, worker: Worker) -> None:
        """A worker told to go that nobody relieved goes anyway, in good order."""
        for shard in list(worker.leases):
            if self.able(worker, shard):
                self.close(worker, shard)
        if worker.up and not worker.leases:
            self.unlist(worker)
        elif worker.up:
            self.at(5.0, lambda: self.release(worker))

    def partition(self) -> None:
        """A worker cannot reach its own shards, or some others, for a while."""
        worker = self.victim()
        self.figures.events["partition"] += 1
        others = self.faults.sample(sorted(self.backlog), min(len(self.backlog), self.faults.randint(1, 20)))
        cut = [*worker.leases, *(shard for shard in others if shard not in worker.leases)]
        worker.cut_off.update(cut)
        self.changed(*worker.leases)
        self.expire(worker, *worker.leases)

        def heal() -> None:
            worker.cut_off.subtract(cut)
            self.changed(*worker.leases)

        self.at(self.faults.uniform(5, 120), heal)

    def outage(self) -> None:
        self.figures.events["outage"] += 1
        server = self.faults.choice(sorted(set(self.server.values())))
        shards = [shard for shard, its in self.server.items() if its == server]
        self.mark(shards, 1)
        self.at(self.faults.uniform(5, 60), lambda: self.mark(shards, -1))

    def mark(self, shards: list[str], by: int) -> None:
        for shard in shards:
            # A dark time is booked as what it was, so it ends where the cause changes.
            self.set_served(shard, self.served[shard] or 1)
            self.away[shard] += by
            self.set_served(shard, 0)
            self.changed(shard)

    def burst(self) -> None:
        """Thousands of workflows at once, that the shard's workers drain within minutes."""
        shard = self.faults.choice(sorted(self.backlog))
        self.figures.events["burst"] += 1
        self.backlog[shard] += self.faults.choice([200, 5_000, 50_000])
        self.changed()

    def no_rebalancer(self) -> None:
        self.elect(0, self.faults.uniform(20, 60))

    def two_rebalancers(self) -> None:
        self.elect(2, self.faults.uniform(20, 60))

    def elect(self, number: int, seconds: float) -> None:
        if self.setup.rebalancer:
            self.figures.events["no rebalancer" if number == 0 else "two rebalancers"] += 1
            self.rebalancers = number
            self.at(seconds, lambda: setattr(self, "rebalancers", 1))

    # Decisions

    def present(self) -> Assignment:
        return canonical({worker.name: frozenset(worker.leases) for worker in self.workers.values()})

    def decide(self) -> None:
        self.at(self.setup.decide_every, self.decide)
        present = self.present()
        self.views = [view for view in self.views if view[0] > self.now - HISTORY] + [(self.now, present)]
        if self.rebalancers and self.version != self.rested_at:
            self.rebalance(present)

    def second_rebalancer(self) -> None:
        """The one that only believes that it is elected, and looks at leases as they were seconds ago."""
        self.at(self.setup.decide_every, self.second_rebalancer)
        if self.rebalancers == 2 and self.views:
            self.rebalance(self.views[max(0, len(self.views) - 3)][1], stale=True)

    def rebalance(self, present: Assignment, *, stale: bool = False) -> None:
        self.figures.decisions += 1
        version = self.version
        decision = self.algorithm(self.worker_facts(), self.shard_facts(), present, self.setup.limits)
        listed = {worker.name for worker in self.workers.values() if worker.listed}
        live = {name: leases for name, leases in present.items() if name in listed}
        moves = plan_moves(live, decision.wanted, self.setup.moves_per_decision)
        for move in moves:
            self.at(self.delays.uniform(*self.setup.notice), lambda move=move: self.obey(move))  # type: ignore[misc]
        if not moves and not stale:
            self.rested_at = version
            if self.unrest_since is not None:
                self.figures.unrest.append(self.now - self.unrest_since)
                self.unrest_since = None
                self.figures.first_rest = min(self.figures.first_rest, self.now)

    def obey(self, move: Move) -> None:
        """A worker sees its wish: it opens, and closes only once that is done."""
        worker = self.workers[move.worker]
        if not worker.up or self.now < worker.frozen_until:
            return
        if move.target is not None:
            self.open(worker, move.target)
            if move.target not in worker.leases:
                return
        source = move.source
        if source is not None and self.able(worker, source):
            ticket = worker.leases.get(source)
            self.at(
                self.delays.uniform(*self.setup.drain),
                lambda: self.close(worker, source) if worker.leases.get(source) == ticket else None,
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

"""What goes wrong in the simulated cluster."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from _simulate_setup import Worker

if TYPE_CHECKING:
    from _simulate_world import World as Base
else:
    Base = object


class Faults(Base):
    """The faults of a `World`."""

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

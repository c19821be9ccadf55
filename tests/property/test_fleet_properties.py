"""What is told step by step never leaves a shard alone, whoever obeys it when, and comes to an end."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from shardflow.core.assignment import assign
from shardflow.core.assignment_model import Assignment, Limits, canonical
from shardflow.core.fleet import Claimer, Fleet, Report, Step, WorkerRow, gather, next_step
from shardflow.core.planner import Planner
from shardflow.model import ShardConfig

laws = settings(deadline=None, max_examples=150)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class Player:
    """A worker of the game: what it holds and aims at, and what it was told. A stranger has no row."""

    name: str
    aims: set[str] | None
    held: set[str]
    kind: str = "plain"
    wanted: set[str] | None = None
    decision: int = 0
    obeyed: int = 0

    @property
    def row(self) -> WorkerRow:
        return WorkerRow(
            self.name,
            "host",
            1,
            "app",
            "0.1.0",
            "",
            100,
            64,
            ["default"],
            [],
            self.kind == "pinned",
            NOON,
            NOON,
            NOON,
            self.kind == "draining",
            1,
            0,
            sorted(self.held),
            None if self.aims is None else sorted(self.aims),
            [],
            self.obeyed,
            None if self.wanted is None else sorted(self.wanted),
            self.decision,
            False,
            False,
            False,
        )

    @property
    def claims(self) -> bool:
        return self.kind != "draining"


@dataclass
class Game:
    """A cluster in which wishes are obeyed by chance, and what never may happen to it."""

    shards: list[str]
    away: set[str]
    players: list[Player]
    goal: Assignment
    min_group: int
    moves: int
    floor: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = {s: sum(s in held for held in self.goal.values()) for s in self.shards}
        staying = {
            s: sum(p.claims and s in p.held and (p.aims is None or s in p.aims) for p in self.players)
            for s in self.shards
        }
        self.floor = {s: min(staying[s], wanted[s]) for s in self.shards}

    def look(self) -> Fleet:
        return gather_players(self.shards, self.away, self.players)

    def step(self) -> Step:
        return next_step(self.look(), self.goal, {}, min_group=self.min_group, moves=self.moves)

    def tell(self) -> Step:
        step = self.step()
        self.told(step)
        return step

    def told(self, step: Step) -> None:
        for player in self.players:
            if player.name in step.wishes:
                assert player.kind == "plain"
                player.wanted = set(step.wishes[player.name])
                player.decision += 1

    def obey(self, chance: random.Random, share: float, *, check: bool = True) -> None:
        """Everybody does some of what is to be done, in any order."""
        deeds: list[tuple[Player, str]] = []
        for player in self.players:
            if player.kind == "plain" and player.decision > player.obeyed and chance.random() < share:
                player.aims, player.obeyed = set(player.wanted or ()), player.decision
            if player.kind == "plain" and player.aims is not None:
                deeds += [(player, shard) for shard in sorted(player.aims ^ player.held)]
        chance.shuffle(deeds)
        for player, shard in deeds:
            if chance.random() < share and shard not in self.away:
                player.held ^= {shard}
                if check:
                    self.check()

    def check(self) -> None:
        for shard in self.shards:
            claimers = sum(p.claims and shard in p.held for p in self.players)
            assert claimers >= self.floor[shard], f"shard {shard} has {claimers} of {self.floor[shard]} claimers"


def gather_players(shards: list[str], away: set[str], players: list[Player]) -> Fleet:
    reachable = [s for s in shards if s not in away]
    reports = {
        s: Report(
            [p.row for p in players if p.kind != "stranger"] if s == reachable[0] else [],
            [Claimer(p.name, ["default"], True) for p in players if s in p.held],
            0,
        )
        for s in reachable
    }
    return gather([ShardConfig(s, f"host={s}") for s in shards], reports)


@st.composite
def games(draw: st.DrawFn) -> Game:
    shards = [f"s{n}" for n in range(draw(st.integers(1, 4)))]
    away = set(draw(st.lists(st.sampled_from(shards), max_size=1))) if len(shards) > 1 else set()
    some = st.sets(st.sampled_from(shards))
    players = []
    for n in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["plain"] * 5 + ["pinned", "draining", "stranger", "fresh"]))
        held = draw(some)
        aims: set[str] | None = set(held)
        if kind == "fresh":
            kind, held, aims = "plain", set(), None
        elif kind == "plain":  # at rest, about to open more, or on the way somewhere
            aims = draw(st.sampled_from([held, held | draw(some), draw(some)]))
        players.append(Player(f"w{n}", aims, held, kind))
    limits = Limits(draw(st.integers(1, 3)), 4)
    fleet = gather_players(shards, away, players)
    if draw(st.booleans()):
        wanted: Mapping[str, frozenset[str]] = assign(fleet.workers, fleet.shards, fleet.intended, limits).wanted
    else:
        fixed = {p.name: fleet.intended.get(p.name, frozenset()) for p in players if p.kind in ("pinned", "stranger")}
        wanted = canonical({p.name: draw(some) for p in players if p.kind == "plain"} | fixed)
    return Game(shards, away, players, wanted, limits.min_group, draw(st.integers(1, 9)))


@laws
@given(games(), st.integers(0, 2**32), st.floats(0.1, 1.0))
def test_a_shard_keeps_the_claimers_it_needs_and_all_comes_to_rest(game: Game, seed: int, share: float) -> None:
    chance = random.Random(seed)
    for _ in range(6):
        game.tell()
        game.obey(chance, share)
    for _ in range(100):
        game.obey(chance, 1.0)
        if not game.tell().wishes:
            break
    else:
        raise AssertionError("it never rests")
    fleet = game.look()
    assert {name: fleet.intended.get(name, frozenset()) for name in fleet.rows} == {
        name: game.goal.get(name, frozenset()) for name in fleet.rows
    }
    assert game.step() == Step({}, (), 0)


@laws
@given(games())
def test_the_same_look_gives_the_same_step(game: Game) -> None:
    first = game.step()
    game.players.reverse()
    again = game.step()
    assert again == first
    assert list(again.wishes) == list(first.wishes)


@laws
@given(games(), st.integers(0, 4))
def test_a_step_is_within_its_budget_but_for_what_is_short_of_workers(game: Game, moves: int) -> None:
    fleet = game.look()
    step = next_step(fleet, game.goal, {}, min_group=game.min_group, moves=moves)
    sizes = {s: sum(s in held for held in fleet.intended.values()) for s in game.shards}
    beside = 0
    for move in step.moves:
        if move.target is not None:
            beside += sizes[move.target] < game.min_group
            sizes[move.target] += 1
    assert len(step.moves) - beside <= moves
    if not step.moves and moves:
        assert {w: s for w, s in fleet.intended.items() if w in fleet.rows} == {
            w: s for w, s in game.goal.items() if w in fleet.rows
        } or step.later


@laws
@given(games(), st.integers(0, 2**32), st.integers(2, 3))
def test_several_who_decide_at_once_come_to_rest(game: Game, seed: int, count: int) -> None:
    """Each keeps a goal of its own, made from what it saw first."""
    chance = random.Random(seed)
    limits = Limits(game.min_group, max(4, game.min_group))
    planners = [Planner(limits, game.moves, cooldown=1e9) for _ in range(count)]
    quiet = 0
    for turn in range(300):
        planner = planners[turn % count] if turn > 2 * count else chance.choice(planners)
        fleet = game.look()
        if planner.due(fleet, 0.0):
            decision = assign(fleet.workers, fleet.shards, fleet.intended, limits)
            planner.take(fleet, decision, 0.0)
        step = planner.step(fleet)
        game.told(step)
        game.obey(chance, 0.5 if turn < 10 else 1.0, check=False)
        quiet = 0 if step.wishes or step.later else quiet + 1
        if quiet > 2 * count:
            return
    raise AssertionError("they never rest")

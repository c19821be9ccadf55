"""Reading a list page by page shows everything once, whatever happens between two pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from shardflow.core.cursor import Cursor, Part, Positions, advance, decode, encode
from shardflow.core.query import Filters, Order
from shardflow.core.stretch import RANGE_BITS, Row, Stretch, range_of

laws = settings(deadline=None, max_examples=300)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SHARDS = ("s0", "s1", "s2", "s3")


@dataclass
class Cluster:
    """Shards that hold workflows: key → (time, whether the filters take it). Each has a range of keys of its own."""

    held: dict[str, dict[int, tuple[datetime, bool]]] = field(default_factory=lambda: {s: {} for s in SHARDS})
    clock: int = 0
    drawn: int = 0

    def submit(self, shard: str, seconds: int, fits: bool) -> None:
        """Adds a workflow: a little later than the last one by the shards' clocks."""
        self.clock += seconds
        self.drawn += 1
        wf = (SHARDS.index(shard) + 1 << RANGE_BITS) + self.drawn
        self.held[shard][wf] = (NOON + timedelta(seconds=self.clock), fits)

    def answer(self, shard: str, after: Positions, newest: bool, limit: int, look: int) -> Part[int]:
        """What the shard says: of each range what follows, at most so many rows looked at."""
        stretches: dict[int, Stretch[int]] = {}
        tops: dict[int, int] = {}
        for wf in sorted(self.held[shard]):
            tops[range_of(wf)] = wf
        for part in tops:
            keys = [wf for wf in sorted(self.held[shard], reverse=newest) if range_of(wf) == part]
            if part in after:
                keys = [wf for wf in keys if (wf < after[part] if newest else wf > after[part])]
            looked = keys[:look]
            rows = [Row(wf, self.held[shard][wf][0], wf) for wf in looked if self.held[shard][wf][1]]
            last = looked[-1] if len(looked) == look else None
            reached = Row(last, self.held[shard][last][0], None) if last is not None else None
            stretches[part] = Stretch(rows, reached).cut(limit)
        return Part(stretches, tops)

    @property
    def fitting(self) -> dict[int, str]:
        """The workflows that are asked for, and where each one is."""
        return {wf: shard for shard, held in self.held.items() for wf, (_, fits) in held.items() if fits}

    def when(self, wf: int) -> datetime:
        return next(held[wf][0] for held in self.held.values() if wf in held)


def read(cluster: Cluster, data: st.DataObject, order: Order, trouble: str) -> tuple[list[list[int]], set[str]]:
    """All pages, with a cursor that was text in between; and which shards the last page lacks."""
    newest = order is Order.NEWEST
    place = Cursor(Filters(), order)
    pages: list[list[int]] = []
    while True:
        limit, look = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
        away = data.draw(st.sets(st.sampled_from(SHARDS))) if trouble == "away" and len(pages) < 30 else set[str]()
        up = [s for s in SHARDS if s not in away]
        parts = {s: cluster.answer(s, place.of(s), newest, limit, look) for s in up}
        rows, place, complete = advance(place, parts, away, limit)
        assert len(rows) <= limit
        pages.append([row.item for row in rows])
        place = decode(encode(place))
        if complete:
            return pages, away
        assert len(pages) < 500, "it does not come to an end"
        if trouble == "moves":  # a slot goes from one shard to another
            source, target = data.draw(st.sampled_from(SHARDS)), data.draw(st.sampled_from(SHARDS))
            for wf in (
                data.draw(st.sets(st.sampled_from(sorted(cluster.held[source])))) if cluster.held[source] else ()
            ):
                cluster.held[target][wf] = cluster.held[source].pop(wf)
        elif data.draw(st.booleans()) and len(pages) < 30:
            cluster.submit(data.draw(st.sampled_from(SHARDS)), 1, True)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    made = Cluster()
    for shard, seconds, fits in draw(
        st.lists(st.tuples(st.sampled_from(SHARDS), st.integers(0, 2), st.booleans()), max_size=40)
    ):
        made.submit(shard, seconds, fits)
    return made


@laws
@given(clusters(), st.sampled_from(Order), st.data())
def test_everything_is_on_exactly_one_page_and_in_order(cluster: Cluster, order: Order, data: st.DataObject) -> None:
    before = set(cluster.fitting)
    used = {range_of(wf) for held in cluster.held.values() for wf in held}
    pages, _ = read(cluster, data, order, "")
    seen = [wf for page in pages for wf in page]
    assert len(seen) == len(set(seen))
    assert before <= set(seen) <= set(cluster.fitting)
    if order is Order.NEWEST:
        later = set(seen) - before
        assert not used & {range_of(wf) for wf in later}, "what comes later is in front of the first page"
        seen = [wf for wf in seen if wf not in later]
    times = [cluster.when(wf) for wf in seen]
    assert times == sorted(times, reverse=order is Order.NEWEST)


@laws
@given(clusters(), st.sampled_from(Order), st.data())
def test_shards_that_are_away_now_and_then_lose_nothing(cluster: Cluster, order: Order, data: st.DataObject) -> None:
    before = dict(cluster.fitting)
    pages, lacking = read(cluster, data, order, "away")
    seen = [wf for page in pages for wf in page]
    assert len(seen) == len(set(seen))
    missing = {wf for wf in before if wf not in set(seen)}
    assert {before[wf] for wf in missing} <= lacking, "and the last page names whose part is missing"


@laws
@given(clusters(), st.sampled_from(Order), st.data())
def test_slots_may_move_between_two_pages(cluster: Cluster, order: Order, data: st.DataObject) -> None:
    before = set(cluster.fitting)
    pages, _ = read(cluster, data, order, "moves")
    seen = [wf for page in pages for wf in page]
    assert len(seen) == len(set(seen))
    assert set(seen) == before


def test_a_submit_between_two_pages_is_on_no_later_page() -> None:
    """A shard without a workflow on the first page has a position nevertheless."""
    cluster = Cluster()
    for n in range(6):
        cluster.submit("s0" if n else "s1", 1, True)
    place = Cursor(Filters(), Order.NEWEST)
    rows, place, _ = advance(place, {s: cluster.answer(s, {}, True, 2, 9) for s in ("s0", "s1")}, (), 2)
    cluster.submit("s1", 1, True)
    seen = [row.wf for row in rows]
    for _ in range(2):
        parts = {s: cluster.answer(s, place.of(s), True, 2, 9) for s in ("s0", "s1")}
        rows, place, complete = advance(place, parts, (), 2)
        seen += [row.wf for row in rows]
    assert complete
    assert [cluster.when(wf) for wf in seen] == [NOON + timedelta(seconds=s) for s in (6, 5, 4, 3, 2, 1)]

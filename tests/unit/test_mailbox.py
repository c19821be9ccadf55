"""What a mailbox asks for, and when the answer was about all that its run waits for."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.core.topics import CHILD
from shardflow.storage import post
from shardflow.storage.post import MailWanted, Message
from shardflow.worker import mailbox
from shardflow.worker.idle import incomplete
from shardflow.worker.mailbox import FEW, LARGE, Mailbox


def message(seq: int, topic: str, key: str | None = None, size: int = 1) -> Message:
    return Message(7, seq, topic, key, b"x" * size, None)


def test_each_topic_is_read_from_where_it_was_left() -> None:
    box = Mailbox()
    assert not box.covers(["a"], [])
    assert box.want(["a", "a"], []).topics == [("a", 0)]
    box.answer([message(3, "a"), message(5, "a")], 9, complete=True)
    assert box.covers(["a"], [])
    assert not box.covers(["a", "b"], [])
    assert box.want(["b", "a"], []).topics == [("a", 5), ("b", 0)]
    box.answer([message(4, "b")], 9, complete=True)
    assert [box.take("a"), box.take("b")] == [message(3, "a"), message(4, "b")]
    assert box.seen == 9


def test_an_answer_about_something_else_is_forgotten() -> None:
    """What has come on a topic since it was asked for is not known, however new the last answer is."""
    box = Mailbox()
    box.want(["a"], [])
    box.answer([], 3, complete=True)
    box.want(["b"], [])
    box.answer([], 8, complete=True)
    assert box.covers(["b"], [])
    assert not box.covers(["a"], [])


def test_an_answer_that_was_cut_off_covers_nothing() -> None:
    box = Mailbox()
    box.want(["a"], [])
    box.answer([message(3, "a")], 9, complete=False)
    assert box.has(["a"])
    assert not box.covers(["a"], [])
    assert box.want(["a"], []).topics == [("a", 3)]


def test_ends_of_children_are_read_ahead_until_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "HOLD", 10)
    box = Mailbox()
    assert box.want([], ["a"]) == mailbox.Wanted([(CHILD, 0)], [])
    box.answer([message(2, CHILD, "x"), message(3, CHILD, "a")], 5, complete=True)
    assert box.covers([], ["a", "another"])
    assert box.missing(["a", "another"]) == 1
    assert box.want([], ["another"]) == mailbox.Wanted([(CHILD, 3)], [])
    box.answer([message(7, CHILD, "y", 9)], 9, complete=False)
    assert not box.covers([], ["another"])
    assert box.want(["t"], ["another"]) == mailbox.Wanted([("t", 0)], ["another"])
    box.answer([message(20, CHILD, "another")], 20, complete=True)
    assert box.covers(["t"], ["another"])
    assert not box.covers(["t"], ["b"])
    many = [f"c{n}" for n in range(FEW + 1)]
    assert box.want([], many) == mailbox.Wanted([(CHILD, 7)], [])  # what was read by id says nothing of the others


def test_large_ends_are_read_again_where_there_is_no_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "HOLD", LARGE * 4)
    box = Mailbox()
    box.want([], ["a", "b", "c"])
    box.answer(
        [message(2, CHILD, "a", LARGE), message(3, CHILD, "b"), message(4, CHILD, "c", LARGE)], 5, complete=True
    )
    box.had(["a", "b", "c"])
    assert [box.end(id) is not None for id in "abc"] == [False, True, True]  # there is room for the rest
    assert not box.covers([], ["a"])
    assert box.want([], ["a", "b"]).ends == ["a"]
    box.answer([message(2, CHILD, "a", LARGE)], 5, complete=True)
    assert box.covers([], ["a", "b"])
    box.had(["a"])
    assert not box.covers([], ["a"])  # although it was the last answer
    many = [f"c{n}" for n in range(FEW)]
    assert box.want([], ["a", *many]) == mailbox.Wanted([(CHILD, 0)], [])


@given(
    sizes=st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.integers(0, 6)), max_size=20),
    ends=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=5),
    budget=st.integers(1, 30),
)
def test_what_was_left_out_is_noticed(
    sizes: list[tuple[int, str, int]], ends: list[tuple[int, int]], budget: int
) -> None:
    """As the statement answers: by topics asked for in order, then ends, until so many bytes are there."""
    wanted = MailWanted([0, 1, 2], [(wf, t, 0) for wf in (2, 0, 1) for t in "ab"], [(wf, "k") for wf, _ in ends])
    there = [
        Message(wf, seq, topic, None, b"x" * size, None)
        for wf, topic, _ in wanted.topics
        for seq, (w, t, size) in enumerate(sizes, 1)
        if (w, t) == (wf, topic)
    ]
    there += [Message(wf, seq, CHILD, "k", b"x" * size, None) for seq, (wf, size) in enumerate(ends, 100)]
    answered, before = [Message(wf, 0, "", None, None, None) for wf in wanted.wfs], 0
    for each in there:
        if before >= budget:
            break
        answered.append(each)
        before += each.size
    left = {each.wf for each in there[len(answered) - 3 :]}
    with patch.object(post, "MAIL_BYTES", budget):
        assert left <= incomplete(wanted, answered)
        if before < budget:
            assert incomplete(wanted, answered) == set()

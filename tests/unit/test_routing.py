from __future__ import annotations

import uuid

import pytest

from shardflow.core.routing import check_id, check_name, draw_id, new_id, routing_key, slot_of
from shardflow.errors import InvalidInput, InvalidWorkflowId, ShardUnavailable

# (id, slot of 1024, slot of 16384). These can never change: stored workflows are found by them. A failure
# here means that an existing cluster would look for its workflows on the wrong shards.
GOLDEN = [
    ("a", 434, 10674),
    ("order-1", 545, 5665),
    ("order-42", 398, 8590),
    ("018f3c4e-7b1a-7cc3-98c4-dc0c0c07398f", 285, 2333),
    ("{tenant-7}/order-1", 263, 3335),
    ("{tenant-7}/order-2", 263, 3335),
    ("tenant-7", 263, 3335),
    ("x{a}y{b}", 434, 10674),
    ("{}order-1", 903, 903),
    ("{}{tenant-7}", 657, 8849),
    ("{open", 942, 5038),
    ("close}", 314, 4410),
    ("}{tenant-7}", 263, 3335),
    ("{{tenant-7}}", 804, 11044),
    ("Zürich", 337, 6481),
    ("注文-7", 46, 1070),
    ("🦊", 835, 835),
    ("{🦊}/1", 835, 835),
    ("x" * 512, 920, 920),
]


def murmur3_x86_32(data: bytes, seed: int) -> int:
    """Written from the reference in SMHasher, to check the library that production code calls."""

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> (32 - by)) & 0xFFFFFFFF

    def scramble(k: int) -> int:
        return rotate(k * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF

    h = seed
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        h = rotate(h ^ scramble(int.from_bytes(data[i : i + 4], "little")), 13)
        h = (h * 5 + 0xE6546B64) & 0xFFFFFFFF
    h ^= scramble(int.from_bytes(data[whole:], "little"))
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"test", 0, 0xBA6BD213),
        (b"Hello, world!", 0, 0xC0363E43),
        (b"The quick brown fox jumps over the lazy dog", 0, 0x2E4FF723),
    ],
)
def test_the_reference_hash_gives_the_published_values(data, seed, expected):
    assert murmur3_x86_32(data, seed) == expected


@pytest.mark.parametrize(("workflow_id", "of_1024", "of_16384"), GOLDEN)
def test_slots_never_change(workflow_id, of_1024, of_16384):
    assert slot_of(workflow_id, 1024) == of_1024
    assert slot_of(workflow_id, 16384) == of_16384
    assert murmur3_x86_32(routing_key(workflow_id).encode(), 0) % 16384 == of_16384


@pytest.mark.parametrize(
    ("workflow_id", "key"),
    [
        ("order-1", "order-1"),
        ("{tenant-7}/order-1", "tenant-7"),
        ("order-1{tenant-7}", "tenant-7"),
        ("{a}{b}", "a"),
        ("{}{b}", "{}{b}"),
        ("{}", "{}"),
        ("{{a}}", "{a"),
        ("}a{b}", "b"),
        ("{a", "{a"),
        ("a}", "a}"),
        ("", ""),
    ],
)
def test_the_routing_key_follows_the_redis_hash_tag_rule(workflow_id, key):
    assert routing_key(workflow_id) == key


@pytest.mark.parametrize("workflow_id", ["a", "x" * 512, "é" * 256, "🦊" * 128, " ", "{}"])
def test_valid_ids_are_given_back(workflow_id):
    assert check_id(workflow_id) is workflow_id


@pytest.mark.parametrize(
    ("workflow_id", "message"),
    [
        (7, "must be a str, not int"),
        (None, "must be a str, not NoneType"),
        (b"a", "must be a str, not bytes"),
        ("", "must not be empty"),
        ("x" * 513, "513 bytes of UTF-8, more than 512"),
        ("é" * 257, "514 bytes of UTF-8, more than 512"),
        ("a\0b", "NUL"),
        ("a\ud800", r"lone surrogate U\+D800 at position 1"),
    ],
)
def test_ids_that_cannot_be_stored_are_refused(workflow_id, message):
    with pytest.raises(InvalidWorkflowId, match=message):
        check_id(workflow_id)


def test_a_refused_name_is_named_by_its_kind():
    assert check_name("queue", "orders") == "orders"
    assert check_name("queue", "é" * 128) == "é" * 128
    for value, message in [
        (3, "a queue must be a str, not int"),
        ("", "a queue must not be empty"),
        ("q\0", "the queue .* NUL"),
        ("é" * 129, "the queue .* 258 bytes of UTF-8, more than 256"),
        ("\udfff", "the queue .* surrogate"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            check_name("queue", value)
    with pytest.raises(InvalidInput, match="more than 3"):
        check_name("queue", "abcd", limit=3)


def test_the_example_of_rfc_9562_comes_out():
    # Appendix A.6: unix_ts_ms 0x017F22E279B0, rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F.
    bits = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    assert new_id(0x017F22E279B0, bits) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@pytest.mark.parametrize(("unix_ms", "bits"), [(0, 0), (2**48 - 1, 2**74 - 1), (1, 1)])
def test_generated_ids_are_version_7_uuids(unix_ms, bits):
    made = uuid.UUID(new_id(unix_ms, bits))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == unix_ms
    assert str(made) == new_id(unix_ms, bits)


@pytest.mark.parametrize(("unix_ms", "bits"), [(-1, 0), (2**48, 0), (0, -1), (0, 2**74)])
def test_what_does_not_fit_a_uuid_is_refused(unix_ms, bits):
    with pytest.raises(InvalidInput):
        new_id(unix_ms, bits)


def test_ids_are_drawn_until_one_is_accepted():
    draws = iter(range(100))
    seen: list[str] = []

    def accept(drawn: str) -> bool:
        seen.append(drawn)
        return len(seen) == 5

    assert draw_id(1, lambda n: next(draws), accept) == new_id(1, 4)
    assert seen == [new_id(1, i) for i in range(5)]


def test_drawing_asks_for_74_bits():
    asked: list[int] = []
    draw_id(1, lambda n: asked.append(n) or 0, lambda drawn: True)
    assert asked == [74]


def test_drawing_gives_up_when_no_shard_takes_an_id():
    tries: list[str] = []
    with pytest.raises(ShardUnavailable, match="none of 7 generated"):
        draw_id(1, lambda n: 0, lambda drawn: bool(tries.append(drawn)), attempts=7)
    assert len(tries) == 7

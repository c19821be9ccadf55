"""Arrays on the wire, as `array_send` in the server writes them, whichever way they are put together."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

import pytest

from shardflow.storage.arrays import Array, Int2s, Int8s, Names, Texts, _ArrayDumper

EDGES = [0, 1, -1, 255, -256, 2**31, 2**63 - 1, -(2**63)]


def dumped(array: Array) -> bytes:
    return bytes(_ArrayDumper(type(array)).dump(array))


def wire(oid: int, elements: Sequence[bytes]) -> bytes:
    return pack(">iiIii", 1, 1, oid, len(elements), 1) + b"".join(pack(">i", len(e)) + e for e in elements)


@pytest.mark.parametrize("count", [1, 8, 63, 64, 65, 1000])
def test_bigints(count: int) -> None:
    values = [EDGES[n % len(EDGES)] ^ n for n in range(count)]
    assert dumped(Int8s(values)) == wire(20, [pack(">q", value) for value in values])


@pytest.mark.parametrize("values", [[1], [1] * 100, [1, 1, -7], [-32768, 32767]])
def test_smallints(values: list[int]) -> None:
    assert dumped(Int2s(values)) == wire(21, [pack(">h", value) for value in values])


@pytest.mark.parametrize("values", [["charge"], ["charge", "größe", "charge"], [""] * 70])
def test_names_are_written_as_texts_are(values: list[str]) -> None:
    assert dumped(Names(values)) == dumped(Texts(values)) == wire(25, [value.encode() for value in values])


def test_an_empty_array_has_no_dimension() -> None:
    for kind in (Int8s, Int2s, Names, Texts):
        assert dumped(kind([])) == pack(">iiI", 0, 0, kind.element_oid)

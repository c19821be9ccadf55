"""How JSON is stored: as it is, compressed, or as a payload codec makes it; and how large it may be."""

from __future__ import annotations

import json
import random
import threading
import tracemalloc
import zlib
from dataclasses import dataclass, replace

import pytest
from support.cipher import Cipher

from shardflow import App, Codecs
from shardflow.cli.output import payload as shown
from shardflow.core import compress
from shardflow.core.codec import DEFAULT, EMPTY_CALL, CallCodec
from shardflow.core.compress import compressed, decompressed
from shardflow.core.payload import MARKS, Payloads, split
from shardflow.errors import InvalidInput, SerializationError
from shardflow.model import NEVER, PayloadConfig

TEXT = json.dumps([{"id": i, "name": f"customer {i}", "total": i * 7 % 1000} for i in range(2000)]).encode()
NOISE = json.dumps(random.Random(1).randbytes(40_000).hex() + "\u20ac", ensure_ascii=False).encode()


@dataclass
class Doc:
    text: str


class Reverse:
    """A codec without a secret."""

    name = "reverse"

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes) -> bytes:
        return data[::-1]


def tuned(*codecs: object, **limits: int) -> Payloads:
    payloads = Payloads(codecs)  # type: ignore[arg-type]
    payloads.limits = PayloadConfig(**limits)
    return payloads


# Compression


def test_what_is_large_is_compressed_and_comes_back():
    stored = Payloads().seal(TEXT, "x")
    assert len(stored) < len(TEXT) / 3
    assert stored[:1] == compress.MARK
    assert Payloads().open(stored, "x") == TEXT


def test_what_is_small_stays_json():
    assert Payloads().seal(TEXT[:16_384], "x") == TEXT[:16_384]
    assert Payloads().seal(TEXT[:16_385], "x")[:1] == compress.MARK
    assert tuned(compress_above=10).seal(b'"' + b"a" * 50 + b'"', "x")[:1] == compress.MARK
    assert tuned(compress_above=NEVER).seal(TEXT, "x") == TEXT


def test_what_does_not_become_clearly_smaller_stays_json():
    noise = json.dumps("".join(map(chr, random.Random(2).choices(range(48, 127), k=60_000)))).encode()
    for data in (noise, noise[:20_000]):
        assert compressed(data) is None
        assert Payloads().seal(data, "x") == data


def test_the_middle_of_something_large_tells_whether_to_compress_it(monkeypatch):
    sizes: list[int] = []

    def compressor(data: bytes, level: int) -> bytes:
        sizes.append(len(data))
        return bytes(len(data))

    monkeypatch.setattr(zlib, "compress", compressor)
    assert compressed(bytes(1_000_000)) is None
    assert sizes == [4096]


def test_no_json_begins_with_a_mark():
    for value in (None, True, False, 0, -1, 1.5, "", "a", [], {}, "\x01", "\x02"):
        assert DEFAULT.encode(value, what="x")[0] >= MARKS
    assert all(ord(space) >= MARKS for space in " \t\n\r")


def test_a_bomb_is_refused_before_it_is_unpacked():
    bomb = compress.MARK + zlib.compress(b'"' + b"a" * (200 << 20) + b'"', 9)
    assert len(bomb) < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError, match=r"x: compressed, and more than 33,554,432 bytes .*max_decoded"):
            Payloads().open(bomb, "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    with pytest.raises(SerializationError, match="more than 2,000 bytes"):
        tuned(max_decoded=2000, max_size=2000).open(Payloads().seal(TEXT, "x"), "x")
    assert tuned(max_decoded=len(TEXT)).open(Payloads().seal(TEXT, "x"), "x") == TEXT


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:1],
        lambda data: data + b"x",
        lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
        lambda data: data[:1] + b"no zlib",
    ],
)
def test_damaged_bytes_are_refused(damage):
    stored = Payloads().seal(TEXT, "x")
    with pytest.raises(SerializationError, match="x: compressed, and damaged"):
        DEFAULT.decode(damage(stored), what="x")


def test_another_level_or_version_of_zlib_is_read_and_is_the_same_value():
    one, other = Payloads().seal(TEXT, "x"), compress.MARK + zlib.compress(TEXT, 9)
    assert one != other
    assert DEFAULT.same(one, other, what="x")
    assert DEFAULT.same(one, TEXT, what="x")
    assert not DEFAULT.same(one, Payloads().seal(TEXT + b" ", "x"), what="x")
    assert decompressed(other, 1 << 20) == TEXT


# Limits


def test_a_payload_that_is_too_large_is_refused_and_told_how_large_it_was():
    keep = tuned(compress_above=NEVER)
    limit = keep.limits.max_size
    assert len(keep.seal(bytes(limit), "x")) == limit
    with pytest.raises(
        SerializationError, match=r"x: 8,388,609 bytes; a payload may have 8,388,608 \(payload\.max_size"
    ):
        keep.seal(bytes(limit + 1), "x")
    assert len(Payloads().seal(b" " * (limit + 1), "x")) < 100_000  # it is the stored bytes that count
    with pytest.raises(
        SerializationError, match=r"33,554,433 bytes of JSON; a payload may have 33,554,432 .*max_decoded"
    ):
        Payloads().seal(bytes((32 << 20) + 1), "x")
    with pytest.raises(SerializationError, match=r"x: [\d,]+ bytes \(of [\d,]+ bytes of JSON\); .* 2,000 "):
        tuned(max_size=2000).seal(TEXT, "x")


def test_every_way_in_has_the_limit():
    def echo(text: str) -> str: ...

    codecs = Codecs()
    codecs.limits = PayloadConfig(max_size=1024, compress_above=NEVER)
    calls = CallCodec(echo, name="step echo", codecs=codecs)
    for fits in ("a" * 1000, None):
        calls.encode_call((fits,))
        calls.encode_result(fits)
    large = "a" * 1023
    for encode, what in [
        (lambda: calls.encode_call((large,)), "arguments of step echo"),
        (lambda: calls.encode_call((), {"text": large}), "arguments of step echo"),
        (lambda: calls.encode_call(({1: large},)), "arguments of step echo"),
        (lambda: calls.encode_result(large), "result of step echo"),
        (lambda: calls.roundtrip_result(large), "result of step echo"),
        (lambda: codecs.encode(large, what="message"), "message"),
    ]:
        with pytest.raises(SerializationError, match=rf"{what}: 1,0\d\d bytes; a payload may have 1,024"):
            encode()


def test_a_caller_may_have_limits_of_its_own():
    def echo(text: str) -> str: ...

    calls, own = CallCodec(echo), PayloadConfig(max_size=1024, compress_above=NEVER)
    with pytest.raises(SerializationError, match=r"may have 1,024"):
        calls.encode_call(("a" * 2000,), limits=own)
    with pytest.raises(SerializationError, match=r"may have 1,024"):
        DEFAULT.encode("a" * 2000, what="x", limits=own)
    assert calls.encode_call(("a" * 900,), limits=own) == calls.encode_call(("a" * 900,))
    packed = calls.encode_call(("a" * 50_000,))
    with pytest.raises(SerializationError, match="more than 1,024 bytes when decompressed"):
        calls.decode_call(packed, limits=replace(own, max_decoded=1024))
    with pytest.raises(SerializationError, match="more than 1,024 bytes when decompressed"):
        calls.decode_result(packed, limits=replace(own, max_decoded=1024))
    assert calls.decode_call(packed) == (("a" * 50_000,), {})


# Payload codecs


def test_every_payload_of_an_app_is_what_its_codec_makes_of_it():
    app = App("secret", codecs=Codecs(payload=[Cipher("k1")]))

    @app.step
    async def read(doc: Doc) -> Doc: ...

    @app.step
    async def tick() -> None: ...

    doc = Doc("top secret")
    for data in [
        read.codec.encode_call((doc,)),
        read.codec.encode_result(doc),
        read.codec.roundtrip_result(doc)[0],
        read.codec.encode_call((Doc("top secret" * 10_000),)),
        tick.codec.encode_call(),
        tick.codec.encode_result(None),
        app.codecs.encode("top secret", what="x"),
    ]:
        assert data[0] == 2
        assert split(data)[0] == "k1"
        assert b"secret" not in data
        assert data != EMPTY_CALL
    assert read.codec.decode_call(read.codec.encode_call((doc,))) == ((doc,), {})
    assert read.codec.decode_result(read.codec.roundtrip_result(doc)[0]) == doc
    assert tick.codec.decode_call(tick.codec.encode_call()) == ((), {})
    assert tick.codec.decode_result(tick.codec.encode_result(None)) is None


def test_the_first_codec_writes_and_each_reads_what_has_its_name():
    old, new = Cipher("2025", b"a"), Cipher("2026", b"b")
    before, during, after = Codecs(payload=[old]), Codecs(payload=[old, new]), Codecs(payload=[new, old])
    stored = [each.encode("x", what="x") for each in (Codecs(), before, during, after)]
    assert [split(data)[0] for data in stored[1:]] == ["2025", "2025", "2026"]
    assert [after.decode(data, str, what="x") for data in stored] == ["x"] * 4
    assert [during.decode(data, str, what="x") for data in stored] == ["x"] * 4
    with pytest.raises(
        SerializationError, match=r"x: was written by the payload codec '2026', and here are only 2025"
    ):
        before.decode(stored[3], str, what="x")
    with pytest.raises(
        SerializationError, match=r"payload codec '2025', and here are none: give it to Codecs\(payload"
    ):
        Codecs().decode(stored[1], str, what="x")
    with pytest.raises(SerializationError, match="'2025' cannot decode it: ValueError: wrong key"):
        Codecs(payload=[Cipher("2025", b"z")]).decode(stored[1], str, what="x")


def test_it_is_compressed_before_it_is_encrypted():
    stored = Payloads([Cipher("k1")]).seal(TEXT, "x")
    assert len(stored) < len(TEXT) / 3
    assert Payloads([Cipher("k1")]).open(stored, "x") == TEXT
    with pytest.raises(SerializationError, match="x: compressed, and more than"):
        tuned(Cipher("k1"), max_decoded=2000, max_size=2000).open(stored, "x")


def test_the_same_value_encrypted_twice_is_the_same():
    codecs = Codecs(payload=[Cipher("new", b"n"), Cipher("old", b"o")])
    one, other = codecs.encode({"a": 1}, what="x"), codecs.encode({"a": 1}, what="x")
    assert one != other
    assert codecs.same(one, other, what="x")
    assert codecs.same(one, Codecs(payload=[Cipher("old", b"o")]).encode({"a": 1}, what="x"), what="x")
    assert not codecs.same(one, codecs.encode({"a": 2}, what="x"), what="x")
    with pytest.raises(SerializationError, match="here are none"):
        Codecs().same(one, other, what="x")


def test_a_payload_codec_that_fails_is_named():
    class Broken:
        name = "kms"

        def encode(self, data: bytes) -> object:
            raise TimeoutError("no answer")

        def decode(self, data: bytes) -> object:
            return "text"

    with pytest.raises(
        SerializationError, match="x: the payload codec 'kms' cannot encode it: TimeoutError: no answer"
    ):
        Payloads([Broken()]).seal(b"1", "x")  # type: ignore[list-item]
    with pytest.raises(SerializationError, match=r"x: decode of the payload codec 'kms' gave .*str.*, not bytes"):
        Payloads([Broken()]).open(b"\x02\x03kms1", "x")  # type: ignore[list-item]


@pytest.mark.parametrize(
    "data", [b"\x02", b"\x02\x05kms", b"\x02\x00", b"\x02\x01\xff", b"\x03", b"\x00", b"\x07abc"]
)
def test_bytes_with_a_strange_beginning_are_refused(data):
    with pytest.raises(SerializationError, match=r"^x: (was written by the payload codec|not JSON)"):
        DEFAULT.decode(data, what="x")


@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 64, "ä", None, 5])
def test_a_payload_codec_needs_a_short_plain_name(name):
    with pytest.raises(InvalidInput, match="name of a payload codec must be"):
        Codecs(payload=[Cipher(name)])


def test_two_payload_codecs_cannot_have_one_name():
    with pytest.raises(InvalidInput, match="two payload codecs are named 'k1'"):
        Codecs(payload=[Cipher("k1", b"a"), Cipher("k1", b"b")])


def test_a_codec_may_be_used_by_many_threads():
    codecs = Codecs(payload=[Cipher("k1")])
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(50):
                doc = Doc(f"{n} {i}" * 3000)
                assert codecs.decode(codecs.encode(doc, what="x"), Doc, what="x") == doc
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# What is shown


def test_what_commands_show_is_the_json_where_it_can_be_had():
    assert shown(DEFAULT.encode({"a": 1}, what="x")) == {"a": 1}
    assert shown(Payloads().seal(TEXT, "x")) == json.loads(TEXT)
    assert shown(Codecs(payload=[Reverse()]).encode("abc", what="x")) == "<5 bytes of the payload codec reverse>"
    assert shown(Payloads().seal(TEXT, "x")[:-1]).endswith(" compressed bytes>")
    assert shown(b"\xff") == "\\xff"
    assert shown(None) is None


def test_what_only_shows_a_value_gets_the_stored_bytes_where_it_cannot_be_read():
    codecs = Codecs(payload=[Reverse()])
    stored = codecs.encode("abc", what="x")
    assert codecs.readable(stored) == b'"abc"'
    assert DEFAULT.readable(stored) == stored

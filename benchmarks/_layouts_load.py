"""What the benchmarks submit: ids and payloads."""

from __future__ import annotations

import random
import secrets
import uuid


def payloads(size: int, *, kind: str = "json", count: int = 64) -> list[bytes]:
    """Return ``count`` payloads of ``size`` bytes: JSON that compresses somewhat, or ``random`` bytes."""
    if kind == "random":
        return [secrets.token_bytes(size) for _ in range(count)]
    dice = random.Random(size)
    made = []
    for number in range(count):
        items: list[str] = []
        while sum(map(len, items)) < size:
            sku, quantity, cents = dice.getrandbits(40), dice.randint(1, 99), dice.randint(1, 10**6)
            items.append(f'{{"sku":"{sku:x}","quantity":{quantity},"cents":{cents}}}')
        made.append(f'{{"order":{number},"items":[{",".join(items)}]}}'.encode()[:size])
    return made


def workflow_ids(count: int, kind: str = "ordered") -> list[str]:
    """Return ``count`` ids: ``ordered`` ones of 23 characters, as of a shop, or random ``uuid``s."""
    if kind == "uuid":
        return [str(uuid.uuid4()) for _ in range(count)]
    return [f"order-{number:08d}-{number * 2_654_435_761 & 0xFFFFFFFF:08x}" for number in range(count)]

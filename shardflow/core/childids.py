"""The ids of a workflow's children: derived from the parent's id and the number of the call that starts them, so that
a start which is repeated after a crash starts the same ones. Stored: this can never change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidInput
from .branches import CALL_BITS
from .routing import MAX_ID_BYTES, routing_key

#: Bytes of a parent's id beyond which a digest stands for it, so that descendants' ids do not grow without end.
LONGEST_BASE = MAX_ID_BYTES // 2


@dataclass(frozen=True, slots=True)
class Children:
    """Children that one call starts: `base` and how many, or `given` ids; `names` of their workflows, one where it is
    the same for all."""

    base: str
    count: int
    given: tuple[str | None, ...] | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        parent: str,
        seq: int,
        given: Sequence[str | None],
        colocate: bool,
        many: bool,
        generation: int = 0,
        names: Sequence[str] = (),
    ) -> Children:
        """The children of the call number `seq` of `parent`.

        `given` has the ids that the user chose, None for the others; with `colocate` they share the parent's shard;
        `many` says that the call starts a list, even of one; `generation`, how often the parent has begun anew;
        `names`, of the children's workflows.
        """
        again = f"{generation}~" if generation else ""
        base = f"{_root(parent, colocate)}/{again}{_number(seq)}"
        if colocate and routing_key(base) != routing_key(parent):
            raise InvalidInput(
                f"children of {parent!r} cannot be made to share its shard: give it an id with a hash tag, such as"
                ' "{tenant-7}/order-1"'
            )
        named = tuple(given) if any(id is not None for id in given) else None
        names = tuple(names[:1] if len(set(names)) == 1 else names)
        return cls(f"{base}." if many else base, len(given) if many else -1, named, names)

    def alike(self, other: Children) -> bool:
        """Whether the same code may have started both: as many, of the same workflows."""
        return self.count == other.count and (self.names == other.names or not self.names or not other.names)

    @property
    def what(self) -> str:
        """In words."""
        of = f" of {', '.join(map(repr, self.names[:3]))}" if self.names else ""
        return f"one child{of}" if self.count < 0 else f"{self.count} children{of}"

    @property
    def ids(self) -> Sequence[str]:
        """The ids, in order."""
        derived = [self.base] if self.count < 0 else [f"{self.base}{n}" for n in range(self.count)]
        if self.given is None:
            return derived
        return [d if g is None else g for d, g in zip(derived, self.given, strict=True)]

    def to_json(self) -> bytes:
        """For the checkpoint of the start: short for any number of children."""
        record: dict[str, object] = {"base": self.base, "count": self.count}
        if self.given is not None:
            record["given"] = self.given
        if self.names:
            record["names"] = self.names
        return json.dumps(record).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Children:
        """The inverse."""
        record = json.loads(data)
        given = record.get("given")
        return cls(
            record["base"], record["count"], None if given is None else tuple(given), tuple(record.get("names", ()))
        )


def _root(parent: str, colocate: bool) -> str:
    tagged = "{" in parent
    if len(parent.encode()) <= LONGEST_BASE:
        return "{" + parent + "}" if colocate and not tagged and "}" not in parent else parent
    digest = hashlib.sha256(parent.encode()).hexdigest()[:32]
    start = parent.find("{")
    end = parent.find("}", start + 1)
    if start >= 0 and end > start + 1 and end - start < LONGEST_BASE:
        return f"{parent[start : end + 1]}/{digest}"  # the routing key stays
    return digest


def _number(seq: int) -> str:
    branch, call = seq >> CALL_BITS, seq & ((1 << CALL_BITS) - 1)
    return f"{branch:x}-{call}" if branch else str(call)

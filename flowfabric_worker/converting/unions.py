"""Unions: how a value tells on the way back which member it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowfabric_worker.converting.kinds import Conversion, Mismatch, unexpected


class UnionOfMembers:
    """The conversion of a union.

    A member whose JSON type no other member shares travels as it is, and so do plain values. All others
    travel under the name of their member, `{"Card": {...}}`: a value always comes back as what it was.
    """

    def __init__(self, members: Mapping[str, Conversion]) -> None:
        count = Counter(kind for member in members.values() for kind in member.wire)
        bare = [m for m in members.values() if m.unchanged or all(count[kind] == 1 for kind in m.wire)]
        if len(bare) < len(members):
            bare = [member for member in bare if dict not in member.wire]
        self._label = " | ".join(member.label for member in members.values())
        self._members = list(members.values())
        self._bare = bare
        self._tagged = {tag: member for tag, member in members.items() if member not in bare}
        self._tags = {id(member): tag for tag, member in self._tagged.items()}
        self._plain = frozenset[type]().union(*(member.plain for member in bare))

    def conversion(self) -> Conversion:
        """This union as a conversion."""
        return Conversion(
            label=self._label,
            encode=self._encode,
            decode=self._decode,
            wire=frozenset({dict} if self._tagged else ()).union(*(member.wire for member in self._bare)),
            plain=self._plain,
        )

    def _encode(self, value: Any) -> Any:
        kind = value.__class__
        if kind in self._plain:
            return value
        # The member of the value's very class, or else the first that takes it.
        members = [member for member in self._members if member.kind is kind] or self._members
        return self._first(members, lambda member: self._encode_as(member, value), value)

    def _encode_as(self, member: Conversion, value: Any) -> Any:
        tag = self._tags.get(id(member))
        plain = member.encode(value)
        return plain if tag is None else {tag: plain}

    def _decode(self, plain: Any) -> Any:
        kind = plain.__class__
        if kind in self._plain:
            return plain
        if self._tagged and kind is dict and len(plain) == 1:
            ((tag, inner),) = plain.items()
            if tag in self._tagged:
                return self._tagged[tag].decode(inner)
        members = [member for member in self._bare if kind in member.wire] or self._bare
        return self._first(members, lambda member: member.decode(plain), plain)

    def _first(self, members: Sequence[Conversion], convert: Callable[[Conversion], Any], value: Any) -> Any:
        if len(members) == 1:
            return convert(members[0])
        for member in members:
            try:
                return convert(member)
            except Mismatch:
                continue
        raise unexpected(self._label, value)

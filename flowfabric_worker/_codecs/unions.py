"""The conversion of unions: an encoded value tells which member it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowfabric_worker._codecs.kinds import Conversion, Mismatch, unexpected


class UnionOfMembers:
    """The conversion of a union.

    A member whose JSON type no other member shares travels as it is, and so do values that are encoded as themselves.
    All others travel under the name of their member, `{"Card": {...}}`: a value always comes back as what it was.

    What does not stand under a name was written when the annotation was narrower, or by a producer that has no
    annotations: the first member that fits reads it. What stands under an unknown name was written before a class was
    renamed: the one member that fits reads it.
    """

    def __init__(self, members: Mapping[str, Conversion]) -> None:
        sharing = Counter(kind for member in members.values() for kind in member.wire)
        changing = Counter(kind for member in members.values() if not member.unchanged for kind in member.wire)
        bare = [
            member
            for member in members.values()
            if all(sharing[kind] == 1 or changing[kind] == 0 for kind in member.wire)
        ]
        if len(bare) < len(members):
            bare = [member for member in bare if dict not in member.wire]
        self._label = " | ".join(member.label for member in members.values())
        self._members = list(members.values())
        self._tagged = {tag: member for tag, member in members.items() if member not in bare}
        self._tags = {id(member): tag for tag, member in self._tagged.items()}
        self._wire = frozenset({dict} if self._tagged else ()).union(*(member.wire for member in bare))
        others = frozenset[type]().union(*(member.wire for member in self._tagged.values()))
        self._plain = frozenset[type]().union(*(member.plain for member in bare))
        # What a tagged member may have written before it had to be tagged is no plain value.
        self._plain_to_read = self._plain - others

    def conversion(self) -> Conversion:
        """Return the conversion of this union."""
        return Conversion(
            label=self._label,
            encode=self._encode,
            decode=self._decode,
            wire=self._wire,
            plain=self._plain & self._plain_to_read,
            parts=lambda: self._members,
            tags=frozenset(self._tagged),
        )

    def _encode(self, value: Any) -> Any:
        kind = value.__class__
        if kind in self._plain:
            return value
        # Try the member of exactly the value's class, or else all members in order.
        members = [member for member in self._members if member.kind is kind] or self._members
        return self._first(members, lambda member: self._encode_as(member, value), value)

    def _encode_as(self, member: Conversion, value: Any) -> Any:
        tag = self._tags.get(id(member))
        plain = member.encode(value)
        return plain if tag is None else {tag: plain}

    def _decode(self, plain: Any) -> Any:
        kind = plain.__class__
        if kind in self._plain_to_read:
            return plain
        if self._tagged and kind is dict and len(plain) == 1:
            ((tag, inner),) = plain.items()
            return self._decode_under(tag, inner, plain)
        return self._decode_bare(plain)

    def _decode_under(self, tag: str, inner: Any, plain: Any) -> Any:
        """Read an object with a single key, which is the name of a member or a key of a bare value."""
        member, knowing = self._tagged.get(tag), self._knowing(plain)
        try:
            if member is not None:
                return member.decode(inner)
            return self._first(knowing, lambda each: each.decode(plain), plain)
        except Mismatch:
            if member is None:
                return self._decode_renamed(tag, inner)
            # A former, narrower annotation may have written an object with a single key of this name.
            if not knowing:
                raise
            return self._decode_bare(plain)

    def _decode_renamed(self, tag: str, inner: Any) -> Any:
        fitting = []
        for member in self._knowing(inner):
            if id(member) in self._tags:
                try:
                    fitting.append((member.label, member.decode(inner)))
                except Mismatch:
                    continue
        if len(fitting) == 1:
            return fitting[0][1]
        labels = ", ".join(label for label, _ in fitting)
        what = f"may be any of {labels}" if fitting else "fits none of them"
        raise Mismatch(f"{tag!r:.40} is no member of {self._label}, and what it holds {what}")

    def _decode_bare(self, plain: Any) -> Any:
        members = self._knowing(plain) or [m for m in self._members if plain.__class__ in m.wire] or self._members
        return self._first(members, lambda member: member.decode(plain), plain)

    def _knowing(self, plain: Any) -> list[Conversion]:
        """Return the members that may read a value and would ignore nothing in it, without trying them."""
        kind = plain.__class__
        return [m for m in self._members if kind in m.wire and (m.knows is None or m.knows(plain))]

    def _first(self, members: Sequence[Conversion], convert: Callable[[Conversion], Any], value: Any) -> Any:
        if len(members) == 1:
            return convert(members[0])
        for member in members:
            try:
                return convert(member)
            except Mismatch:
                continue
        raise unexpected(self._label, value)

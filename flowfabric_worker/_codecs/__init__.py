"""How typed values become plain ones and come back, by their annotations.

Plain values are None, bool, int, float, str, and lists and dicts (with str keys) of plain values: what every codec
can write. A `Conversion` leads from the values of one annotation to plain ones and back. It checks as it goes: what
would not come back as it was sent is refused with a `Mismatch` that says where, and never bent into shape.
"""

from flowfabric_worker._codecs.annotations import UNRESOLVED
from flowfabric_worker._codecs.conversions import Conversions
from flowfabric_worker._codecs.kinds import ANYTHING as PLAIN
from flowfabric_worker._codecs.kinds import FAULTS, Conversion, Mismatch, brief, refusal_in, unsupported
from flowfabric_worker._codecs.models import REGISTERED, RegisteredClass

__all__ = [
    "FAULTS",
    "PLAIN",
    "REGISTERED",
    "UNRESOLVED",
    "Conversion",
    "Conversions",
    "Mismatch",
    "RegisteredClass",
    "brief",
    "refusal_in",
    "unsupported",
]

"""Converts typed values to plain ones and back, by their annotations.

Plain values are None, bool, int, float, str, and lists and dicts (with str keys) of plain values, which every codec
can write. A `Conversion` converts the values of one annotation in both directions. A value that would not come back
equal is refused with a `Mismatch` that says where the value is; no value is ever changed to fit.
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

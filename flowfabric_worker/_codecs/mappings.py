"""The conversions of dicts and similar classes."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, abc, defaultdict
from collections.abc import Callable
from typing import Any, Final

from flowfabric_worker._codecs.kinds import STR, Conversion, Mismatch, by_key, check_findable, not_exact, unexpected

MAPPINGS: Final[dict[type, type[dict[Any, Any]]]] = {
    dict: dict,
    abc.Mapping: dict,
    abc.MutableMapping: dict,
    OrderedDict: OrderedDict,
    Counter: Counter,
    defaultdict: defaultdict,
}


def mapping(label: str, kind: type[dict[Any, Any]], key: Conversion, value: Conversion) -> Conversion:
    """Return the conversion of a dict, an OrderedDict or a Counter.

    Keys that are not text, such as `5`, are encoded as the JSON of their plain form, such as `"5"`.
    """
    is_text = key.wire == STR
    plain_keys = key.plain if is_text else frozenset[type]()

    def encode_item(name: Any, item: Any) -> tuple[str, Any]:
        plain = key.encode(name)
        return plain if is_text else json.dumps(plain), value.encode(item)

    def decode_item(name: str, item: Any) -> tuple[Any, Any]:
        return key.decode(name if is_text else _read_key(name)), value.decode(item)

    def encode(items: Any) -> dict[Any, Any]:
        if type(items) is not kind:
            raise not_exact(label, items, kind)
        encoded = _converted(items, plain_keys, value.plain, encode_item)
        if not is_text:
            check_findable(items, key, map(_read_key, encoded))
        return encoded

    def decode(items: Any) -> Any:
        if type(items) is not dict:
            raise unexpected(f"an object for {label}", items)
        decoded = _converted(items, plain_keys, value.plain, decode_item)
        return decoded if kind is dict else kind(decoded)

    return Conversion(
        label=label, encode=encode, decode=decode, wire=frozenset({dict}), kind=kind, parts=lambda: (key, value)
    )


def _converted(
    items: Any,
    plain_keys: frozenset[type],
    plain_values: frozenset[type],
    convert_item: Callable[[Any, Any], tuple[Any, Any]],
) -> dict[Any, Any]:
    """Convert the items of a dict, unless all of its keys and values are plain."""
    if plain_keys.issuperset(map(type, items)) and plain_values.issuperset(map(type, items.values())):
        return items if type(items) is dict else dict(items)
    return by_key(items, convert_item)


_FACTORIES: Final = {kind.__name__: kind for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)}


def default_mapping(label: str, items: Conversion) -> Conversion:
    """Return the conversion of a defaultdict; its factory is encoded by name, and must be a built-in class.

    Args:
        label: the annotation.
        items: the conversion of a dict with the same items.
    """

    def encode(value: Any) -> dict[str, Any]:
        if type(value) is not defaultdict:
            raise not_exact(label, value, defaultdict)
        factory = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and _FACTORIES.get(name) is not factory:
            raise Mismatch(f"the factory of a defaultdict is not encoded unless it is one of {', '.join(_FACTORIES)}")
        return {"default_factory": name, "items": items.encode(dict(value))}

    def decode(plain: Any) -> Any:
        if type(plain) is not dict or not {"default_factory", "items"} <= plain.keys():
            raise unexpected(f"an object for {label}", plain)
        name = plain["default_factory"]
        if name is not None and name not in _FACTORIES:
            raise Mismatch(f"a defaultdict cannot have the factory {name!r:.40}")
        return defaultdict(None if name is None else _FACTORIES[name], items.decode(plain["items"]))

    return Conversion(
        label=label, encode=encode, decode=decode, wire=frozenset({dict}), kind=defaultdict, parts=lambda: (items,)
    )


def _read_key(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Mismatch("this key is not JSON") from None

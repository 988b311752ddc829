"""Plain values of a torch file as JSON and back, exactly: what JSON has no form for is spelled out or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_TUPLE, _ITEMS, _NUMBER = "__tuple__", "__items__", "__float__"


def to_plain_json(value: Any) -> Any:
    """A JSON value from which `from_plain_json` makes the same value again.

    Raises:
        TypeError: something that is neither a number, a string, None nor a container of these.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_NUMBER: repr(value)}
    if isinstance(value, tuple):
        return {_TUPLE: [to_plain_json(item) for item in value]}
    if isinstance(value, list):
        return [to_plain_json(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: to_plain_json(item) for key, item in value.items()}
        return {_ITEMS: [[to_plain_json(key), to_plain_json(item)] for key, item in value.items()]}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_plain_json(value: Any) -> Any:
    """Inverse of `to_plain_json`."""
    if isinstance(value, list):
        return [from_plain_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TUPLE}:
        return tuple(from_plain_json(item) for item in value[_TUPLE])
    if value.keys() == {_NUMBER}:
        return float(value[_NUMBER])
    if value.keys() == {_ITEMS}:
        return {from_plain_json(key): from_plain_json(item) for key, item in value[_ITEMS]}
    return {key: from_plain_json(item) for key, item in value.items()}

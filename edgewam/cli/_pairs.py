"""KEY=VALUE options of the commands that hand settings on to a robot or a door; what the values mean is known there."""

from __future__ import annotations

from collections.abc import Sequence

from edgewam.core.errors import EdgewamError


def pairs(option: str, given: Sequence[str] | None, example: str) -> dict[str, str]:
    """What an option that may be repeated was given; EdgewamError with an example when it is no KEY=VALUE."""
    found = {}
    for item in given or []:
        key, equals, value = item.partition("=")
        if not key.isidentifier() or not equals:
            raise EdgewamError(f"{option} takes KEY=VALUE, such as {example}; got '{item}'.")
        found[key] = value
    return found

"""Compare package versions with requirement specifiers such as ">=1.21,<1.24" or "==1.7.1.*", without any package.

A small part of PEP 440: release numbers only.  A local part (+cpu) and pre-release marks are cut off.
"""

from __future__ import annotations

import re
from importlib import metadata

from edgewam.core.errors import EdgewamError

_CLAUSE = re.compile(r"(~=|==|!=|<=|>=|<|>)\s*([0-9][0-9.]*)(\.\*)?$")


def release(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version meets every clause of a specifier; an empty one is always met.

    Raises:
        EdgewamError: a clause outside of what this module reads.
    """
    return all(_meets(release(version), clause.strip()) for clause in specifier.split(",") if clause.strip())


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _meets(have: tuple[int, ...], clause: str) -> bool:
    found = _CLAUSE.match(clause)
    if found is None:
        raise EdgewamError(f"Cannot read the version requirement '{clause}'. Write it like '>=1.2', '<2' or '==1.2.*'.")
    sign, number, star = found[1], release(found[2]), found[3]
    if star or sign == "~=":
        series = number if star else number[:-1]
        inside = have[: len(series)] == series and (bool(star) or _padded(have, number) >= _padded(number, have))
        return inside != (sign == "!=")
    a, b = _padded(have, number), _padded(number, have)
    return {"==": a == b, "!=": a != b, "<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}[sign]


def _padded(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return a + (0,) * (len(b) - len(a))

"""One resumable step: an artifact that is recognised by its manifest, and made again when it was made from something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import MANIFEST, read_manifest
from edgewam.core.errors import ArtifactError

# Fraction of the step that is done, seconds left or None, a word on what is going on.
Report = Callable[[float, float | None, str], None]


@dataclass(frozen=True)
class Wanted:
    """What the manifest of a finished step names: digests of its parents by role, and settings, nested ones in part."""

    parents: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """`run` writes the artifact `out` of a kind.  `wanted` may read what earlier steps wrote: ask only when they are done.

    usual_seconds: on two cores with `small`, to weigh the bar of the whole road by.
    """

    name: str
    out: Path
    kind: str
    wanted: Callable[[], Wanted]
    run: Callable[[Report], None]
    usual_seconds: float

    def why(self) -> str:
        """Why the step has to run, in words; "" when its result is there, whole, and made from what is there now."""
        if not (self.out / MANIFEST).exists():
            return "not done yet"
        try:
            manifest = read_manifest(self.out, kind=self.kind)
        except ArtifactError as error:
            return f"damaged: {error}"
        wanted = self.wanted()
        parents = [role for role, digest in wanted.parents.items() if manifest.parents.get(role) != digest]
        settings = differing(wanted.settings, manifest.config)
        return f"made with another {', '.join([*parents, *settings])}" if parents or settings else ""


def differing(wanted: Mapping[str, Any], found: Any, prefix: str = "") -> list[str]:
    """Names in `wanted` whose value is another one in `found`, or missing there; mappings are compared name by name."""
    names: list[str] = []
    for name, value in wanted.items():
        other = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(value, Mapping):
            names += differing(value, other, f"{prefix}{name}.")
        elif value != other:
            names.append(f"{prefix}{name}")
    return names

"""The optional parts of edgewam and what of them is installed here, from the metadata of the installed distribution."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from edgewam.profiles.versions import installed, satisfies

_REQUIREMENT = re.compile(
    r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?(?:;\s*extra\s*==\s*['\"]([^'\"]+)['\"])?$"
)
_INDEX = {"tensorrt": "--extra-index-url https://pypi.nvidia.com "}  # PyPI has only stubs of it
NOTES = {
    "tensorrt": "its wheels come from NVIDIA's own package index, which must be reachable",
    "sim": "the simulator's models come with: pip install --no-deps gym-aloha==0.1.5",
}


@dataclass(frozen=True)
class Requirement:
    """One package that an extra ("" = always) asks for, with the version found here (None: not installed)."""

    package: str
    specifier: str
    extra: str
    found: str | None

    @property
    def is_met(self) -> bool:
        """Installed, in a version that the specifier allows."""
        return self.found is not None and satisfies(self.found, self.specifier)


def requirements(lines: Iterable[str] | None = None) -> list[Requirement]:
    """What edgewam asks for, from its metadata (or from given lines of it).

    Lines with other conditions than an extra are left out.
    """
    if lines is None:
        lines = metadata.requires("edgewam") or ()
    found = [match for line in lines if (match := _REQUIREMENT.match(line.strip()))]
    return [Requirement(m[1], m[2].strip(), m[3] or "", installed(m[1])) for m in found]


def command(extra: str) -> str:
    """The command that installs an extra, or what edgewam always needs."""
    return f"pip install {_INDEX.get(extra, '')}'edgewam[{extra}]'" if extra else "pip install edgewam"

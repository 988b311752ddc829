"""What the manifest says about an engine file, and the refusal of files that were built for another card or library version.

A record, as the build half writes it, has `file`, `library` (module that built it), `version` (its exact version), `target` (name
of a device file) and `sm` (the compute capability that it was built for).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError
from edgewam.profiles.device import fitting_device
from edgewam.runtime.cuda_api import CudaDevice
from edgewam.runtime.tensorrt_api import LIBRARIES

FIELDS = ("file", "library", "version", "target", "sm")
_PACKAGES = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt-cu13"}


def family_of(record: Mapping[str, Any], path: Path) -> str:
    """The family of the library that opens the file.

    Raises:
        ArtifactError: a record that another version of edgewam wrote.
    """
    families = {library: family for family, (library, _) in LIBRARIES.items()}
    missing = [name for name in FIELDS if name not in record]
    if missing or record["library"] not in families:
        problem = f"lacks {', '.join(missing)}" if missing else f"names the library '{record['library']}'"
        raise ArtifactError(
            f"The manifest {problem} where it describes '{path}': another version of edgewam wrote it. Compile the bundle again."
        )
    return families[record["library"]]


def check_library(record: Mapping[str, Any], path: Path, version: str, device: CudaDevice) -> None:
    """Card and library must be those that the engine was built for.

    Raises:
        ArtifactError: names both sides and the command that builds for what is here.
    """
    if device.sm != record["sm"]:
        raise ArtifactError(
            f"'{path}' was built for {record['target']} ({record['sm']}), and this GPU is {device.name} ({device.sm}). "
            f"Build it again: {rebuild(device)}."
        )
    if version != record["version"]:
        library = record["library"]
        raise ArtifactError(
            f"'{path}' was built with {library} {record['version']}, and {version} is installed. An engine opens in no other "
            f"version: pip install '{_PACKAGES[library]}=={record['version']}', or build it again: {rebuild(device)}."
        )


def rebuild(device: CudaDevice) -> str:
    """The command that builds a bundle for this card."""
    fitting = fitting_device(device.name, device.sm)
    return f"edgewam compile POLICY BUNDLE --backend tensorrt --target {fitting.name if fitting else 'DEVICE'}"

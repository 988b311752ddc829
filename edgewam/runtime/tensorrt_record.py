"""What the manifest says about an engine file, and the refusal of files that were built for another card or library version.

A record has `file`, `family` ("rtx" or "full"), `version` (exact, of the library that built it), `target` (name of a device
file) and `sm` (compute capabilities that it was built for).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError
from edgewam.profiles.device import device_names, find_device, load_device
from edgewam.runtime import tensorrt_api
from edgewam.runtime.cuda_api import CudaDevice

FIELDS = ("file", "family", "version", "target", "sm")
_PACKAGES = {"rtx": "tensorrt-rtx", "full": "tensorrt-cu13"}


def check_record(record: Mapping[str, Any], path: Path) -> str:
    """The family of the library that opens the file.

    Raises:
        ArtifactError: a record that another version of edgewam wrote.
    """
    missing = [name for name in FIELDS if name not in record]
    if missing or record["family"] not in tensorrt_api.LIBRARIES:
        raise ArtifactError(
            f"The manifest does not say what '{path}' was built with ({', '.join(missing) or record['family']}): another version "
            "of edgewam wrote it. Compile the bundle again."
        )
    return str(record["family"])


def check_library(record: Mapping[str, Any], path: Path, version: str, device: CudaDevice) -> None:
    """Card and library must be those that the engine was built for.

    Raises:
        ArtifactError: names both sides and the command that builds for what is here.
    """
    built_for = [record["sm"]] if isinstance(record["sm"], str) else list(record["sm"])
    if device.sm not in built_for:
        raise ArtifactError(
            f"'{path}' was built for {record['target']} ({', '.join(built_for)}), and this GPU is {device.name} ({device.sm}). "
            f"Build it again: {rebuild(device)}."
        )
    if version != record["version"]:
        library, package = tensorrt_api.LIBRARIES[record["family"]][0], _PACKAGES[record["family"]]
        raise ArtifactError(
            f"'{path}' was built with {library} {record['version']}, and {version} is installed. An engine opens in no other "
            f"version: pip install '{package}=={record['version']}', or build it again: {rebuild(device)}."
        )


def rebuild(device: CudaDevice) -> str:
    """The command that builds a bundle for this card."""
    known = find_device(device.name)
    fitting = [known.name] if known else [name for name in device_names() if load_device(name).sm == device.sm]
    return f"edgewam compile POLICY BUNDLE --backend tensorrt --target {fitting[0] if fitting else 'DEVICE'}"

"""Devices that TensorRT engines are built for: which library builds them, where, and which formats they compute in.

A target is a device file (`profiles/devices/<name>.toml`); its compute capability decides, so a new file is a new target.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from edgewam.core.errors import MissingExtraError, PluginError
from edgewam.profiles.device import Device, device_names, formats_of, load_device
from edgewam.runtime.cuda_api import load_cudart, read_device
from edgewam.runtime.tensorrt_api import LIBRARIES, family_for

_ALTERNATIVE = {"fp8": "int8", "fp4": "fp8, or int8 on a card without FP8"}


@dataclass(frozen=True)
class Target:
    """family: "rtx" is built ahead of time on any machine, "full" only on the device itself.  formats: besides half types."""

    name: str
    sm: str
    family: str
    formats: tuple[str, ...]

    @property
    def library(self) -> str:
        """Module that builds and runs its engines."""
        return LIBRARIES[self.family][0]

    def require_format(self, name: str, where: str) -> None:
        """Raise PluginError for a format that the device has no matrix unit for; `where` names what asked for it."""
        if name in self.formats:
            return
        raise PluginError(
            f"{where} is in {name}, for which '{self.name}' ({self.sm}) has no matrix unit. "
            f"Give it {_ALTERNATIVE.get(name, 'none')}; this target computes in {', '.join(self.formats)} and half types."
        )

    def require_here(self) -> None:
        """Refuse a target whose engines cannot be built on this machine.

        Raises:
            MissingExtraError: its library is not installed; says how to get it.
            PluginError: full TensorRT builds for the GPU it runs on, and that is another one.
        """
        if importlib.util.find_spec(self.library) is None:
            where = " Its engines are built on the device itself, by the library that runs them." if self.family == "full" else ""
            raise MissingExtraError(
                f"The target '{self.name}' ({self.sm}) needs the package '{self.library}', which is not installed.{where} "
                f"{LIBRARIES[self.family][1]}."
            )
        if self.family == "full" and (here := read_device(load_cudart(), 0)).sm != self.sm:
            raise PluginError(
                f"Full TensorRT builds for the GPU that it runs on, which is '{here.name}' ({here.sm}) and not '{self.name}' "
                f"({self.sm}). Run the same command on the device itself."
            )


def as_target(device: Device) -> Target:
    """The target that a device with CUDA is."""
    assert device.sm is not None, f"{device.name} has no CUDA"
    formats = tuple(name for name in ("int8", "fp8", "fp4") if name in formats_of(device.sm))
    return Target(device.name, device.sm, family_for(device.sm), formats)


def targets() -> dict[str, Target]:
    """Every device with a file and CUDA, by name."""
    return {device.name: as_target(device) for device in map(load_device, device_names()) if device.sm}


def find_target(name: str | None) -> Target:
    """One target.

    Raises:
        PluginError: none was named, or one that has no device file; lists those there are.
    """
    known = targets()
    if name in known:
        return known[name]
    asked = "The backend 'tensorrt' builds for one device: name it." if name is None else f"Unknown target '{name}'."
    anywhere = ", ".join(t.name for t in known.values() if t.family == "rtx")
    itself = ", ".join(t.name for t in known.values() if t.family == "full")
    raise PluginError(f"{asked} Built on any machine: --target {anywhere}. Built on the device itself: {itself}.")

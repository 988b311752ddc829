"""Facts of a device, read from `devices/<name>.toml`: bandwidth, matrix rates, formats, each number with its source.

A file may hold, beside the datasheet, what was measured on such a card (`[measured.<label>]`); `device.measured(label)`
is the same device with those rates in place of the datasheet's.  A new device is a new file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError

DEVICES = Path(__file__).parent / "devices"
FORMATS = ("fp16", "bf16", "fp8", "int8", "fp4")  # names a rate can have; int8 in TOP/s, the others in TFLOP/s


@dataclass(frozen=True)
class Quantity:
    """A number and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Device:
    """One kind of device.

    bandwidth_gb_s: device memory, 10^9 bytes per second.  peak_tflops: format -> dense rate with fp32 accumulation,
    10^12 operations per second; a format that is missing has no matrix unit and is computed in bf16 (fp16 if there is none).
    sm: compute capability, such as "sm_120".  power_modes: names, best first; empty where the card has one.
    gpu_names: the names nvidia-smi gives it.
    """

    name: str
    title: str
    sm: str
    memory_gb: Quantity
    bandwidth_gb_s: Quantity
    peak_tflops: Mapping[str, Quantity]
    power_modes: tuple[str, ...] = ()
    gpu_names: tuple[str, ...] = ()
    notes: str = ""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def measured(self, label: str) -> Device:
        """The device with the rates measured under `label` in place of the datasheet's; memory and formats stay.

        Raises:
            EdgewamError: no such label; the message lists those there are.
        """
        if label not in self.variants:
            known = ", ".join(self.variants) or "none"
            raise EdgewamError(f"Device '{self.name}' has no measurement '{label}'. Available: {known}.")
        data = self.variants[label]
        where = f"{self.name}.measured.{label}"
        peaks = {**self.peak_tflops, **_quantities(data.get("peak_tflops", {}), where)}
        bandwidth = _quantity(data["bandwidth_gb_s"], where) if "bandwidth_gb_s" in data else self.bandwidth_gb_s
        return replace(self, name=f"{self.name}:{label}", bandwidth_gb_s=bandwidth, peak_tflops=peaks, variants={})

    def with_rates(self, label: str, bandwidth_gb_s: float, peak_tflops: Mapping[str, float]) -> Device:
        """The device with rates measured in this very run (DESIGN section 7: the floor of a figure uses those)."""
        source = f"measured in this run ({label})"
        peaks = {name: Quantity(value, source) for name, value in peak_tflops.items()}
        return replace(self, name=f"{self.name}:{label}", bandwidth_gb_s=Quantity(bandwidth_gb_s, source), peak_tflops=peaks)

    def compute_format(self, wanted: str) -> str:
        """The format in which `wanted` products really run here: itself, else bf16, else fp16 (weight-only)."""
        return next(f for f in (wanted, "bf16", "fp16") if f in self.peak_tflops)


def device_names() -> list[str]:
    """Names of the devices with a file."""
    return sorted(path.stem for path in DEVICES.glob("*.toml"))


def load_device(name: str) -> Device:
    """Read one device; `name:label` gives its measured variant.

    Raises:
        EdgewamError: unknown name (lists those there are) or a file that does not fit the schema (says what is wrong).
    """
    base, _, label = name.partition(":")
    path = DEVICES / f"{base}.toml"
    if base not in device_names():
        raise EdgewamError(f"Unknown device '{base}'. Available: {', '.join(device_names())}. Add {path} for a new one.")
    device = parse_device(base, path.read_text(encoding="utf-8"))
    return device.measured(label) if label else device


def find_device(gpu_name: str) -> Device | None:
    """The device whose file lists this nvidia-smi name exactly, or None: a near match would give a wrong floor."""
    return next((d for d in map(load_device, device_names()) if gpu_name in d.gpu_names), None)


def parse_device(name: str, text: str) -> Device:
    """Read a device file's text; EdgewamError names the key that is missing, unknown or without a source."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EdgewamError(f"Device file '{name}.toml' is not TOML: {error}.") from error
    known = {"title", "sm", "memory_gb", "bandwidth_gb_s", "peak_tflops", "power_modes", "gpu_names", "notes", "measured"}
    missing = {"title", "sm", "memory_gb", "bandwidth_gb_s", "peak_tflops"} - set(data)
    if missing or set(data) - known:
        problem = f"lacks {sorted(missing)}" if missing else f"has unknown keys {sorted(set(data) - known)}"
        raise EdgewamError(f"Device file '{name}.toml' {problem}. Keys: {', '.join(sorted(known))}.")
    if not re.fullmatch(r"sm_\d{2,3}", data["sm"]):
        raise EdgewamError(f"Device file '{name}.toml': sm must look like sm_120, got '{data['sm']}'.")
    peaks = _quantities(data["peak_tflops"], name)
    if not {"bf16", "fp16"} & set(peaks):
        raise EdgewamError(f"Device file '{name}.toml' needs a bf16 or fp16 rate.")
    device = Device(
        name,
        data["title"],
        data["sm"],
        _quantity(data["memory_gb"], name),
        _quantity(data["bandwidth_gb_s"], name),
        peaks,
        tuple(data.get("power_modes", ())),
        tuple(data.get("gpu_names", ())),
        data.get("notes", ""),
        data.get("measured", {}),
    )
    for label in device.variants:
        device.measured(label)  # a bad measured table must fail when the file is read, not when it is used
    return device


def _quantities(data: Any, where: str) -> dict[str, Quantity]:
    if unknown := set(data) - set(FORMATS):
        raise EdgewamError(f"Device '{where}' has rates of unknown formats {sorted(unknown)}. Known: {', '.join(FORMATS)}.")
    return {name: _quantity(entry, where) for name, entry in data.items()}


def _quantity(entry: Any, where: str) -> Quantity:
    if not isinstance(entry, dict) or set(entry) != {"value", "source"} or not str(entry["source"]).strip():
        raise EdgewamError(f"Device '{where}': every number is {{ value = ..., source = '...' }}, got {entry!r}.")
    value = float(entry["value"])
    if not value > 0:
        raise EdgewamError(f"Device '{where}': {value} is not a positive number.")
    return Quantity(value, str(entry["source"]))

"""Facts of a device, read from `devices/<name>.toml`: bandwidth, matrix rates, formats, each number with its source.

A file may hold, beside the datasheet, what was measured on such a card (`[measured.<label>]`); `device.measured(label)`
is the same device with those rates in place of the datasheet's.  A new device is a new file; one without `sm` has no CUDA.
Which format exists from which compute capability on is told here (`FIRST_SM`) and nowhere else.
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
FORMATS = ("fp32", "fp16", "bf16", "fp8", "int8", "fp4")  # names a rate can have; int8 in TOP/s, the others in TFLOP/s
# First compute capability with matrix units for a format; what is computed from its codes in 16 bits (weight-only) needs none.
FIRST_SM = {"fp32": 0, "fp16": 70, "int8": 72, "bf16": 80, "fp8": 89, "fp4": 100}
WITHOUT_CUDA = ("fp32", "int8")  # what every processor multiplies
_NEXT_BEST = ("fp4", "fp8", "int8", "bf16", "fp16", "fp32")  # what to take instead: the next one that exists


def formats_of(sm: str | None) -> tuple[str, ...]:
    """Formats that a compute capability such as "sm_87" multiplies; those of a processor when it is None."""
    if sm is None:
        return WITHOUT_CUDA
    return tuple(name for name, first in FIRST_SM.items() if int(sm.removeprefix("sm_")) >= first)


def require_format(name: str, sm: str | None, title: str = "") -> None:
    """Raise EdgewamError, naming what to use instead, unless products in this format exist there.

    Args:
        name: one of FORMATS.
        sm: compute capability, None for a processor.
        title: the device in words, for the message.
    """
    if name not in FORMATS:
        raise EdgewamError(f"Unknown format '{name}'. Known: {', '.join(FORMATS)}.")
    available = formats_of(sm)
    if name in available:
        return
    instead = next(other for other in _NEXT_BEST[_NEXT_BEST.index(name) :] if other in available)
    what = f"{title} is {sm}" if title and sm else f"this is {sm}" if sm else f"{title or 'a processor'} has no CUDA"
    raise EdgewamError(f"{name.upper()} needs sm_{FIRST_SM[name]}; {what}: use {instead}.")


@dataclass(frozen=True)
class Quantity:
    """A number and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Device:
    """One kind of device.

    bandwidth_gb_s: device memory, 10^9 bytes per second.  peak_tflops: format -> dense rate with fp32 accumulation,
    10^12 operations per second; a format that is missing has no matrix unit and is computed in bf16 (else fp16, fp32).
    sm: compute capability, such as "sm_120"; None without CUDA.  cache_mb: last-level cache, 10^6 bytes, None where no file
    says: what fits is not read from memory again.  power_modes: names, best first; empty where the card has one.
    gpu_names: the names nvidia-smi gives it.
    """

    name: str
    title: str
    sm: str | None
    memory_gb: Quantity
    bandwidth_gb_s: Quantity
    peak_tflops: Mapping[str, Quantity]
    power_modes: tuple[str, ...] = ()
    gpu_names: tuple[str, ...] = ()
    notes: str = ""
    cache_mb: Quantity | None = None
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
        cache = _quantity(data["cache_mb"], where) if "cache_mb" in data else self.cache_mb
        return replace(
            self, name=f"{self.name}:{label}", bandwidth_gb_s=bandwidth, peak_tflops=peaks, cache_mb=cache, variants={}
        )

    def with_rates(self, label: str, bandwidth_gb_s: float, peak_tflops: Mapping[str, float]) -> Device:
        """The device with rates measured in this very run (DESIGN section 7: the floor of a figure uses those)."""
        source = f"measured in this run ({label})"
        peaks = {name: Quantity(value, source) for name, value in peak_tflops.items()}
        return replace(self, name=f"{self.name}:{label}", bandwidth_gb_s=Quantity(bandwidth_gb_s, source), peak_tflops=peaks)

    def compute_format(self, wanted: str) -> str:
        """The format in which `wanted` products really run here: itself, else bf16, fp16, fp32 (weight-only)."""
        return next(f for f in (wanted, "bf16", "fp16", "fp32") if f in self.peak_tflops)

    @property
    def plain_format(self) -> str:
        """Format of products that are not quantised: bf16 where the device has it, else fp16, else fp32."""
        return self.compute_format("bf16")

    def require_format(self, name: str) -> None:
        """Raise EdgewamError, naming what to use instead, unless the device multiplies in this format.

        A quantised format needs a known rate too: `compute_format` would count it as a slower one, which is no floor.
        """
        require_format(name, self.sm, self.title)
        if name in _NEXT_BEST[:3] and name not in self.peak_tflops:
            known = ", ".join(self.peak_tflops)
            raise EdgewamError(
                f"No rate of {name} products is known for {self.title}, only of {known}. Add it, or name another device."
            )


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


def fitting_device(gpu_name: str, sm: str) -> Device | None:
    """The device of that name, else the first of the same architecture, for which the same engines are built."""
    return find_device(gpu_name) or next((d for d in map(load_device, device_names()) if d.sm == sm), None)


def find_device(gpu_name: str) -> Device | None:
    """The device whose file lists this nvidia-smi name exactly, or None: a near match would give a wrong floor."""
    return next((d for d in map(load_device, device_names()) if gpu_name in d.gpu_names), None)


def parse_device(name: str, text: str) -> Device:
    """Read a device file's text; EdgewamError names the key that is missing, unknown or without a source."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EdgewamError(f"Device file '{name}.toml' is not TOML: {error}.") from error
    known = {"title", "sm", "memory_gb", "bandwidth_gb_s", "peak_tflops", "cache_mb", "power_modes", "gpu_names", "notes"}
    known |= {"measured"}
    missing = {"title", "memory_gb", "bandwidth_gb_s", "peak_tflops"} - set(data)
    if missing or set(data) - known:
        problem = f"lacks {sorted(missing)}" if missing else f"has unknown keys {sorted(set(data) - known)}"
        raise EdgewamError(f"Device file '{name}.toml' {problem}. Keys: {', '.join(sorted(known))}.")
    sm = data.get("sm")
    if sm is not None and not re.fullmatch(r"sm_\d{2,3}", str(sm)):
        raise EdgewamError(f"Device file '{name}.toml': sm must look like sm_120 (leave it out without CUDA), got '{sm}'.")
    peaks = _quantities(data["peak_tflops"], name)
    if not {"bf16", "fp16", "fp32"} & set(peaks):
        raise EdgewamError(f"Device file '{name}.toml' needs a bf16, fp16 or fp32 rate.")
    for rate in peaks:
        require_format(rate, sm, f"Device file '{name}.toml'")
    device = Device(
        name,
        data["title"],
        sm,
        _quantity(data["memory_gb"], name),
        _quantity(data["bandwidth_gb_s"], name),
        peaks,
        tuple(data.get("power_modes", ())),
        tuple(data.get("gpu_names", ())),
        data.get("notes", ""),
        _quantity(data["cache_mb"], name) if "cache_mb" in data else None,
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

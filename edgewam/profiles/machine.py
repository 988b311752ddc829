"""What this machine is, read without torch: processor, clocks, memory, GPU, driver, load.  Nothing is ever changed.

What cannot be read is left out or empty, never guessed.  The GPU is asked through nvidia-smi, the Jetson through nvpmodel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import hardware

_GPU_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "memory.total": "memory",
    "clocks.sm": "sm_clock",
    "clocks.mem": "memory_clock",
    "clocks.max.sm": "sm_clock_max",
    "power.limit": "power_limit",
    "temperature.gpu": "temperature_c",
    "persistence_mode": "persistence",
}


@dataclass(frozen=True)
class Machine:
    """Facts at one moment.  `gpu` is empty where there is none; clocks move, so read them during or right after the work."""

    cpu: str
    num_cpus: int  # this process may use
    cpu_mhz: float | None
    governor: str | None
    memory_gb: float | None
    load_1min: float | None
    system: str
    gpu: dict[str, str] = field(default_factory=dict)
    power_mode: str | None = None

    @property
    def driver(self) -> str:
        """NVIDIA driver version, or the operating system for work on the processor."""
        return self.gpu.get("driver", self.system)

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)


def read_machine() -> Machine:
    """Read the facts now; takes up to a second where nvidia-smi is slow."""
    host = hardware()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Machine(
        cpu=str(host["cpu"]),
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else int(host["num_cpus"] or 1),
        cpu_mhz=_cpu_mhz(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        memory_gb=_memory_gb(),
        load_1min=load,
        system=str(host["system"]),
        gpu=read_gpu(),
        power_mode=_power_mode(),
    )


def read_gpu() -> dict[str, str]:
    """Name, driver, clocks and limits of the first GPU as nvidia-smi prints them (with units); empty without one."""
    line = _run("nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader", "--id=0")
    values = [value.strip() for value in (line or "").split(",")]
    if len(values) != len(_GPU_FIELDS):
        return {}
    return {name: value for name, value in zip(_GPU_FIELDS.values(), values, strict=True) if not value.startswith("[")}


def _power_mode() -> str | None:
    text = _run("nvpmodel", "-q")
    lines = [line.partition(":")[2].strip() for line in (text or "").splitlines() if line.startswith("NV Power Mode")]
    return lines[0] if lines else None


def _cpu_mhz() -> float | None:
    khz = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if khz:
        return float(khz) / 1e3
    text = _read("/proc/cpuinfo") or ""
    clocks = [float(line.split(":", 1)[1]) for line in text.splitlines() if line.startswith("cpu MHz")]
    return max(clocks) if clocks else None


def _memory_gb() -> float | None:
    text = _read("/proc/meminfo") or ""
    sizes = [int(line.split()[1]) * 1024 / 1e9 for line in text.splitlines() if line.startswith("MemTotal:")]
    return round(sizes[0], 1) if sizes else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _run(program: str, *arguments: str) -> str | None:
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

"""What this machine is, read without torch: processor, clocks, memory, GPU, driver, load.  Nothing is ever changed.

What cannot be read is left out or empty, never guessed.  The GPU is asked through nvidia-smi, the Jetson through nvpmodel.
"""

from __future__ import annotations

import os
import re
import resource
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


@dataclass(frozen=True)
class Host:
    """What a robot's computer offers beside its clocks.  None or empty: this system does not say.

    instruction_sets: those of INSTRUCTION_SETS that the processor has.  disk_free_gb: where `directory` is.
    shared_memory_gb: size of /dev/shm.  container: "docker", "podman", ... or None.  kernel_real_time: a PREEMPT_RT kernel.
    rt_runtime: part of the time that real-time tasks may run, 1.0 without a limit.  *_limit: of this user's processes,
    rtprio 0..99, memlock in bytes, -1 without a limit.
    """

    physical_cores: int | None
    instruction_sets: tuple[str, ...]
    memory_available_gb: float | None
    disk_free_gb: float
    shared_memory_gb: float | None
    container: str | None
    kernel_real_time: bool
    rt_runtime: float | None
    rtprio_limit: int
    memlock_limit: int
    is_root: bool
    nvidia_module: str | None  # version of the loaded kernel module, read without the library
    nvidia_models: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)


# what decides the speed of float32 and int8 products: x86 names as /proc/cpuinfo has them, then those of ARM
INSTRUCTION_SETS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def read_host(directory: Path | str = ".") -> Host:
    """Read what does not move, from /proc, /sys and this process's limits; nothing is started and no device is opened."""
    cpuinfo = _read("/proc/cpuinfo") or ""
    runtime, period = _read("/proc/sys/kernel/sched_rt_runtime_us"), _read("/proc/sys/kernel/sched_rt_period_us")
    share = None if runtime is None or period is None else 1.0 if int(runtime) < 0 else int(runtime) / int(period)
    module, models = read_nvidia()
    return Host(
        physical_cores=_physical_cores(cpuinfo),
        instruction_sets=instruction_sets(cpuinfo),
        memory_available_gb=_memory_gb("MemAvailable"),
        disk_free_gb=round(shutil.disk_usage(directory).free / 1e9, 1),
        shared_memory_gb=round(shutil.disk_usage("/dev/shm").total / 1e9, 3) if os.path.ismount("/dev/shm") else None,
        container=_container(),
        kernel_real_time=_read("/sys/kernel/realtime") == "1",
        rt_runtime=share,
        rtprio_limit=resource.getrlimit(resource.RLIMIT_RTPRIO)[0],
        memlock_limit=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        is_root=os.geteuid() == 0,
        nvidia_module=module,
        nvidia_models=models,
    )


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Those of INSTRUCTION_SETS that the first processor of a /proc/cpuinfo text has."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = next((set(value.split()) for name, _, value in lines if name.strip() in ("flags", "Features")), set())
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def read_nvidia(root: str = "/proc/driver/nvidia") -> tuple[str | None, tuple[str, ...]]:
    """(version of the loaded kernel module, models of its GPUs) as the kernel tells; (None, ()) without the module."""
    text = _read(f"{root}/version") or ""
    numbers = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    files = sorted(Path(root).glob("gpus/*/information"))
    lines = [line.partition(":") for file in files for line in (_read(str(file)) or "").splitlines()]
    return numbers[1] if numbers else None, tuple(value.strip() for name, _, value in lines if name.strip() == "Model")


def _physical_cores(cpuinfo: str) -> int | None:
    cores = set()
    for block in cpuinfo.split("\n\n"):
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}
        if "core id" in fields:
            cores.add((fields.get("physical id"), fields["core id"]))
    return len(cores) or None


def _container() -> str | None:
    if name := _read("/run/systemd/container"):
        return name
    for path, name in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if Path(path).exists():
            return name
    return os.environ.get("container")  # noqa: SIM112  lower case is what container managers set


def read_machine(timeout_s: float = 20.0) -> Machine:
    """Read the facts now; takes up to a second where nvidia-smi is slow, and is given up after `timeout_s`."""
    host = hardware()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Machine(
        cpu=str(host["cpu"]),
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else int(host["num_cpus"] or 1),
        cpu_mhz=_cpu_mhz(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        memory_gb=_memory_gb("MemTotal"),
        load_1min=load,
        system=str(host["system"]),
        gpu=read_gpu(timeout_s),
        power_mode=_power_mode(timeout_s),
    )


def read_gpu(timeout_s: float = 20.0) -> dict[str, str]:
    """Name, driver, clocks and limits of the first GPU that this process may use, as nvidia-smi prints them (with units).

    Empty without one.  nvidia-smi itself does not look at CUDA_VISIBLE_DEVICES.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    query = f"--query-gpu={','.join(_GPU_FIELDS)}"
    line = _run("nvidia-smi", query, "--format=csv,noheader", f"--id={first}", timeout_s=timeout_s)
    values = [value.strip() for value in (line or "").split(",")]
    if len(values) != len(_GPU_FIELDS):
        return {}
    return {name: value for name, value in zip(_GPU_FIELDS.values(), values, strict=True) if not value.startswith("[")}


def _power_mode(timeout_s: float) -> str | None:
    text = _run("nvpmodel", "-q", timeout_s=timeout_s)
    lines = [line.partition(":")[2].strip() for line in (text or "").splitlines() if line.startswith("NV Power Mode")]
    return lines[0] if lines else None


def _cpu_mhz() -> float | None:
    khz = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if khz:
        return float(khz) / 1e3
    text = _read("/proc/cpuinfo") or ""
    clocks = [float(line.split(":", 1)[1]) for line in text.splitlines() if line.startswith("cpu MHz")]
    return max(clocks) if clocks else None


def _memory_gb(name: str) -> float | None:
    text = _read("/proc/meminfo") or ""
    sizes = [int(line.split()[1]) * 1024 / 1e9 for line in text.splitlines() if line.startswith(f"{name}:")]
    return round(sizes[0], 1) if sizes else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _run(program: str, *arguments: str, timeout_s: float) -> str | None:
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

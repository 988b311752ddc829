"""What stands in the way on this machine: findings from facts and trials, each with the one command that mends it.

The main job is to run a bundle.  A finding that prevents it `blocks`; every other one only costs something and says what.
Nothing is read or tried here; `edgewam doctor` collects, this judges.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgewam.profiles.extras import Requirement, command
from edgewam.profiles.known_bad import KnownBad
from edgewam.profiles.machine import Host, Machine
from edgewam.profiles.probe import Answer

LEAST_PYTHON = (3, 11)
LEAST_MEMORY_GB = 2.0  # a run is five processes of about 0.1-0.4 GB and the pictures
LEAST_DISK_GB = 2.0  # a dataset of 400 demonstrations, its latents and the checkpoints of one training
LEAST_SHARED_GB = 0.25  # Docker's 64 MB ends PyTorch's data workers; the bridge itself uses anonymous memory
SLOW_GOVERNORS = ("powersave", "ondemand", "conservative", "schedutil")
APT_EGL = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"
_COMMAND = re.compile(r"((?:pip|apt-get) install (?:-\S+ (?:https://\S+ )?)*'?[^;()']+'?|edgewam [a-z]+ [^;()]+)")


@dataclass(frozen=True)
class Problem:
    """what is the matter, why it is one, and the command that mends it ("" where only other hardware would)."""

    what: str
    why: str
    mend: str
    blocks: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)


def command_in(text: str, default: str) -> str:
    """The installing command that a message names, or the default."""
    found = _COMMAND.search(text)
    return found[1].strip().rstrip(".") if found else default


def judge_python(version: tuple[int, ...] = sys.version_info[:3]) -> list[Problem]:
    """The interpreter itself."""
    if version >= LEAST_PYTHON:
        return []
    have = ".".join(map(str, version))
    return [Problem(f"Python {have}", "edgewam needs 3.11 or newer", "apt-get install -y python3.11-venv", blocks=True)]


def judge_packages(needed: Iterable[Requirement]) -> list[Problem]:
    """What edgewam always needs must be here; what is installed of an extra must have a version that was tried."""
    problems = []
    for item in needed:
        if item.found is None and not item.extra:
            problems.append(Problem(f"{item.package} is not installed", "every command needs it", command(""), blocks=True))
        if item.found is not None and not item.is_met:
            why = f"edgewam{f'[{item.extra}]' if item.extra else ''} needs {item.specifier}"
            mend = f"pip install '{item.package}{item.specifier}'"
            problems.append(Problem(f"{item.package} {item.found}", why, mend, blocks=not item.extra))
    return problems


def judge_known_bad(rows: Iterable[tuple[KnownBad, str]]) -> list[Problem]:
    """Versions that others had trouble with."""
    return [Problem(f"{row.package} {version}", f"{row.what} [{row.source}]", row.mend) for row, version in rows]


def judge_host(machine: Machine, host: Host, in_use: Callable[[str], bool]) -> list[Problem]:
    """Memory, disk, clocks and the GPU's driver.  `in_use(package)`: whether it is installed."""
    found = []
    if host.memory_available_gb is not None and host.memory_available_gb < LEAST_MEMORY_GB:
        why = f"a real-time run needs about {LEAST_MEMORY_GB:g} GB"
        found.append(Problem(f"{host.memory_available_gb:g} GB of memory free", why, "ps aux --sort=-rss | head"))
    if host.disk_free_gb < LEAST_DISK_GB:
        why = f"collecting and training need about {LEAST_DISK_GB:g} GB"
        found.append(Problem(f"{host.disk_free_gb:g} GB of disk free here", why, "du -xh --max-depth=2 . | sort -h | tail"))
    if host.shared_memory_gb is not None and host.shared_memory_gb < LEAST_SHARED_GB and in_use("torch"):
        mend = "docker run --shm-size=1g ..." if host.container else "mount -o remount,size=1G /dev/shm"
        found.append(Problem(f"/dev/shm holds {host.shared_memory_gb * 1e3:.0f} MB", "PyTorch's data workers need more", mend))
    if machine.governor in SLOW_GOVERNORS:
        why = "the clock falls between chunks, so the first milliseconds of each are slow"
        found.append(Problem(f"CPU governor {machine.governor}", why, "sudo cpupower frequency-set -g performance"))
    if host.nvidia_models and not machine.gpu:
        why = f"the kernel knows {', '.join(host.nvidia_models)} (driver {host.nvidia_module}), but nvidia-smi does not answer"
        mend = "docker run --gpus all ..." if host.container else _nvidia_tools(host.nvidia_module)
        found.append(Problem("GPU out of reach", why, mend))
    if not {"avx2", "asimd"} & set(host.instruction_sets):
        found.append(Problem("processor without AVX2 or NEON", "float32 engines run several times slower", ""))
    return found


def judge_engines(gpu: str, needed: str, libraries: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """A GPU without the library that serves it still runs bundles of other backends, only not the fastest.

    gpu: its name, "" without one.  needed: the engine library that serves it, "" where that is not known.
    libraries: name -> {installed, how, ...}.
    """
    if not gpu or not needed:
        return []
    lacking = [(name, libraries[name]["how"]) for name in (needed, "cuda-bindings") if not libraries[name]["installed"]]
    why = f"TensorRT engines for {gpu} need it"
    return [Problem(f"{name} is not installed", f"{why}. {how}", command_in(how, "")) for name, how in lacking]


def judge_bundle(path: str, answer: Answer) -> list[Problem]:
    """The main job: the bundle opens, reproduces its golden vectors and computes a chunk."""
    if answer.ok:
        return []
    mend = f"edgewam doctor {path} --limit 60" if answer.timed_out else command_in(answer.reason, f"edgewam inspect {path}")
    return [Problem(f"the bundle '{path}' does not run", answer.reason, mend, blocks=True)]


def judge_rendering(answers: Mapping[str, Answer], has_simulator: bool, has_models: bool) -> list[Problem]:
    """Where MuJoCo is installed, the simulator is the robot and must be drawn without a screen; elsewhere nothing is asked.

    answers: by graphics library.
    """
    if not has_simulator:
        return []
    found = []
    if not any(answer.ok for answer in answers.values()):
        reasons = "; ".join(f"{name}: {answer.reason.partition('Install')[0].strip()}" for name, answer in answers.items())
        found.append(Problem("the simulator cannot be drawn", reasons, APT_EGL, blocks=True))
    if not has_models:
        why = "MuJoCo is here, but not the ALOHA models"
        found.append(Problem("gym-aloha is not installed", why, "pip install --no-deps gym-aloha==0.1.5", blocks=True))
    return found


def judge_real_time(answer: Answer, host: Host) -> list[Problem]:
    """Permissions of the control process.  Without them it still runs, and late ticks are counted."""
    refused = [answer.reason] if not answer.ok else []
    if answer.ok:
        value = answer.value
        refused += [value["scheduler"]] if not value["scheduler"].startswith("SCHED_FIFO") else []
        refused += [f"memory {value['memory']}"] if value["memory"] != "locked" else []
    found = []
    if refused:
        mend = (
            "docker run --cap-add SYS_NICE --cap-add IPC_LOCK --ulimit rtprio=99 --ulimit memlock=-1 ..."
            if host.container
            else r"printf '%s - rtprio 95\n%s - memlock unlimited\n' $USER $USER | "
            "sudo tee /etc/security/limits.d/edgewam.conf && echo 'now log in again'"
        )
        found.append(Problem("no real-time permissions", "; ".join(refused), mend))
    if host.rt_runtime == 0.0:
        mend = "sudo sysctl -w kernel.sched_rt_runtime_us=950000"
        found.append(Problem("real-time tasks get no time", "kernel.sched_rt_runtime_us is 0", mend))
    return found


def judge_records(answer: Answer) -> list[Problem]:
    """Shared records carry every command; without memfd there is no run."""
    if answer.ok:
        return []
    why = f"processes cannot share memory: {answer.reason}"
    return [Problem("no shared records", why, "mount -o remount,size=1G /dev/shm", blocks=True)]


def _nvidia_tools(driver: str | None) -> str:
    """The command that installs a driver's tools, or lists them when its version is unknown."""
    major = (driver or "").partition(".")[0]
    return f"apt-get install -y nvidia-utils-{major}" if major.isdigit() else "apt-cache search --names-only ^nvidia-utils-"

"""The timing contract: everything without which a latency figure means nothing (DESIGN section 7).

Every figure that edgewam prints or stores carries one.  Two figures may be compared only where `difference` finds nothing
but what the comparison is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgewam.core.artifacts import versions
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import Machine, read_machine


@dataclass(frozen=True)
class TimingContract:
    """Conditions of a measurement.

    device: what computed the stages.  engine: backend and how it ran, such as "onnxruntime" or "eager+cuda_graph".
    precision: of weights and products, such as "fp32" or "bf16".  steps: denoise steps per chunk, 0 where there are none.
    shapes: name -> shape of what sets the work.  stages: those inside the figure, in order.  host_copies: whether copies
    between host and device are inside.  threads: of the compute library.  clock: "wall" or "cuda_events".
    artifact: digest of what was measured, "" for random weights.  machine: facts read at the time, clocks included.
    """

    device: str
    driver: str
    engine: str
    precision: str
    steps: int
    shapes: Mapping[str, tuple[int, ...]]
    stages: tuple[str, ...]
    host_copies: bool
    concurrent_refresh: bool
    threads: int
    warmup: int
    n: int
    clock: str = "wall"
    artifact: str = ""
    notes: str = ""
    versions: Mapping[str, str] = field(default_factory=versions)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a contract that leaves open what it must state."""
        empty = [name for name in ("device", "driver", "engine", "precision", "stages") if not getattr(self, name)]
        if empty or self.n < 1 or self.warmup < 0 or self.threads < 1 or self.steps < 0:
            raise EdgewamError(
                f"Timing contract is not complete: empty {empty}, n={self.n}, warmup={self.warmup}, "
                f"threads={self.threads}, steps={self.steps}. State them all; n and threads are at least 1."
            )

    @staticmethod
    def here(
        *,
        engine: str,
        precision: str,
        steps: int,
        shapes: Mapping[str, Sequence[int]],
        stages: Sequence[str],
        host_copies: bool,
        threads: int,
        warmup: int,
        n: int,
        concurrent_refresh: bool = False,
        on_gpu: bool = False,
        clock: str = "wall",
        artifact: str = "",
        notes: str = "",
        machine: Machine | None = None,
    ) -> TimingContract:
        """The contract with this machine's facts filled in.  Call it right after the measurement: the clocks are read here.

        Raises:
            EdgewamError: `on_gpu` where nvidia-smi shows no GPU, or a field left empty.
        """
        machine = machine or read_machine()
        if on_gpu and not machine.gpu:
            raise EdgewamError("A GPU figure needs the GPU's facts, but nvidia-smi shows none. Put nvidia-smi on the PATH.")
        return TimingContract(
            device=machine.gpu["name"] if on_gpu else machine.cpu,
            driver=machine.driver if on_gpu else machine.system,
            engine=engine,
            precision=precision,
            steps=steps,
            shapes={name: tuple(int(size) for size in shape) for name, shape in shapes.items()},
            stages=tuple(stages),
            host_copies=host_copies,
            concurrent_refresh=concurrent_refresh,
            threads=threads,
            warmup=warmup,
            n=n,
            clock=clock,
            artifact=artifact,
            notes=notes,
            machine=machine.to_json(),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        data = asdict(self)
        data["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        data["stages"] = list(self.stages)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TimingContract:
        """Inverse of `to_json`; EdgewamError when a field is missing or unknown."""
        shapes = {name: tuple(shape) for name, shape in data.get("shapes", {}).items()}
        try:
            return TimingContract(**{**data, "shapes": shapes, "stages": tuple(data.get("stages", ()))})
        except TypeError as error:
            raise EdgewamError(f"This is no timing contract: {error}. Measure again with this version.") from error

    def difference(self, other: TimingContract) -> list[str]:
        """Names of the conditions in which two measurements differ; `n`, `warmup`, notes, artifact and momentary facts aside."""
        ignored = {"n", "warmup", "notes", "artifact", "machine"}
        return [f for f in self.__dataclass_fields__ if f not in ignored and getattr(self, f) != getattr(other, f)]

    def text(self) -> str:
        """One line for the head of a table."""
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in self.shapes.items())
        packages = " ".join(f"{name} {version}" for name, version in self.versions.items() if name in _SHOWN)
        clocks = "; ".join(
            f"{label} {self.machine[key]:.0f}" for key, label in (("cpu_mhz", "cpu MHz"),) if self.machine.get(key)
        )
        gpu = self.machine.get("gpu") or {}
        if gpu and self.device == gpu.get("name"):
            clocks = f"SM {gpu.get('sm_clock', '?')}, memory {gpu.get('memory_clock', '?')}"
        parts = [
            self.device,
            f"driver {self.driver}",
            packages,
            f"clocks {clocks or 'unknown'}",
            f"power mode {self.machine['power_mode']}" if self.machine.get("power_mode") else "",
            f"{self.engine}, {self.precision}, {self.steps} steps, {self.threads} thread{'s' if self.threads > 1 else ''}",
            shapes,
            f"stages {'+'.join(self.stages)}",
            f"host copies {'inside' if self.host_copies else 'outside'}",
            f"refresh {'concurrent' if self.concurrent_refresh else 'off'}",
            f"{self.clock} clock, warm-up {self.warmup}, n {self.n}",
            f"artifact {self.artifact[:12]}" if self.artifact else "no artifact",
            self.notes,
        ]
        return " | ".join(part for part in parts if part)


_SHOWN = ("edgewam", "torch", "onnxruntime", "tensorrt", "triton")

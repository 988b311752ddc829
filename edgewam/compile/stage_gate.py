"""Gate 1: every stage against its reference on the same inputs: cosine, largest deviation, NaN and Inf (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import GateError
from edgewam.core.stage import Stage
from edgewam.runtime.deviation import Deviation, deviation
from edgewam.runtime.engine import Engine, run_engine
from edgewam.runtime.memory import BoundCall, Buffer, HostMemory, Memory

Inputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class StageReport:
    """Worst deviation of each output of each stage over its samples, stages in the order of the road."""

    outputs: Mapping[str, Mapping[str, Deviation]]  # stage -> output -> worst
    tolerance: float

    @property
    def first_failure(self) -> tuple[str, str] | None:
        """(stage, output) of the first one beyond the tolerance, or None."""
        for stage, outputs in self.outputs.items():
            for name, worst in outputs.items():
                if not worst.within(self.tolerance):
                    return stage, name
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        stages = {stage: {name: d.to_json() for name, d in outputs.items()} for stage, outputs in self.outputs.items()}
        return {"tolerance": self.tolerance, "passed": self.first_failure is None, "stages": stages}

    def require(self) -> None:
        """Raise GateError naming the first stage that diverges."""
        if self.first_failure is not None:
            stage, name = self.first_failure
            worst = self.outputs[stage][name]
            raise GateError(
                f"Stage '{stage}' is the first that diverges from its reference: output '{name}' is off by "
                f"{worst.relative:.2g} of its maximum (cosine {worst.cosine:.6f}, {worst.num_bad} not finite); "
                f"{self.tolerance:.2g} is allowed. Look at that stage's export; the artifact was not accepted."
            )


def compare_stages(
    stages: Mapping[str, Stage],
    reference: Mapping[str, Engine],
    engines: Mapping[str, Engine],
    samples: Mapping[str, Sequence[Inputs]],
    tolerance: float,
    memories: tuple[Memory | None, Memory | None] = (None, None),
    declared: Mapping[str, Stage] | None = None,
) -> StageReport:
    """Run both sides of every stage on the same samples.  Stages in the given order; those without samples are skipped.

    memories: where the buffers of the reference's and of the engines' side are; None is the host.
    declared: the reference's stages, where their dtypes differ.
    """
    report: dict[str, dict[str, Deviation]] = {}
    for stage in stages.values():
        for sample in samples.get(stage.name, ()):
            expected = run_engine((declared or stages)[stage.name], reference[stage.name], sample, memories[0])
            found = run_engine(stage, engines[stage.name], sample, memories[1])
            for name, array in found.items():
                now = deviation(array, expected[name])
                worst = report.setdefault(stage.name, {}).get(name)
                if worst is None or (now.num_bad, now.relative) > (worst.num_bad, worst.relative):
                    report[stage.name][name] = now
    return StageReport(report, tolerance)


class CapturingEngine:
    """Another engine that keeps the inputs of its first and its latest call, to replay the stage on real values."""

    def __init__(self, inner: Engine, memory: Memory | None = None) -> None:
        self.inner = inner
        self._memory = memory or HostMemory()
        self._first: dict[str, npt.NDArray[Any]] | None = None
        self._latest: dict[str, npt.NDArray[Any]] | None = None

    @property
    def samples(self) -> list[dict[str, npt.NDArray[Any]]]:
        """The kept inputs: none, one or two calls."""
        if self._first is None or self._latest is None:
            return []
        same = all(np.array_equal(self._first[name], self._latest[name]) for name in self._first)
        return [self._first] if same else [self._first, self._latest]

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """See `Engine.bind`."""
        call = self.inner.bind(inputs, outputs)

        def capture() -> None:
            self._latest = {name: self._memory.read(buffer) for name, buffer in inputs.items()}
            self._first = self._first or self._latest
            call()

        return capture

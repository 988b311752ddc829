"""A bound program as CUDA graphs: captured between the calls that no graph can hold, and verified before it may drive anything.

Capture is probed, never assumed: the graph must write what the single calls write (facts/performance.md 3, row 19).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.binding import BoundProgram, Step
from edgewam.runtime.deviation import deviation
from edgewam.runtime.memory import Array, BoundCall, Buffer, CaptureError, Memory, Stream

# Kernels that add with atomics differ in the last bits from run to run, and a library may choose another kernel for the workspace
# that it has while capturing; a graph that holds stale addresses is off by far more.
REPLAY_TOLERANCE = 1e-3
HALF_REPLAY_TOLERANCE = 2e-2  # the same in bfloat16 or float16: 2^-9 of every value, through the layers of a stage


def compose(plan: BoundProgram) -> tuple[BoundCall, ...]:
    """All calls of one run in order: inputs to the device, the steps, outputs to the host."""
    return tuple(step.call for step in _steps(plan))


def capture_steps(plan: BoundProgram, memory: Memory, stream: Stream) -> tuple[Step, ...]:
    """The steps, each that a graph can hold as a graph of its own."""
    return tuple(replace(s, call=memory.capture([s.call], stream)) if s.is_fixed else s for s in plan.steps)


class Replay:
    """The graphs of one bound program.  `calls` launches them in order, between pushes, which look at their slot.

    in_groups: one graph per step instead of one for all.
    """

    def __init__(self, plan: BoundProgram, memory: Memory, stream: Stream, in_groups: bool = False) -> None:
        self._plan, self._memory, self._stream, self._in_groups = plan, memory, stream, in_groups
        self.calls: tuple[BoundCall, ...] = ()

    def verify(
        self, states: Mapping[str, Buffer], prepare: Sequence[Callable[[], None]], tolerance: float
    ) -> str:  # fmt: skip
        """Run call by call, capture, replay from the same state, and compare.

        Args:
            states: what the program writes besides its outputs; left as it was.
            prepare: each puts inputs into the ports, which a run may overwrite.  More than one, and different: a value that was
                computed on the host while capturing is right for the first inputs only.
            tolerance: of a result's maximum.

        Returns:
            "bitwise", or the largest deviation as text.

        Raises:
            CaptureError: no graph, or one that computes something else.
        """
        before = {name: self._kept(name, buffer) for name, buffer in states.items()}
        try:
            expected = self._runs(compose(self._plan), states, before, prepare)
            calls = self._capture()
            found = self._runs(calls, states, before, prepare)
        finally:
            self._restore(states, before)
        pairs = [(now[name], right[name]) for now, right in zip(found, expected, strict=True) for name in right]
        # most are equal, and to measure how far a memory of 130 million numbers is off takes seconds
        worst = max((deviation(*pair).relative for pair in pairs if not np.array_equal(*pair)), default=0.0)
        if worst > tolerance:
            raise CaptureError(f"the graph's result is off by {worst:.2g} of its maximum from that of the single calls")
        self.calls = calls
        return "bitwise" if worst == 0 else f"replay within {worst:.1g} of the maximum"

    def _capture(self) -> tuple[BoundCall, ...]:
        calls: list[BoundCall] = []
        for is_fixed, steps in groupby(_steps(self._plan), key=lambda step: step.is_fixed):
            part = [step.call for step in steps]
            if is_fixed:
                parts = [[call] for call in part] if self._in_groups else [part]
                calls += [self._memory.capture(graph, self._stream) for graph in parts]
            else:
                calls += part
        return tuple(calls)

    def _runs(
        self, calls: tuple[BoundCall, ...], states: Mapping[str, Buffer], before: Mapping[str, Buffer],
        prepare: Sequence[Callable[[], None]],
    ) -> list[dict[str, Array]]:  # fmt: skip
        """What the calls write for each of the inputs, always from the state `before`."""
        results = []
        for fill in prepare:
            self._restore(states, before)
            fill()
            for port in self._plan.outputs.values():
                port.host.fill(0)  # a call that does nothing must not look like one that worked
            with self._memory.on(self._stream):
                for call in calls:
                    call()
            self._memory.synchronize(self._stream)
            outputs = {name: port.host.copy() for name, port in self._plan.outputs.items()}
            results.append(outputs | {f"state {name}": self._memory.read(buffer) for name, buffer in states.items()})
        return results

    def _kept(self, name: str, buffer: Buffer) -> Buffer:
        """A copy of a state on the device: the memory of a full-size planner would take seconds to the host and back."""
        spec = TensorSpec.of(name, buffer)
        spare = self._memory.allocate(spec)
        self._memory.copy(spare, buffer)()
        self._memory.synchronize()
        return spare

    def _restore(self, states: Mapping[str, Buffer], before: Mapping[str, Buffer]) -> None:
        for name, buffer in states.items():
            self._memory.copy(buffer, before[name])()
        self._memory.synchronize()


def _steps(plan: BoundProgram) -> list[Step]:
    uploads = [Step("upload", port.upload) for _, port in plan.inputs.values() if port.upload]
    downloads = [Step("download", port.download) for port in plan.outputs.values() if port.download]
    return [*uploads, *plan.steps, *downloads]

"""Golden vectors: recorded program runs that a bundle repeats before its first command may leave (DESIGN section 6)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewam.core.errors import ArtifactError, GateError
from edgewam.core.program import Programs
from edgewam.runtime.deviation import Deviation, deviation
from edgewam.runtime.memory import Array, CaptureError
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.tensors import load_tensors, save_tensors

_MAX_STATE_VALUES = 4096  # a spread sample of a state tells a wrong engine as surely as all of it
_STATE = "state:"


@dataclass(frozen=True)
class GoldenCall:
    """One program run from the state that the calls before it left: inputs and expected outputs and written states."""

    program: str
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    tolerance: float  # of every expected array, relative to its maximum


def observe_run(pipeline: Pipeline, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a program; its outputs, and `state:<name>` samples of the states it writes."""
    outputs = pipeline.run(program, inputs)
    for name in written_states(pipeline.programs, program):
        values = pipeline.state(name).ravel()
        outputs[_STATE + name] = values[:: max(1, -(-values.size // _MAX_STATE_VALUES))]
    return outputs


def written_states(programs: Programs, program: str) -> list[str]:
    """Names of the states that a program writes, sorted."""
    states = {state.spec.name for state in programs.states}
    return sorted(states & programs.programs[program].written())


def self_test(pipeline: Pipeline, calls: Iterable[GoldenCall]) -> list[Deviation]:
    """Repeat the golden calls from zero state, compare, and leave zero state behind.

    Raises:
        GateError: naming the program, the tensor and the deviation.
    """
    pipeline.reset()
    worst = []
    try:
        for index, call in enumerate(calls):
            found = observe_run(pipeline, call.program, call.inputs)
            for name, reference in call.expected.items():
                measured = deviation(found[name], reference)
                if not measured.within(call.tolerance):
                    raise GateError(
                        f"Self-test failed: golden call {index} of program '{call.program}' gives '{name}' off by "
                        f"{measured.relative:.2g} of its maximum ({measured.num_bad} not finite); {call.tolerance:.2g} is "
                        "allowed. This bundle must not drive a robot: compile it again for this machine."
                    )
                worst.append(measured)
    finally:
        pipeline.reset()
    return worst


def capture_programs(pipeline: Pipeline, calls: Iterable[GoldenCall], where: str) -> dict[str, str]:
    """Capture every program on its last golden inputs; program -> "bitwise", how near, or why it is not a graph.

    The states hold what the golden calls left, each buffer of a state something else: over zeros a graph that reads the wrong
    buffer would go unseen.

    A program that cannot be captured runs call by call, and a RuntimeWarning says why: slower is no reason to stand still.
    """
    report, calls = {}, list(calls)
    pipeline.reset()
    for call in (*calls, *calls):
        pipeline.run(call.program, call.inputs)
    for call in {call.program: call for call in calls}.values():
        try:
            report[call.program] = pipeline.capture(call.program, call.inputs)
        except CaptureError as error:
            report[call.program] = str(error)
            warnings.warn(
                f"'{where}': program '{call.program}' runs without a CUDA graph, call by call and slower: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    pipeline.reset()
    return report


def save_golden(path: Path, calls: Sequence[GoldenCall]) -> list[dict[str, object]]:
    """Write the arrays of the calls; return the index that belongs into the manifest."""
    arrays: dict[str, Array] = {}
    for index, call in enumerate(calls):
        arrays |= {f"{index}/in/{name}": array for name, array in call.inputs.items()}
        arrays |= {f"{index}/out/{name}": array for name, array in call.expected.items()}
    save_tensors(path, arrays)
    return [{"program": call.program, "tolerance": call.tolerance} for call in calls]


def load_golden(path: Path, index: Sequence[Mapping[str, object]]) -> list[GoldenCall]:
    """Inverse of `save_golden`.

    Raises:
        ArtifactError: no golden calls: a bundle that cannot test itself is not run.
    """
    if not index:
        raise ArtifactError(f"'{path.parent}' has no golden vectors, so it cannot test itself. Compile it again.")
    arrays = load_tensors(path)
    calls = []
    for number, entry in enumerate(index):
        inputs, expected = (
            {
                name.removeprefix(f"{number}/{part}/"): array
                for name, array in arrays.items()
                if name.startswith(f"{number}/{part}/")
            }
            for part in ("in", "out")
        )
        calls.append(GoldenCall(str(entry["program"]), inputs, expected, float(str(entry["tolerance"]))))
    return calls

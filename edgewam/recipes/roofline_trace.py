"""`edgewam profile --trace`: some runs of every program of a bundle, stage by stage, as a file for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewam.runtime.bundle import Bundle


def write_trace(bundle: Bundle, path: Path, runs: int, warmup: int) -> dict[str, Any]:
    """Write the trace of `runs` runs of each program, on its golden inputs; returns what was traced, in numbers.

    Raises:
        ArtifactError: a bundle that was never written.
        EdgewamError: the file cannot be written.
    """
    from edgewam.core.artifacts import write_json
    from edgewam.core.errors import ArtifactError, EdgewamError
    from edgewam.profiles.trace import ProgramTrace, chrome_trace, record
    from edgewam.runtime.bundle import GOLDEN
    from edgewam.runtime.measure import contract_of
    from edgewam.runtime.selftest import load_golden

    if bundle.path is None or bundle.manifest is None:
        raise ArtifactError("Only a bundle that was opened from a directory can be traced. Write it with 'edgewam compile'.")
    inputs = {call.program: call.inputs for call in load_golden(bundle.path / GOLDEN, bundle.manifest.config["golden"])}
    traces = []
    for name, given in inputs.items():
        spans, durations = record(bundle.pipeline, lambda name=name, given=given: bundle.pipeline.run(name, given), runs, warmup)  # type: ignore[misc]
        contract = contract_of(bundle, f"trace of {name}, every stage looked at", name, runs, warmup)
        traces.append(ProgramTrace(name, contract, tuple(spans), tuple(durations)))
    bundle.pipeline.reset()
    try:
        write_json(path, chrome_trace(f"edgewam {bundle.family} '{bundle.path}'", traces))
    except OSError as error:
        raise EdgewamError(f"Cannot write the trace '{path}': {error}. Give another file.") from error
    return {
        "trace": str(path), "runs": runs, "events": sum(len(trace.spans) for trace in traces),
        "programs": {t.program: {"stages": len(t.stage_ms()), "mean_run_ms": sum(t.run_ns) / runs / 1e6} for t in traces},
    }  # fmt: skip

"""Does the bundle still compute its reference's actions?  Gates 1 and 2, and the error over the chunk, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgewam.compile.frames import Frame
    from edgewam.runtime.bundle import Bundle

NUM_DRAWS = 4  # noises per frame of the error over the chunk


def compare(
    candidate: Bundle,
    reference: Bundle,
    name: str,
    frames: Sequence[Frame],
) -> dict[str, Any]:
    """One reference: its gates, and the error per row of the chunk.

    Limits are those of `validate`: exact or quantised weights against the policy they are of, with gate 1; or the teacher.

    Returns:
        reference, gate1 (None for the teacher), gate2, chunk: rows {index, median, p99, spread} in units of the
        action's std, over frames, noises and joints.  spread: median difference of the reference between two noises.
    """
    from edgewam.compile.excess_error import DISTILLED_LIMITS, ENGINE_LIMITS, QUANTIZED_LIMITS
    from edgewam.compile.validate import stage_tolerance, validate

    is_teacher, is_quantized = name == "teacher", "quantized" in (candidate.manifest.parents if candidate.manifest else ())
    precision = str(candidate.manifest.config.get("precision", "fp32")) if candidate.manifest else "fp32"
    limits = DISTILLED_LIMITS if is_teacher else ENGINE_LIMITS if precision == "fp32" else QUANTIZED_LIMITS
    report = validate(
        candidate,
        reference,
        stages=not is_teacher,
        frames=frames,
        limits=limits,
        tolerance=stage_tolerance(precision),
        on_frames=is_quantized,
    ).to_json()
    gate1 = report["stages"]
    if gate1 is not None:
        rows = [
            {"stage": stage, "output": output, **deviation}
            for stage, outputs in gate1["stages"].items()
            for output, deviation in outputs.items()
        ]
        gate1 = {"tolerance": gate1["tolerance"], "passed": gate1["passed"], "rows": rows}
        gate1["worst"] = max(row["relative"] for row in rows)
    rows = chunk_errors(candidate, reference, frames)
    return {"reference": name, "gate1": gate1, "gate2": report["actions"], "chunk": rows}


def chunk_errors(
    candidate: Bundle, reference: Bundle, frames: Sequence[Frame], num_draws: int = NUM_DRAWS, seed: int = 1
) -> list[dict[str, Any]]:
    """|candidate - reference| and the reference's own spread per row of the chunk, in units of the action's std."""
    from edgewam.compile.frames import FrameSampler

    samplers = [FrameSampler(bundle.open_policy()) for bundle in (reference, candidate)]
    errors, spreads = [], []
    for index, frame in enumerate(frames):
        rng = np.random.default_rng((seed, index))
        last = None
        for _ in range(num_draws):
            noise = rng.standard_normal(samplers[0].policy.noise_shape).astype(np.float32)
            expected, found = (np.asarray(sample(frame, noise), np.float64) for sample in samplers)
            errors.append(np.abs(found - expected))
            if last is not None:
                spreads.append(np.abs(expected - last))
            last = expected
    error, spread = np.stack(errors), np.stack(spreads)  # [F * draws, chunk, D]
    return [
        {
            "index": row,
            "median": float(np.median(error[:, row])),
            "p99": float(np.percentile(error[:, row], 99)),
            "spread": float(np.median(spread[:, row])),
        }
        for row in range(error.shape[1])
    ]

"""`edgewam validate`: does a bundle still compute its reference's actions?  Gates 1 and 2; exits 1 when one fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewam.cli._output import Json, emit, say

if TYPE_CHECKING:
    from edgewam.compile.validate import ValidationReport


def command(
    bundle: Annotated[Path, typer.Argument(help="Bundle that is to be trusted.")],
    reference: Annotated[Path, typer.Argument(help="The policy it was compiled from, or the teacher it was distilled from.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset whose frames are judged; best one that nothing was trained on.")],
    frames: Annotated[int, typer.Option(help="Frames of gate 2; each takes 8 pairs of noise.", min=1)] = 16,
    prompt: Annotated[str | None, typer.Option(help="Instruction for all frames; by default each frame's own.")] = None,
    threads: Annotated[int, typer.Option(help="Compute threads.", min=1)] = 2,
    as_json: Json = False,
) -> None:
    """Gate 1: every stage against eager. Gate 2: the excess error ratio of whole chunks over frames and noises."""
    from edgewam.recipes.validation import validate_against

    report = validate_against(bundle, reference, dataset, num_frames=frames, prompt=prompt, threads=threads)
    show(report)
    emit(report.to_json(), as_json)
    report.require()


def show(report: ValidationReport) -> None:
    """Both gates on stderr."""
    if report.stages is not None:
        for stage, outputs in report.stages.outputs.items():
            worst = max(outputs.values(), key=lambda d: (d.num_bad, d.relative))
            say(f"  {stage}: off by {worst.relative:.1e} of its maximum, cosine {worst.cosine:.7f}, {worst.num_bad} not finite")
        failure = report.stages.first_failure
        verdict = "passed" if failure is None else f"FAILED at {failure[0]}"
        say(f"gate 1, stages: {verdict} (tolerance {report.stages.tolerance:g})")
    if report.actions is not None:
        actions, limits = report.actions, report.limits
        say(
            f"gate 2, excess error ratio over {actions.ratio.size} frames: "
            f"median {actions.median:.2g} (limit {limits.median:g}), p99 {actions.p99:.2g} (limit {limits.p99:g}); "
            f"mean spread of the reference {float(actions.spread_rms.mean()):.4f} std"
        )

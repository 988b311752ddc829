"""The steps of `shrink`: what each makes, from what, and how its result is recognised."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import hardware, read_manifest, write_artifact, write_json
from edgewam.core.errors import EdgewamError
from edgewam.recipes.shrink import Shrink
from edgewam.recipes.shrink_step import Report, Step, Wanted, differing

REPORT = "report.json"  # of the artifacts "validation" and "profile"
_WARMUP = 20  # untimed calls before a profile


def steps_of(plan: Shrink) -> list[Step]:
    """The steps that this shrink walks, in order."""
    work, target = plan.work, plan.target
    chosen: list[Step] = []
    if plan.distillation:
        seconds = 60 * (plan.distillation.loop.minutes or 0) + 120
        chosen.append(Step("distill", work / "student", "student", lambda: _student(plan), lambda r: _distill(plan, r), seconds))
    if target.plan is not None:
        chosen.append(
            Step("quantize", work / "quantized", "quantized", lambda: _quantized(plan), lambda r: _quantize(plan, r), 120)
        )
    return [
        *chosen,
        Step("compile", work / "bundle", "bundle", lambda: _bundle(plan), lambda r: _compile(plan, r), 20),
        Step("validate", work / "validation", "validation", lambda: _judged(plan), lambda r: _validate(plan, r), 30),
        Step("profile", work / "profile", "profile", lambda: _profiled(plan), lambda r: _profile(plan, r), 20),
    ]


def _student(plan: Shrink) -> Wanted:
    inputs = distillation_inputs(plan)
    return Wanted(inputs["from"], inputs["settings"])


def distillation_inputs(plan: Shrink) -> dict[str, Any]:
    """What a student depends on: `from` (digests), `settings` (those of its manifest)."""
    from edgewam.training.loop import FREE_FIELDS

    config = plan.distillation
    assert config is not None
    loop = {name: value for name, value in asdict(config.loop).items() if name not in FREE_FIELDS}
    settings = config.settings() | {"trajectories": config.trajectories.to_json(), "loop": loop}
    digests = {"teacher": plan.origin.digest, "dataset": plan.dataset_digest, "vae": plan.origin.parents["vae"]}
    return {"from": digests, "settings": json.loads(json.dumps(settings))}


def _distill(plan: Shrink, report: Report) -> None:
    from edgewam.distill.ode import distill

    assert plan.distillation is not None
    clear_stale_training(plan)
    distill(
        plan.distillation, plan.work / "student",
        progress=lambda p: report(p.fraction, p.seconds_left, f"step {p.step}, loss {p.scalars.get('loss', 0.0):.4f}"),
        report=lambda line: report(0.0, None, line),
    )  # fmt: skip


def clear_stale_training(plan: Shrink) -> None:
    """Remove what an earlier distillation from something else left: its checkpoint, and its caches where they differ too.

    The working directory is ours alone, and the caches would refuse another teacher.
    """
    training, note = plan.work / "student.training", plan.work / "distill.json"
    inputs = distillation_inputs(plan)
    before = _read(note)
    situations = {"from": inputs["from"], "settings": {"trajectories": inputs["settings"]["trajectories"]}}
    if differing(situations, before):
        shutil.rmtree(training, ignore_errors=True)
    elif differing(inputs, before):
        (training / "checkpoint.json").unlink(missing_ok=True)
    write_json(note, inputs)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _quantized(plan: Shrink) -> Wanted:
    calibration = {"dataset": plan.dataset_digest}
    settings = {"plan": plan.target.plan, "num_action_steps": plan.num_action_steps, "calibration": calibration}
    return Wanted({"policy": read_manifest(plan.policy).digest}, settings)


def _quantize(plan: Shrink, report: Report) -> None:
    from edgewam.data.dataset import Dataset
    from edgewam.recipes.quantization import EPISODES, plan_quantization, quantize_policy

    assert plan.target.plan is not None
    chosen = plan_quantization(plan.policy, plan.target.plan, plan.num_action_steps, plan.threads)
    episodes = min(EPISODES, Dataset.open(plan.dataset).num_episodes)
    quantize_policy(
        chosen, plan.dataset, plan.work / "quantized", num_episodes=episodes, threads=plan.threads,
        report=lambda what, done, total: report(0.0, None, f"{what}, {done:.0f}/{total:.0f}"),
    )  # fmt: skip


def _source(plan: Shrink) -> Path:
    return plan.work / "quantized" if plan.target.plan is not None else plan.policy


def _bundle(plan: Shrink) -> Wanted:
    source = read_manifest(_source(plan))
    return Wanted({source.kind: source.digest}, {"backend": plan.target.backend, "num_action_steps": plan.num_action_steps})


def _compile(plan: Shrink, report: Report) -> None:
    from edgewam.compile.compile import compile_bundle
    from edgewam.recipes.deploy import compile_plan

    report(0.0, None, f"backend {plan.target.backend}")
    made = compile_plan(_source(plan), plan.target.backend, plan.num_action_steps, threads=plan.threads)
    compile_bundle(made, plan.work / "bundle")


def _judged(plan: Shrink) -> Wanted:
    parents = {
        "bundle": read_manifest(plan.work / "bundle").digest, "reference": read_manifest(plan.policy).digest,
        "checkpoint": plan.origin.digest, "dataset": plan.dataset_digest,
    }  # fmt: skip
    return Wanted(parents, {"num_frames": plan.num_frames})


def _validate(plan: Shrink, report: Report) -> None:
    from edgewam.core.errors import GateError
    from edgewam.recipes.validation import validate_against

    wanted = _judged(plan)
    sides = {"reference": plan.policy} | ({"teacher": plan.checkpoint} if plan.distillation else {})
    found, failures = {}, {}
    for number, (side, path) in enumerate(sides.items()):
        report(number / len(sides), None, f"{plan.num_frames} frames against {path}")
        result = validate_against(
            plan.work / "bundle", path, plan.dataset, num_frames=plan.num_frames, threads=plan.threads
        )  # fmt: skip
        found[side] = result.to_json()
        try:
            result.require()
        except GateError as error:
            failures[side] = str(error)
    measured = {"passed": not failures, "failures": failures}
    out = plan.work / "validation"
    with write_artifact(out, "validation", config=wanted.settings, parents=wanted.parents, measured=measured) as directory:
        write_json(directory / REPORT, found)


def _profiled(plan: Shrink) -> Wanted:
    parents = {"bundle": read_manifest(plan.work / "bundle").digest, "checkpoint": plan.origin.digest}
    return Wanted(parents, {"n": plan.num_timed, "threads": plan.threads, "hardware": hardware()})


def _profile(plan: Shrink, report: Report) -> None:
    from edgewam.recipes.shrink_result import compare_chunks
    from edgewam.runtime.bundle import Bundle
    from edgewam.runtime.measure import profile_bundle

    wanted = _profiled(plan)
    bundle = Bundle.open(plan.work / "bundle", threads=plan.threads)
    report(0.1, None, "programs and stages")
    profiles = {name: p.to_json() for name, p in profile_bundle(bundle, plan.num_timed, _WARMUP).items()}
    report(0.5, None, "the chunk, before and after in turns")
    measured = compare_chunks(plan, bundle)
    out = plan.work / "profile"
    with write_artifact(out, "profile", config=wanted.settings, parents=wanted.parents, measured=measured) as directory:
        write_json(directory / REPORT, profiles)


def read_report(directory: Path) -> dict[str, Any]:
    """The report of a validation or a profile; EdgewamError when it cannot be read."""
    try:
        return dict(json.loads((directory / REPORT).read_text()))
    except (OSError, ValueError) as error:
        raise EdgewamError(f"Cannot read '{directory / REPORT}': {error}. Remove '{directory}' and run shrink again.") from error

"""`shrink`: distil, quantise, compile, validate and profile in one go, resumably, and put the bundle in place at the end.

Every step writes an artifact into `<BUNDLE>.shrink/`.  A finished one is never done twice: it is recognised by its
manifest, and made again only when a parent or a setting changed.  The bundle appears whole, and only after the gates.
"""

from __future__ import annotations

import fcntl
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.artifacts import MANIFEST, Manifest, read_manifest, replaced_directory
from edgewam.core.errors import EdgewamError
from edgewam.recipes.shrink_step import Step
from edgewam.recipes.shrink_targets import Target

if TYPE_CHECKING:
    from edgewam.data.dataset import Dataset
    from edgewam.distill.ode import OdeDistillation
    from edgewam.training.policy_artifact import LoadedPolicy

_RELEASED_RATE = 2e-5

# (step, its number from 0, of how many, fraction of it, seconds left of the whole road, a word on what is going on)
Report = Callable[[Step, int, int, float, float, str], None]


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """What to make of what.  distillation: how, with teacher and dataset filled in; None when there is nothing to distil.

    num_action_steps: of the bundle.  num_frames: behind each gate.  num_timed: calls behind each time.
    """

    checkpoint: Path
    origin: Manifest  # of the checkpoint
    own_steps: int  # what the checkpoint itself is sampled with
    target: Target
    out: Path
    dataset: Path
    dataset_digest: str
    num_action_steps: int
    distillation: OdeDistillation | None
    threads: int = 2
    num_frames: int = 16
    num_timed: int = 200

    @property
    def work(self) -> Path:
        """Where the intermediate artifacts are."""
        return self.out.parent / f"{self.out.name}.shrink"

    @property
    def policy(self) -> Path:
        """What is quantised and compiled: the student, or the checkpoint itself."""
        return self.work / "student" if self.distillation else self.checkpoint

    @property
    def skipped(self) -> dict[str, str]:
        """Steps of the road that this one leaves out, and why."""
        why = {}
        if self.distillation is None:
            student = self.origin.kind == "student"
            why["distill"] = (
                "the checkpoint is a student already" if student else f"{self.num_action_steps} steps need no student"
            )
        if self.target.plan is None:
            why["quantize"] = f"target {self.target.name} stays in float32"
        return why


def plan_shrink(
    checkpoint: Path, target: Target, out: Path, dataset: Path, *, num_action_steps: int | None = None,
    minutes: float | None = None, batches: int | None = None, threads: int = 2, device: str = "cpu",
    num_frames: int = 16, num_timed: int = 200,
) -> Shrink:  # fmt: skip
    """Check every input and decide what is to be done.

    Args:
        checkpoint: policy artifact (a teacher), or a student.
        target: what to make.
        out: bundle directory.
        dataset: situations to distil in, to calibrate on and to judge by.
        num_action_steps: of the sampler; by default 2, or what a student was distilled for.
        minutes: of distilling; by default the recipe's.
        batches: of teacher trajectories; by default the recipe's.
        threads: compute threads.
        device: of distilling.
        num_frames: behind each gate.
        num_timed: calls behind each time.

    Raises:
        EdgewamError: a checkpoint of another kind, an unreadable dataset, or an `out` that is something else.
    """
    from dataclasses import replace

    from edgewam.data.dataset import Dataset
    from edgewam.training.policy_artifact import load_policy

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_manifest(out, verify=False).kind != "bundle")):
        raise EdgewamError(f"'{out}' exists and is no bundle. Give another path with --out.")
    if checkpoint.is_file():
        raise EdgewamError(
            f"'{checkpoint}' is a file. Shrinking starts from a directory; make one of a released checkpoint with: "
            f'edgewam convert {checkpoint} POLICY --vae VAE --stats dataset_stats.json --text ENCODER --prompt "..."'
        )
    loaded = load_policy(checkpoint)
    data = Dataset.open(dataset)
    check_fits(loaded, data)
    own = loaded.facts.num_action_steps
    steps = num_action_steps or (own if loaded.manifest.kind == "student" else min(2, own))
    distillation = None
    if loaded.manifest.kind == "policy" and steps < own:
        recipe = distillation_for(loaded)
        loop = replace(recipe.loop, threads=threads, device=device, **({"minutes": minutes} if minutes else {}))
        trajectories = replace(recipe.trajectories, **({"num_batches": batches} if batches else {}))
        distillation = replace(
            recipe, teacher=checkpoint, dataset=dataset, latents=None, init_from=None, loop=loop, trajectories=trajectories,
            num_action_steps=steps,
        )  # fmt: skip
    return Shrink(
        checkpoint=checkpoint, origin=loaded.manifest, own_steps=own, target=target, out=out, dataset=dataset,
        dataset_digest=data.digest, num_action_steps=steps, distillation=distillation, threads=threads,
        num_frames=num_frames, num_timed=num_timed,
    )  # fmt: skip


def distillation_for(teacher: LoadedPolicy) -> OdeDistillation:
    """How a teacher is distilled where nobody says otherwise, without data: the recipe of `small` for what was trained as that
    was, the released one for everything else (facts/aha_wam.md 7; ours limits it by minutes, not epochs).
    """
    from edgewam.distill.ode import OdeDistillation
    from edgewam.models.text_sources import SMALL
    from edgewam.recipes.small import small_cpu

    if teacher.facts.text_encoder == SMALL and teacher.facts.sampler_tables == "float32":
        return small_cpu(teacher.path.parent).distillation
    # the same dtype, so that a student need only store what it learnt
    return OdeDistillation(teacher=teacher.path, dataset=teacher.path, lr=_RELEASED_RATE, weights_dtype=teacher.storage)


def check_fits(policy: LoadedPolicy, data: Dataset) -> None:
    """Before hours of work: states, actions, cameras and instructions of the dataset are those of the policy.

    Raises:
        EdgewamError: they are not; the message says what to do.
    """
    from edgewam.core.observation import composition_named
    from edgewam.models.text_sources import SMALL

    data.check_fits(f"'{policy.path}'", policy.sizes.proprio_dim, policy.sizes.action_dim, policy.facts.fps)
    composition_named(policy.facts.composition).chosen(data.cameras)
    missing = [task for task in data.tasks if task not in policy.prompts]
    if policy.facts.text_encoder != SMALL and missing:
        raise EdgewamError(
            f"'{policy.path}' has no embedding of {len(missing)} of the {len(data.tasks)} instructions in '{data.path}'. Add "
            f"each with: edgewam prompt add {policy.path} {shlex.quote(missing[0])} --text ENCODER"
        )


def shrink(plan: Shrink, report: Report | None = None) -> dict[str, Any]:
    """Walk the road from where it was left; returns what was won, as plain JSON.

    Raises:
        GateError: the bundle does not compute its reference's actions; it is not put in place, everything else is kept.
        EdgewamError: what a step refuses, or another shrink that works here.
    """
    from edgewam.recipes.shrink_result import require_gates, summary
    from edgewam.recipes.shrink_steps import steps_of

    steps = steps_of(plan)
    with _alone(plan.work):
        ran = []
        for number, step in enumerate(steps):
            left = [s.usual_seconds for s in steps[number:]]
            if not (why := step.why()):
                _tell(report, steps, number, left, 1.0, None, "done before")
                continue
            _tell(report, steps, number, left, 0.0, None, why)
            step.run(lambda f, s, note, n=number, rest=left: _tell(report, steps, n, rest, f, s, note))  # type: ignore[misc]
            again = step.why()
            assert not again, f"{step.name} has just run, but {again}"
            ran.append(step.name)
            if step.name == "validate":
                require_gates(plan)
        require_gates(plan)  # also when it ran, and failed, before
        _install(plan)
        return {**summary(plan), "ran": ran, "skipped": plan.skipped}


def is_in_place(plan: Shrink) -> bool:
    """Whether the bundle there is the candidate."""
    places = (plan.work / "bundle", plan.out)
    if not all((place / MANIFEST).exists() for place in places):
        return False
    return len({read_manifest(place, verify=False).digest for place in places}) == 1


def _install(plan: Shrink) -> None:
    if is_in_place(plan):
        return
    with replaced_directory(plan.out) as temporary:
        shutil.copytree(plan.work / "bundle", temporary, dirs_exist_ok=True)
        read_manifest(temporary, kind="bundle")  # every byte of the copy


def _tell(
    report: Report | None, steps: list[Step], number: int, usual: list[float], fraction: float, seconds: float | None, note: str
) -> None:
    if report is not None:
        own = usual[0] * (1.0 - fraction) if seconds is None else seconds
        report(steps[number], number, len(steps), fraction, own + sum(usual[1:]), note)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Nobody else works in this directory.  The lock ends with the process, however that ends."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EdgewamError(f"Another shrink works in '{work}' right now. Wait for it, or give another --out.") from None
        yield

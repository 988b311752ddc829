"""`edgewam shrink` on a tiny policy: cut wherever it hurts, it goes on; what did not change is not done again.

One road is walked in all, through real processes that are killed on the way; everything else starts from copies of it.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import EdgewamError, GateError
from tests.cli.command import Done, here, leftovers, started

torch = pytest.importorskip("torch", reason="needs edgewam[train]")

from edgewam.recipes.shrink import Shrink, plan_shrink, shrink  # noqa: E402
from edgewam.recipes.shrink_steps import steps_of  # noqa: E402
from edgewam.recipes.shrink_targets import TARGETS, target_named  # noqa: E402

# The first test waits for the whole road: five processes and three compilations, about a minute on one idle core.
pytestmark = pytest.mark.timeout(900)
MINUTES, FRAMES, TIMED = 0.1, 1, 10
# The step files of the bundle hold graphs of fixed size beside their weights, and tiny weights are smaller than those.
BUNDLE_OVERHEAD_BYTES = 2_000_000


@dataclass(frozen=True)
class Road:
    """A tiny teacher with its dataset, and the bundle that a much interrupted shrink made of it."""

    teacher: Path
    dataset: Path
    out: Path
    finished: dict[str, Any]
    student_at: int  # when the student was written, ns
    planned: dict[str, Any]  # what --dry-run said before

    def arguments(self, out: Path) -> list[object]:
        return [
            "shrink", self.teacher, "--dataset", self.dataset, "--target", "torch", "--out", out, "--minutes", MINUTES,
            "--batches", 2, "--frames", FRAMES, "-n", TIMED, "--threads", 1,
        ]  # fmt: skip

    def plan(self, out: Path, **changes: Any) -> Shrink:
        settings = {
            "minutes": MINUTES, "batches": 2, "threads": 1, "num_frames": FRAMES, "num_timed": TIMED, "dataset": self.dataset
        } | changes  # fmt: skip
        dataset = settings.pop("dataset")
        return plan_shrink(self.teacher, TARGETS["torch"], out, dataset, **settings)

    def copied(self, place: Path) -> Path:
        """The finished work of this road beside a new `out` that is not there yet; relative paths stay good."""
        out = self.out.parent / place.name
        shutil.copytree(f"{self.out}.shrink", f"{out}.shrink")
        return out


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """Shrink in processes that are killed while they make the caches, interrupted while they train, and killed once more at the
    boundary between two steps; the last one goes on in this process."""
    from edgewam.training.policy import train_policy
    from tests.training import tiny

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("shrink")
    dataset, vae = tiny.dataset_at(root / "dataset"), tiny.vae_at(root / "vae")
    loop = replace(tiny.LOOP, steps=20, warmup_steps=5)
    train_policy(tiny.policy_training(dataset, vae, root / "latents", loop=loop), root / "teacher")
    out = root / "bundle"
    blank = Road(root / "teacher", dataset.path, out, {}, 0, {})
    arguments, work = blank.arguments(out), root / "bundle.shrink"
    files = sorted(root.rglob("*"))
    planned = here(*arguments, "--dry-run", "--json").ok().json
    assert sorted(root.rglob("*")) == files, "a plan writes nothing"

    training = work / "student.training"
    _cut(arguments, signal.SIGKILL, lambda: (training / "trajectories").exists())
    assert not (training / "checkpoint.json").exists() and not (work / "student").exists()
    log = training / "log.jsonl"
    _cut(arguments, signal.SIGINT, lambda: log.exists() and log.stat().st_size > 0)
    assert (training / "checkpoint.json").exists() and not (work / "student").exists()
    _cut(arguments, signal.SIGKILL, lambda: (work / "student/manifest.json").exists())
    assert not (work / "bundle").exists() and not out.exists()
    written = (work / "student/manifest.json").stat().st_mtime_ns
    finished = here(*arguments, "--json").ok()
    return Road(root / "teacher", dataset.path, out, {**finished.json, "err": finished.err}, written, planned)


def _cut(arguments: list[object], number: signal.Signals, moment: Any) -> None:
    with started(*arguments) as family:
        family.wait_until(moment)
        done = family.cut(number)
        assert family.none_left()
    assert done.code != 0 and done.out == ""
    if number == signal.SIGINT:
        assert "same command again" in done.err and "Traceback" not in done.err, done.err


def _refused(done: Done, *phrases: str) -> None:
    message = done.err[done.err.rfind("edgewam: ") :]
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err
    for phrase in phrases:
        assert phrase in message, message


def test_a_shrink_that_was_cut_three_times_ends_with_a_valid_bundle(road: Road) -> None:
    from edgewam.runtime.bundle import Bundle

    bundle = Bundle.open(road.out, threads=1)  # runs its golden vectors
    assert bundle.digest == road.finished["digest"] == read_manifest(Path(f"{road.out}.shrink") / "bundle").digest
    assert bundle.manifest is not None and bundle.manifest.config["num_action_steps"] == 2
    student = read_manifest(Path(f"{road.out}.shrink") / "student")
    assert bundle.manifest.parents["student"] == student.digest
    assert student.parents["teacher"] == read_manifest(road.teacher).digest
    assert not leftovers(road.out.parent)


def test_the_student_was_not_distilled_again(road: Road) -> None:
    work = Path(f"{road.out}.shrink")
    assert road.finished["ran"] == ["compile", "validate", "profile"]
    assert (work / "student/manifest.json").stat().st_mtime_ns == road.student_at
    steps = [json.loads(line)["step"] for line in (work / "student/log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[0] == 0, "no step was trained twice or left out"


def test_the_table_says_what_was_won_and_progress_names_every_step(road: Road) -> None:
    found, err = road.finished, road.finished["err"]
    assert (found["before"]["num_action_steps"], found["after"]["num_action_steps"]) == (10, 2)
    p50 = [found[side]["L_chunk"]["p50_ms"] for side in ("before", "after")]
    assert min(p50) > 0 and found["speedup"] == pytest.approx(p50[0] / p50[1])
    assert set(found["excess_error"]) == {"reference", "teacher"}
    assert 0 < found["excess_error"]["teacher"]["median"] < 0.5
    assert found["contract"]["artifact"] == found["digest"]
    assert found["skipped"] == {"quantize": "target torch stays in float32"}
    for number, name in enumerate(("distill: done before", "compile: not done yet", "validate: ", "profile: "), 1):
        assert f"[{number}/4] {name}" in err, err
    assert "left" in err and "times faster" in err and "action steps" in err


def test_a_dry_run_names_every_step_with_its_needs(road: Road) -> None:
    steps = {step["name"]: step for step in road.planned["steps"]}
    assert list(steps) == ["latents", "trajectories", "distill", "compile", "validate", "profile", "place"]
    assert all(step["inputs"] and step["outputs"] and step["seconds_source"] for step in steps.values())
    assert steps["distill"]["seconds"] == pytest.approx(60 * MINUTES)
    assert steps["distill"]["peak_memory_bytes"] > 0
    total = road.planned["total"]
    assert total["seconds"] == pytest.approx(sum(step["seconds"] for step in steps.values()))
    assert total["peak_memory_bytes"] == max(step["peak_memory_bytes"] for step in steps.values())


def test_the_disk_that_the_plan_names_is_what_was_written(road: Road) -> None:
    from edgewam.core.estimate import tree_bytes

    work = Path(f"{road.out}.shrink")
    disk = {step["name"]: step["disk"] for step in road.planned["steps"]}
    training = work / "student.training"
    assert disk["latents"]["latents"] == sum(tree_bytes(file) for file in (training / "latents").glob("*.f16"))
    assert disk["trajectories"]["trajectories"] == tree_bytes(training / "trajectories/states.f32")
    (shards,) = training.glob("checkpoint.?")
    for planned, file in (("checkpoint", shards), ("student", work / "student/model.safetensors")):
        assert disk["distill"][planned] <= tree_bytes(file) <= disk["distill"][planned] + 100_000  # names and shapes
    assert disk["compile"]["bundle"] <= tree_bytes(work / "bundle") <= disk["compile"]["bundle"] + BUNDLE_OVERHEAD_BYTES


def test_when_nothing_changed_nothing_runs(road: Road) -> None:
    before = {path: path.stat().st_mtime_ns for path in road.out.parent.rglob("*") if path.is_file()}
    del before[Path(f"{road.out}.shrink") / ".lock"]
    done = here(*road.arguments(road.out), "--json").ok()
    assert done.json["ran"] == [] and done.json["digest"] == road.finished["digest"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    planned = here(*road.arguments(road.out), "--dry-run", "--json").ok().json
    assert all(step["settled"] for step in planned["steps"]) and planned["total"]["seconds"] == 0


@pytest.fixture
def changed(road: Road) -> Iterator[Any]:
    """(name of the first step that has to run, why) for a changed plan; later steps follow from it."""

    def first(**changes: Any) -> tuple[str, str]:
        plan = road.plan(road.out, **changes)
        return next((step.name, why) for step in steps_of(plan) if (why := step.why()))

    yield first


def test_a_changed_setting_or_input_redoes_the_steps_that_depend_on_it(road: Road, changed: Any) -> None:
    from tests.training import tiny

    assert not any(step.why() for step in steps_of(road.plan(road.out)))
    assert changed(num_timed=11) == ("profile", "made with another n")
    assert changed(num_frames=2) == ("validate", "made with another num_frames")
    assert changed(num_action_steps=1) == ("distill", "made with another rollout_steps")  # it learns through its own
    assert changed(minutes=0.12) == ("distill", "made with another loop.minutes")
    other = tiny.dataset_at(road.out.parent / "other", 4)
    assert changed(dataset=other.path) == ("distill", "made with another dataset")


def test_only_the_changed_step_runs_and_the_bundle_stays(road: Road, tmp_path: Path) -> None:
    out = road.copied(tmp_path / "timed")
    result = shrink(road.plan(out, num_timed=12))
    assert result["ran"] == ["profile"] and result["after"]["L_chunk"]["n"] == 12
    assert result["digest"] == road.finished["digest"] == read_manifest(out).digest


def test_a_damaged_intermediate_is_noticed(road: Road, tmp_path: Path) -> None:
    out = road.copied(tmp_path / "damaged")
    weights = Path(f"{out}.shrink/student/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    assert next(step.why() for step in steps_of(road.plan(out))).startswith("damaged: ")


def test_a_distillation_from_something_else_starts_from_its_own_weights(road: Road, tmp_path: Path) -> None:
    """What a cut one left is kept as far as it fits: caches of the same situations, a checkpoint of the same settings."""
    from edgewam.recipes.shrink_steps import clear_stale_training

    out = road.copied(tmp_path / "stale")
    training = Path(f"{out}.shrink/student.training")
    clear_stale_training(road.plan(out))
    assert (training / "checkpoint.json").exists()
    clear_stale_training(road.plan(out, minutes=0.12))
    assert not (training / "checkpoint.json").exists() and (training / "trajectories/states.f32").exists()
    clear_stale_training(road.plan(out, minutes=0.12, batches=3))
    assert not training.exists()


def test_a_failed_gate_keeps_everything_but_the_bundle(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewam.compile.excess_error import DISTILLED_LIMITS, ExcessError
    from edgewam.compile.validate import ValidationReport

    out = road.copied(tmp_path / "failed")
    shutil.rmtree(f"{out}.shrink/validation")

    def far_off(bundle: Path, reference: Path, *rest: Any, **names: Any) -> ValidationReport:
        one = np.ones(1)
        actions = ExcessError(3.0 * one, 3.0 * one, one, 3.0 * one, 8, 0.01)
        return ValidationReport("candidate", str(reference), None, actions, DISTILLED_LIMITS)

    monkeypatch.setattr("edgewam.recipes.validation.validate_against", far_off)
    _refused(here(*road.arguments(out)), "was not put in place", "against the teacher", "Excess error ratio", "--minutes")
    assert not out.exists() and read_manifest(f"{out}.shrink/bundle").kind == "bundle"
    monkeypatch.undo()
    with pytest.raises(GateError, match="not put in place"):  # it was judged, and is not judged again
        shrink(road.plan(out))
    assert not out.exists()
    assert read_manifest(f"{out}.shrink/validation").measured["passed"] is False


def test_an_older_bundle_stays_until_the_new_one_is_whole(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = road.copied(tmp_path / "older")
    shrink(road.plan(out))
    old = (out / "manifest.json").read_bytes()
    shutil.rmtree(f"{out}.shrink/validation")

    def crash(*arguments: Any, **names: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgewam.recipes.validation.validate_against", crash)
    done = here(*road.arguments(out))
    assert done.code == 1 and "ree some space" in done.err
    assert (out / "manifest.json").read_bytes() == old


def test_two_shrinks_do_not_work_in_one_place(road: Road, tmp_path: Path) -> None:
    import fcntl

    out = road.copied(tmp_path / "twice")
    with open(f"{out}.shrink/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EdgewamError, match="Another shrink works"):
            shrink(road.plan(out))


def test_wrong_inputs_are_refused_before_anything_is_done(road: Road, tmp_path: Path) -> None:
    released = Path(__file__).resolve().parents[1] / "golden/aha_wam/checkpoint_ahawam.pt"
    out, data = tmp_path / "out", ["--dataset", road.dataset]
    unknown = ["shrink", road.teacher, "--target", "toaster", "--out", out, *data]
    _refused(here(*unknown), "Unknown target 'toaster'", "cpu (", "cpu-int8 (", "torch (")
    plain = ["--target", "torch", "--out", out]
    _refused(here("shrink", road.teacher, *plain), "--dataset", "edgewam collect")
    _refused(here("shrink", road.teacher, *plain, "--dataset", tmp_path / "none"), "does not exist", "edgewam collect")
    _refused(here("shrink", road.out.parent / "vae", *plain, *data), "is a vae, but a policy is needed")
    _refused(here("shrink", road.out, *plain, *data), "is a bundle, but a policy is needed")
    _refused(here("shrink", released, *plain, *data), "is a file", "edgewam convert")
    _refused(here("shrink", road.teacher, "--target", "torch", "--out", road.dataset, *data), "Give another path")
    assert not out.exists() and not list(tmp_path.iterdir())
    assert not Path(f"{road.dataset}.shrink").exists()


def test_a_target_that_cannot_be_made_here_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest))
    with pytest.raises(EdgewamError, match=r"Target 'cpu' cannot be made here.*pip install 'edgewam\[onnx\]'"):
        target_named("cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "modelopt" else found(name, *rest))
    with pytest.raises(EdgewamError, match=r"modelopt.*pip install 'edgewam\[quant\]'"):
        target_named("cpu-int8")
    assert target_named("torch").backend == "eager"


def test_a_student_is_not_distilled_again(road: Road) -> None:
    student = Path(f"{road.out}.shrink/student")
    plan = plan_shrink(student, TARGETS["torch"], road.out.parent / "from_student", road.dataset)
    assert plan.distillation is None and plan.num_action_steps == 2
    assert "student already" in plan.skipped["distill"]
    assert [step.name for step in steps_of(plan)] == ["compile", "validate", "profile"]
    quantised = plan_shrink(road.teacher, TARGETS["cpu-int8"], road.out.parent / "int8", road.dataset)
    assert [step.name for step in steps_of(quantised)] == ["distill", "quantize", "compile", "validate", "profile"]
    ten = plan_shrink(road.teacher, TARGETS["torch"], road.out.parent / "ten", road.dataset, num_action_steps=10)
    assert ten.distillation is None and "need no student" in ten.skipped["distill"]

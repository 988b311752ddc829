"""Every command once for real, each long one cut on the way: the same command then finishes, and the result is whole.

One dataset of two demonstrations and slices of two steps from the shipped weights; compile, validate and evaluate are real.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from edgewam.cli import _stop_says_how_to_go_on
from edgewam.compile.compile import compile_bundle
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.robots.aloha_task import load_task
from tests.cli.command import apart, here, leftovers, started
from tests.cli.conftest import EPISODES, FIRST_SEED
from tests.compile.toy import toy_plan

TINY = Path(__file__).resolve().parents[1] / "golden/aha_wam/checkpoint_ahawam.pt"


def cut(arguments: list[object], number: signal.Signals, moment) -> None:
    """Start a command, end it in the middle by a signal, and check that it says so and that nothing of it lives on."""
    with started(*arguments) as family:
        family.wait_until(moment)
        done = family.cut(number)
        assert family.none_left()
    assert done.code != 0 and done.out == "", done
    if number == signal.SIGINT:
        assert "edgewam: Stopped" in done.err and "same command again" in done.err, done.err
        assert "Traceback" not in done.err


def test_an_interrupt_that_a_library_turns_into_another_error_is_still_an_interrupt():
    """ctypes raises ArgumentError when Ctrl-C arrives while it converts an argument; an error of its own passes unchanged."""
    with pytest.raises(EdgewamError, match=r"Stopped.*same command again"), _stop_says_how_to_go_on():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ctypes.ArgumentError(f"argument 4: {error!r}") from None
    with pytest.raises(ctypes.ArgumentError), _stop_says_how_to_go_on():
        raise ctypes.ArgumentError("argument 4")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cut_collection_goes_on_and_equals_an_uncut_one(number, dataset, tmp_path):
    out = tmp_path / "cube"
    arguments = ["collect", out, "--episodes", EPISODES, "--first-seed", FIRST_SEED, "--json"]
    cut(arguments, number, lambda: any((tmp_path / "cube.parts").glob("seed_*")))
    assert not out.exists()
    finished = apart(*arguments).ok().json
    assert finished["num_episodes"] == EPISODES and finished["num_recorded_now"] < EPISODES
    assert read_manifest(out).digest == read_manifest(dataset).digest
    assert [path.name for path in tmp_path.iterdir()] == ["cube"]
    assert here("collect", *arguments[1:]).ok().json["num_recorded_now"] == 0


def test_a_cut_training_goes_on_and_its_policy_is_whole(dataset, shipped, tmp_path):
    out = tmp_path / "teacher"
    arguments = ["train", dataset, out, "--init-from", shipped / "teacher", "--steps", 2, "--threads", 1, "--json"]
    cut(arguments, signal.SIGKILL, lambda: (tmp_path / "teacher.training/latents").exists())
    assert not out.exists()
    log = tmp_path / "teacher.training/log.jsonl"
    cut(arguments, signal.SIGINT, lambda: log.exists() and log.stat().st_size > 0)
    assert not out.exists() and (tmp_path / "teacher.training/checkpoint.json").exists()
    measured = here(*arguments).ok().json
    manifest = read_manifest(out, kind="policy")
    assert measured["steps"] == manifest.measured["steps"] == 2
    assert manifest.parents["init_from"] == read_manifest(shipped / "teacher").digest
    assert manifest.parents["dataset"] == read_manifest(dataset).digest
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "a step was logged twice"
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_a_vae_is_trained(dataset, shipped, tmp_path):
    out = tmp_path / "vae"
    init = ["--init-from", shipped / "vae"]
    measured = here("train", dataset, out, "--part", "vae", *init, "--steps", 2, "--threads", 1, "--json").ok().json
    assert measured["steps"] == 2
    assert read_manifest(out, kind="vae").parents["dataset"] == read_manifest(dataset).digest


@pytest.mark.slow
def test_a_cut_distillation_goes_on_and_its_student_names_its_teacher(dataset, shipped, tmp_path):
    out = tmp_path / "student"
    slice_ = ["--init-from", shipped / "student", "--batches", 2, "--steps", 2, "--threads", 1, "--json"]
    arguments = ["distill", shipped / "teacher", dataset, out, *slice_]
    cut(arguments, signal.SIGKILL, lambda: (tmp_path / "student.training/trajectories").exists())
    done = here(*arguments).ok()
    assert done.json["steps"] == 2 and "undistilled" in done.err
    manifest = read_manifest(out, kind="student")
    assert manifest.parents["teacher"] == read_manifest(shipped / "teacher").digest
    assert manifest.config["trajectories"]["focused"] == 1  # of two, as the recipe says where a student is started from
    assert not leftovers(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "steps"), [([], 10), (["--released"], 16)])
def test_the_target_is_the_teachers_deployed_steps_or_the_released_grid(flags, steps, dataset, shipped, tmp_path):
    planned = here("distill", shipped / "teacher", dataset, tmp_path / "student", *flags, "--dry-run", "--json").ok()
    assert f" {steps} teacher steps each" in json.dumps(planned.json)


@pytest.fixture(scope="module")
def bundle(shipped, tmp_path_factory) -> Path:
    """The shipped student compiled here, after the first attempt was killed while it wrote."""
    directory = tmp_path_factory.mktemp("compiled")
    arguments = ["compile", shipped / "student", directory / "bundle", "--threads", 1, "--json"]
    cut(arguments, signal.SIGKILL, lambda: any(directory.glob(".bundle.partial/stages/*")))
    assert not (directory / "bundle").exists()
    done = here(*arguments).ok()
    assert done.json["bundle"] == str(directory / "bundle")
    assert [path.name for path in directory.iterdir()] == ["bundle"]
    return directory / "bundle"


@pytest.mark.slow
def test_compiling_the_shipped_student_gives_the_shipped_stages(bundle, shipped):
    made, ours = read_manifest(bundle, kind="bundle"), read_manifest(shipped / "bundle", kind="bundle")
    assert made.parents == ours.parents
    assert [entry["stage"] for entry in made.config["stages"]] == [entry["stage"] for entry in ours.config["stages"]]
    assert max(program["relative"] for program in made.measured["programs"].values()) < 1e-4


def test_a_dry_run_names_every_stage_and_writes_nothing(shipped, tmp_path):
    done = here("compile", shipped / "student", tmp_path / "out", "--backend", "eager", "--dry-run", "--json").ok()
    assert {"image_encoder", "planner", "denoise"} <= set(done.json["stages"])
    assert done.json["memory_estimate_bytes"] > done.json["weight_bytes"] > 1e6
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_compiled_bundle_passes_both_gates(bundle, shipped, dataset):
    done = here("validate", bundle, shipped / "student", dataset, "--frames", 1, "--threads", 1, "--json").ok()
    assert "gate 1, stages: passed" in done.err and "gate 2" in done.err
    assert done.json["actions"] is not None and done.json["stages"] is not None


def test_a_profile_has_every_figure_of_the_contract(shipped):
    done = here("profile", shipped / "bundle", "-n", 3, "--warmup", 1, "--threads", 1, "--json").ok()
    assert {"prompt", "plan", "act", "L_chunk", "L_prefill", "L_compose"} <= set(done.json)
    for profile in done.json.values():
        assert 0 < profile["total"]["p50_ms"] <= profile["total"]["max_ms"]
    assert "p50" in done.err


def test_inspect_explains_artifacts_datasets_and_released_files(shipped, dataset):
    found = here("inspect", "--json").ok()
    assert found.json["kind"] == "bundle" and "denoise" in found.err
    assert found.json["digest"] == read_manifest(shipped / "bundle").digest
    assert here("inspect", dataset, "--json").ok().json["kind"] == "dataset"
    assert here("inspect", shipped / "student", "--json").ok().json["kind"] == "student"
    released = here("inspect", TINY, "--json").ok().json
    assert released["kind"] == "released checkpoint" and released["groups"]["mot.mixtures.action"]["values"] > 0


def test_an_evaluation_goes_on_from_its_results_and_compares(dataset, tmp_path):
    results = tmp_path / "results.jsonl"
    arguments = ["evaluate", "--seeds", 3, "--first-seed", 5000, "--workers", 1, "--results", results, "--json"]
    cut(arguments, signal.SIGKILL, lambda: results.exists() and results.read_text().count("\n") >= 2)
    kept = results.read_text().splitlines()[1]
    cut([*arguments[:-1]], signal.SIGINT, lambda: results.read_text().count("\n") >= 3)
    done = here(*arguments).ok()
    assert [episode["seed"] for episode in done.json["episodes"]] == [5000, 5001, 5002]
    assert done.json["strict"]["n"] == 3 and json.loads(kept) in done.json["episodes"]
    compared = here("evaluate", "--compare", results, results, "--json")
    assert compared.code == 1, "three pairs cannot show non-inferiority"
    assert compared.json["n"] == 3 and compared.json["difference"] == 0
    assert "NOT shown to be non-inferior" in compared.err


def test_two_bundles_of_one_policy_are_timed_in_turns(shipped, tmp_path):
    bundle = shipped / "bundle"
    done = here("profile", bundle, "--against", bundle, "-n", 10, "--warmup", 1, "--threads", 1, "--json").ok()
    measured = {row["what"]: row for row in done.json["measured"]}
    assert {"L_chunk", "L_prefill", "act denoise", "plan planner"} <= measured.keys()
    for row in measured.values():
        assert row["times_as_fast"] == pytest.approx(row["against"]["p50_ms"] / row["bundle"]["p50_ms"])
    assert measured["L_chunk"]["bundle"]["n"] == 10 and done.json["contract"]["steps"] == 2
    other = compile_bundle(toy_plan(), tmp_path / "toy")
    refused = here("profile", bundle, "--against", other, "-n", 10, "--threads", 1)
    assert refused.code == 1 and "other programs" in refused.err and "same policy" in refused.err


def test_a_run_counts_its_ticks(dataset):
    done = apart("run", "--seconds", 3, "--threads", 1, "--json").ok()
    report = done.json
    assert report["is_complete"] and report["violations"] == report["violations_in_log"] == 0
    assert report["ticks"] == report["sent"] + report["missed"] == 150
    assert report["chunks_applied"] > 0 and "control_hz" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cut_run_leaves_no_process_and_no_shared_memory(number, dataset):
    before = set(Path("/dev/shm").iterdir())
    with started("run", "--seconds", 60, "--threads", 1) as family:
        family.wait_until(lambda: len(family.pids()) >= 5)  # itself, io, driver, camera, engine
        time.sleep(2.0)
        done = family.cut(number)
        assert done.code != 0
        assert family.none_left()
    assert set(Path("/dev/shm").iterdir()) <= before


def test_prompts_are_listed_and_added(shipped, tmp_path):
    copy = shutil.copytree(shipped / "bundle", tmp_path / "bundle")
    known = here("prompt", "list", copy).ok().out.splitlines()
    assert known == sorted(load_task(task).prompt for task in ("transfer_cube", "transfer_cube_random", "insertion"))
    here("prompt", "add", copy, "fold the towel").ok()
    assert sorted([*known, "fold the towel"]) == here("prompt", "list", copy).ok().out.splitlines()
    again = here("prompt", "add", copy, "fold the towel")
    assert again.code == 1 and "knows 'fold the towel' already" in again.err
    here("profile", copy, "-n", 1, "--warmup", 0, "--threads", 1).ok()

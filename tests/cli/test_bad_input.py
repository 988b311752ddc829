"""What a user can get wrong in one command, and the sentence that says what to do about it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgewam.core.artifacts import read_manifest, write_artifact
from edgewam.robot_bridge.evaluation.results import FORMAT
from tests.cli.command import Done, apart, here, leftovers

TINY = Path(__file__).resolve().parents[1] / "golden/aha_wam/checkpoint_ahawam.pt"


def refused(done: Done, *phrases: str) -> None:
    """Exit 1, nothing on stdout, and one message for people that holds every phrase."""
    message = done.err[done.err.rfind("edgewam: ") :]
    assert done.code == 1 and done.out == "", done
    assert "Traceback" not in done.err
    for phrase in phrases:
        assert re.search(phrase, message), f"{phrase!r} is not in {message!r}"


@pytest.mark.parametrize("command", ["profile", "inspect", "evaluate", "run"])
def test_a_bundle_that_is_not_there_is_named(command, tmp_path):
    refused(here(command, tmp_path / "nothing"), "nothing' does not exist", "Run the step that makes it")


@pytest.mark.parametrize("command", ["profile", "evaluate", "run"])
def test_an_artifact_of_another_kind_is_no_bundle(command, shipped):
    refused(here(command, shipped / "student"), "is a student, but a bundle is needed")


@pytest.mark.parametrize("command", ["profile", "inspect", "evaluate", "run", "prompt list"])
def test_a_truncated_bundle_is_refused_by_every_command_that_reads_it(command, shipped, tmp_path):
    bundle = shutil.copytree(shipped / "bundle", tmp_path / "bundle")
    file = bundle / "prompts.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    results = ["--results", tmp_path / "results.jsonl"] if command == "evaluate" else []
    refused(here(*command.split(), bundle, *results), r"prompts\.safetensors' does not match its digest", "Copy it again")


def test_a_directory_that_is_no_artifact_is_refused(tmp_path):
    refused(here("inspect", tmp_path), "has no manifest.json, so it is no edgewam artifact")
    (tmp_path / "manifest.json").write_text('{"name": "of another program"}')
    refused(here("inspect", tmp_path), "format None")


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_truncated_weights_are_refused(part, shipped, tmp_path):
    shutil.copytree(shipped, tmp_path / "small", ignore=shutil.ignore_patterns("bundle"))
    file = tmp_path / "small" / part / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    refused(here("compile", tmp_path / "small" / part, tmp_path / "out"), r"model\.safetensors' does not match its digest")
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(protocol, tmp_path):
    import torch

    bare, packed, mark = tmp_path / "bare.pt", tmp_path / "packed.pt", tmp_path / "it-ran"
    payload = {"mot": {"w": _Evil(f"touch {mark}")}}
    bare.write_bytes(pickle.dumps(payload, protocol))
    torch.save(payload, packed, pickle_protocol=protocol)
    for path in (bare, packed):
        refused(here("inspect", path), "truncated or no plain tensor checkpoint", "Download it again")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_truncated_or_foreign_checkpoint_file_is_refused(content, tmp_path):
    path = tmp_path / "released.pt"
    path.write_bytes(TINY.read_bytes()[:100_000] if content is None else content)
    refused(here("inspect", path), "truncated or no plain tensor checkpoint")


def test_a_checkpoint_of_another_model_is_called_unknown_and_not_converted(tmp_path):
    import torch

    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.pt")
    assert here("inspect", tmp_path / "other.pt", "--json").ok().json["family"] == "unknown"
    refused(here("convert", tmp_path / "other.pt", tmp_path / "out"), "holds state_dict.weight", "edgewam inspect")
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


def test_weights_of_other_shapes_are_refused_by_name(dataset, shipped, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(shipped / "vae", tmp_path / "vae")
    manifest = read_manifest(shipped / "teacher")
    arguments = {"config": manifest.config, "parents": manifest.parents, "measured": dict(manifest.measured)}
    with write_artifact(tmp_path / "teacher", manifest.kind, **arguments) as directory:
        for name in manifest.files:
            shutil.copyfile(shipped / "teacher" / name, directory / name)
        tensors = load_file(directory / "model.safetensors")
        name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
        tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])
        save_file(tensors, directory / "model.safetensors")
    for arguments in (
        ("train", dataset, tmp_path / "out", "--init-from", tmp_path / "teacher", "--steps", 1),
        ("distill", tmp_path / "teacher", dataset, tmp_path / "out", "--steps", 1),
        ("compile", tmp_path / "teacher", tmp_path / "out"),
    ):
        refused(here(*arguments), f"'{re.escape(name)}' is .* but the model has")
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


def test_nan_in_a_dataset_is_refused_with_episode_and_column(dataset, shipped, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = shutil.copytree(dataset, tmp_path / "cube")
    path = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[10, 3] = np.nan
    column = table.schema.get_field_index("action")
    pq.write_table(table.set_column(column, "action", pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 14)), path)
    teacher = shipped / "teacher"
    for arguments in (
        ("train", copy, tmp_path / "out", "--steps", 1),
        ("train", copy, tmp_path / "out", "--part", "vae", "--steps", 1),
        ("distill", teacher, copy, tmp_path / "out", "--steps", 1),
        ("validate", shipped / "bundle", shipped / "student", copy),
    ):
        refused(here(*arguments), "episode 0, column 'action'")
    assert not (tmp_path / "out").exists()


UNKNOWN = {
    "compile {student} {out} --backend tensorflow": ("Unknown backend 'tensorflow'", "Available: .*onnxruntime"),
    "distill {teacher} {dataset} {out} --method magic": ("Unknown distiller 'magic'", "Available: ode"),
    "train {dataset} {out} --new-stats": ("--new-stats is for a policy with --init-from",),
    "train {dataset} {out} --part head": ("Unknown part 'head'", "Available: policy, vae"),
    "collect {out} --robot toaster": ("No demonstrator for robot 'toaster'", "Available: aloha_sim"),
    "collect {out} --style wild": ("wild", "plain"),
    "collect {out} --task juggle": ("Unknown task 'juggle'", "Available: insertion, transfer_cube, transfer_cube_random"),
    "collect {out} --task insertion --style wild": ("Unknown expert style 'wild'", "Available: plain, multimodal"),
    "evaluate {bundle} --robot toaster": ("Unknown robot 'toaster'", "Available: .*aloha_sim"),
    "evaluate {bundle} --task juggle": ("Unknown task 'juggle'", "Available: insertion, transfer_cube"),
    "evaluate {bundle} --seeds 1 --ablate eyes": ("cannot run without 'eyes'", "memory, router"),
    "run {bundle} --robot toaster": ("Unknown robot 'toaster'", "Available: .*aloha_sim"),
    "run {bundle} --task juggle": ("Unknown task 'juggle'", "Available: insertion, transfer_cube"),
    "run {bundle} --robot tests.robot_bridge.fakes --task juggle": ("has no tasks", "Leave the task 'juggle' out"),
    "run {bundle} --seconds 1 --prompt dance": ("no embedding of the prompt 'dance'", "edgewam prompt add"),
    "validate {bundle} {student} {dataset} --prompt dance": ("dance",),
    "train {dataset} {out} --device tpu --steps 1": ("Unknown device 'tpu'", "Available: cpu, cuda"),
    "distill {teacher} {dataset} {out} --device cuda:99": ("cuda:99", "--device cpu"),
}  # fmt: skip


@pytest.mark.parametrize("line", UNKNOWN)
def test_an_unknown_name_lists_what_there_is(line, shipped, dataset, tmp_path):
    places = {name: shipped / name for name in ("teacher", "student", "bundle")} | {"out": tmp_path / "out", "dataset": dataset}
    refused(here(*(word.format_map(places) for word in line.split())), *UNKNOWN[line])
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


WRONG_KIND = {
    "train {nothing} {out}": ("nothing", "edgewam collect"),
    "train {teacher} {out}": ("teacher",),
    "train {dataset} {out} --vae {teacher}": ("is a policy, but a vae is needed",),
    "train {dataset} {out} --init-from {vae}": ("is a vae, but a policy is needed",),
    "distill {vae} {dataset} {out}": ("is a vae, but a policy is needed",),
    "distill {teacher} {nothing} {out}": ("nothing", "edgewam collect"),
    "compile {dataset} {out}": ("is a dataset, but a policy is needed",),
    "compile {bundle} {out}": ("is a bundle, but a policy is needed",),
    "validate {bundle} {vae} {dataset}": ("was not compiled from", "Give the policy that it was compiled from"),
    "validate {bundle} {student} {nothing}": ("nothing", "edgewam collect"),
    "prompt list {vae}": ("is a vae, but a bundle or a policy is needed",),
    "prompt add {vae} again": ("is a vae, but a bundle or a policy is needed",),
    "evaluate --compare {nothing} {nothing}": ("Cannot read results", "Run edgewam evaluate"),
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG_KIND)
def test_an_input_of_the_wrong_kind_is_refused_with_what_is_needed(line, shipped, dataset, tmp_path):
    places = {name: shipped / name for name in ("vae", "teacher", "student", "bundle")}
    places |= {"out": tmp_path / "out", "dataset": dataset, "nothing": tmp_path / "nothing"}
    refused(here(*(word.format_map(places) for word in line.split())), *WRONG_KIND[line])
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


SENSELESS = [
    "collect {out} --episodes 0", "collect {out} --first-seed -1", "train {dataset} {out} --steps -3",
    "train {dataset} {out} --minutes -1", "train {dataset} {out} --steps 0", "train {dataset} {out} --threads 0 --steps 1",
    "distill {teacher} {dataset} {out} --batches 0 --steps 1", "compile {student} {out} --steps 0",
    "compile {student} {out} --threads 0", "profile {bundle} -n 0", "profile {bundle} --threads 0",
    "profile {bundle} --warmup -1", "evaluate {bundle} --seeds 0", "evaluate {bundle} --workers 0",
    "evaluate {bundle} --latency-ticks 16", "evaluate {bundle} --execute-ticks 0", "evaluate {bundle} --first-seed -5 --seeds 1",
    "run {bundle} --seconds -1", "run {bundle} --replan-ticks 0", "run {bundle} --threads 0 --seconds 1",
    "run {bundle} --seed -1 --seconds 1", "validate {bundle} {student} {dataset} --frames 0",
]  # fmt: skip


@pytest.mark.timeout(60)  # most of these once meant hours of work
@pytest.mark.parametrize("line", SENSELESS)
def test_a_number_without_sense_is_refused(line, shipped, dataset, tmp_path):
    places = {name: shipped / name for name in ("teacher", "student", "bundle")} | {"out": tmp_path / "out", "dataset": dataset}
    done = here(*(word.format_map(places) for word in line.split()))
    assert done.code in (1, 2) and done.out == "" and "Traceback" not in done.err  # 2: refused with the usage
    assert re.search(r"Invalid value for|edgewam: .*\.$", done.err), done.err
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


def test_what_is_no_place_for_an_artifact_is_refused(shipped, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(here("compile", shipped / "student", file / "bundle", "--backend", "eager"), "file")
    refused(here("collect", file), "file")
    assert file.read_text() == "mine"


def test_results_of_another_policy_are_not_continued(shipped, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"format": FORMAT, "config": {"policy": "another"}}) + "\n")
    before = path.read_bytes()
    refused(here("evaluate", shipped / "bundle", "--seeds", 1, "--results", path), "another configuration", "Give another file")
    assert path.read_bytes() == before


def test_the_shell_sees_the_exit_code_and_one_line(tmp_path):
    done = apart("profile", tmp_path / "nothing")
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("edgewam: '") and done.err.count("\n") == 1


@pytest.mark.parametrize("line", ["fly", "run --speed 9", "compile", "profile -n many"])
def test_a_command_line_that_does_not_parse_exits_2_and_shows_the_usage(line):
    done = here(*line.split())
    assert done.code == 2 and done.out == "" and "Usage" in done.err

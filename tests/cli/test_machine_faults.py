"""What the machine can lack: a package of an extra, or room on the disk."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import apart, environment, leftovers
from tests.cli.conftest import FIRST_SEED

# Python reads this at its start: packages that are not there, for the search that every import goes through.
BLOCKER = """
import importlib.machinery, os
_blocked = os.environ["EDGEWAM_TEST_ABSENT"].split(",")
_found = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name.split(".")[0] in _blocked else _found(name, path, target)
)
"""


@pytest.fixture
def absent(tmp_path):
    """Environment of a machine on which some packages are not installed."""
    directory = tmp_path / "blocker"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(BLOCKER)

    def without(*packages: str) -> dict[str, str]:
        paths = f"{directory}:{environment()['PYTHONPATH']}"
        return {"PYTHONPATH": paths, "EDGEWAM_TEST_ABSENT": ",".join(packages)}

    return without


MISSING = [
    ("profile {bundle} -n 1", "onnxruntime", "onnx"),
    ("run {bundle} --seconds 1", "onnxruntime", "onnx"),
    ("run {bundle} --seconds 1", "mujoco", "sim"),
    ("evaluate {bundle} --seeds 1", "mujoco", "sim"),
    ("collect {out} --episodes 1", "mujoco", "sim"),
    ("collect {out} --episodes 1", "av", "train"),
    ("train {dataset} {out} --steps 1", "torch", "train"),
    ("train {dataset} {out} --steps 1", "pyarrow", "train"),
    ("distill {teacher} {dataset} {out} --steps 1", "torch", "train"),
    ("compile {student} {out} --threads 1", "onnxscript", "onnx"),
    ("compile {student} {out} --backend eager", "safetensors", "train"),
]


@pytest.mark.parametrize(("line", "package", "extra"), MISSING)
def test_a_missing_package_is_named_with_the_command_that_installs_it(line, package, extra, absent, shipped, dataset, tmp_path):
    places = {name: shipped / name for name in ("teacher", "student", "bundle")} | {"dataset": dataset, "out": tmp_path / "out"}
    done = apart(*(word.format_map(places) for word in line.split()), env=absent(package))
    assert done.code == 1 and done.out == ""
    assert f"'{package}'" in done.err and f"pip install 'edgewam[{extra}]'" in done.err, done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


def test_the_robot_side_needs_no_torch(absent, shipped, dataset):
    nothing = absent("torch", "onnx", "onnxscript", "pyarrow", "av", "tensorboard")
    assert apart("profile", "-n", 1, "--warmup", 0, "--json", env=nothing).ok().json["L_chunk"]
    assert (
        apart("profile", shipped / "bundle", "--against", shipped / "bundle", "-n", 5, "--json", env=nothing)
        .ok()
        .json["measured"]
    )
    assert apart("inspect", env=nothing).code == 0
    assert apart("run", "--seconds", 1, "--threads", 1, "--json", env=nothing).ok().json["is_complete"]


FULL = [
    "collect {out} --episodes 1",
    "train {dataset} {out} --steps 1 --threads 1",
    "distill {teacher} {dataset} {out} --batches 1 --steps 1 --threads 1",
    "compile {student} {out} --backend eager --threads 1",
    "prompt add {copy} again",
]


@pytest.mark.parametrize("line", FULL)
def test_when_nothing_larger_can_be_written_the_command_says_so_and_leaves_nothing_half_written(line, shipped, dataset, tmp_path):
    copy = shutil.copytree(shipped / "bundle", tmp_path / "bundle")
    before = (copy / "manifest.json").read_bytes()
    places = {"teacher": shipped / "teacher", "student": shipped / "student", "dataset": dataset, "out": tmp_path / "out"}
    done = apart(*(word.format_map(places | {"copy": copy}) for word in line.split()), file_limit=20_000)
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err, done.err
    assert "edgewam: " in done.err and "ree some space" in done.err, done.err
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)
    assert (copy / "manifest.json").read_bytes() == before


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"may not mount a small file system here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_collection_goes_on_when_a_full_disk_has_room_again(dataset, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    arguments = ["collect", small_disk / "cube", "--episodes", 1, "--first-seed", FIRST_SEED, "--json"]
    done = apart(*arguments)
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err
    assert "No space left on device" in done.err and "same command again" in done.err
    assert not (small_disk / "cube").exists()
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert apart(*arguments).ok().json["num_episodes"] == 1


def test_an_evaluation_on_a_full_disk_says_so_and_keeps_the_file_readable(dataset, small_disk):
    results, ballast = small_disk / "results.jsonl", small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    arguments = ["evaluate", "--seeds", 1, "--first-seed", 5000, "--workers", 1, "--results", results, "--json"]
    done = apart(*arguments)
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err
    assert "No space left on device" in done.err and "ree some space" in done.err
    ballast.unlink()
    assert apart(*arguments).ok().json["strict"]["n"] == 1

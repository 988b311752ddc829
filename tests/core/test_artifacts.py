"""Artifacts are whole or absent, and every damage is found and named."""

import json
import os
import signal
import subprocess
import sys

import pytest

from edgewam.core.artifacts import MANIFEST, read_manifest, replaced_file, write_artifact
from edgewam.core.errors import ArtifactError


def make(directory, text="weights", **kwargs):
    with write_artifact(directory, "policy", config={"layers": 4}, **kwargs) as out:
        (out / "model.bin").write_text(text)
        (out / "stages").mkdir()
        (out / "stages" / "a.bin").write_text("a")


def test_written_artifact_reads_back_with_versions_and_hardware(tmp_path):
    make(tmp_path / "a", parents={"vae": "abc"}, measured={"loss": 0.5})
    manifest = read_manifest(tmp_path / "a", kind="policy")
    assert set(manifest.files) == {"model.bin", "stages/a.bin"}
    assert manifest.parents == {"vae": "abc"} and manifest.measured == {"loss": 0.5}
    assert "numpy" in manifest.versions and manifest.hardware["num_cpus"] >= 1


def test_digest_depends_on_content_and_not_on_time(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    make(tmp_path / "c", text="other")
    digests = [read_manifest(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_error_inside_the_block_keeps_the_old_artifact(tmp_path):
    make(tmp_path / "a", text="old")
    with pytest.raises(OSError, match="full"), write_artifact(tmp_path / "a", "policy", config={}) as out:
        (out / "model.bin").write_text("new")
        raise OSError("disk full")
    read_manifest(tmp_path / "a")
    assert (tmp_path / "a" / "model.bin").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_kill_in_the_middle_leaves_the_old_artifact_and_the_next_write_succeeds(tmp_path):
    make(tmp_path / "a", text="old")
    script = (
        "import os, signal, sys; from edgewam.core.artifacts import write_artifact\n"
        f"with write_artifact({str(tmp_path / 'a')!r}, 'policy', config={{}}) as out:\n"
        "    (out / 'model.bin').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    read_manifest(tmp_path / "a")
    assert (tmp_path / "a" / "model.bin").read_text() == "old"
    make(tmp_path / "a", text="new")
    assert (tmp_path / "a" / "model.bin").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_a_swap_cut_between_its_renames_loses_nothing(tmp_path):
    make(tmp_path / "a", text="old")
    os.rename(tmp_path / "a", tmp_path / ".a.old")  # the state kill -9 leaves between the two renames
    with pytest.raises(OSError), write_artifact(tmp_path / "a", "policy", config={}):
        raise OSError
    assert (tmp_path / "a" / "model.bin").read_text() == "old"


@pytest.mark.parametrize("damage", ["truncate", "remove", "edit", "garbage", "format"])
def test_damage_is_refused_and_named(tmp_path, damage):
    make(tmp_path / "a")
    manifest = tmp_path / "a" / MANIFEST
    if damage == "truncate":
        (tmp_path / "a" / "model.bin").write_text("weig")
    elif damage == "remove":
        (tmp_path / "a" / "model.bin").unlink()
    elif damage == "garbage":
        manifest.write_text("{")
    else:
        data = json.loads(manifest.read_text())
        data["config" if damage == "edit" else "format"] = {"layers": 5}
        manifest.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"again|format"):
        read_manifest(tmp_path / "a")


def test_missing_and_foreign_directories_say_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_manifest(tmp_path / "none")
    with pytest.raises(ArtifactError, match="no edgewam artifact"):
        read_manifest(tmp_path)
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="is a policy, but a bundle"):
        read_manifest(tmp_path / "a", kind="bundle")


def test_replaced_file_keeps_the_old_file_on_error(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replaced_file(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_what_is_no_artifact_of_this_kind_is_not_replaced(tmp_path):
    def write(place, kind):
        with write_artifact(place, kind, config={}) as directory:
            (directory / "file").write_text(kind)

    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", "vae")  # empty: nothing is lost
    for kind in ("policy", "dataset"):
        with pytest.raises(ArtifactError, match=rf"mine' is a vae and is not replaced by a {kind}"):
            write(tmp_path / "mine", kind)
    write(tmp_path / "mine", "vae")
    (tmp_path / "file").write_text("15 GB")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").write_text("meow")
    for name, what in (("file", "a file"), ("photos", "a directory that is no artifact")):
        with pytest.raises(ArtifactError, match=rf"{name}' is {what} and is not replaced"):
            write(tmp_path / name, "vae")
    assert (tmp_path / "file").read_text() == "15 GB" and (tmp_path / "photos" / "cat").read_text() == "meow"
    for first, second, replaced in (("weights", "policy", True), ("student", "weights", True), ("policy", "student", False)):
        write(tmp_path / f"{first}-{second}", first)
        if replaced:
            write(tmp_path / f"{first}-{second}", second)
        else:  # a student written over its teacher
            with pytest.raises(ArtifactError, match="is a policy and is not replaced by a student"):
                write(tmp_path / f"{first}-{second}", second)


def test_the_directory_one_stands_in_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with write_artifact(".", "vae", config={}) as directory:
        (directory / "file").write_text("x")
    assert read_manifest(tmp_path / "here").kind == "vae"

"""`edgewam prompt`: what is known is listed, what is added is whole or absent, and every error names the next command."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgewam.core.artifacts import read_manifest, write_artifact, write_json
from edgewam.models.text import SmallTextEncoder, pack_context
from edgewam.models.text_cache import TextCache
from edgewam.models.text_store import PROMPTS, read_prompts, write_prompts
from edgewam.runtime.prompts import load_prompts
from tests.cli.command import here, leftovers
from tests.models import tiny_umt5

LEN, DIM = 16, 128  # of the shipped bundle
LONG = 96  # tokens: room for the whole sentence in pieces of a tiny vocabulary
TASKS = ("fold the towel", "open the drawer")


@pytest.fixture
def policy(tmp_path) -> Path:
    """What an imported policy has beside its weights: sizes, facts, one stored prompt."""
    place = tmp_path / "policy"
    with write_artifact(place, "policy", config={"from": "released"}, parents={"vae": "1" * 64}) as directory:
        facts = {"text_encoder": "umt5", "tasks": []}
        write_json(
            directory / "model.json",
            {"family": "aha_wam", "config": {"text_len": LEN, "text_dim": DIM}, "storage": "bfloat16", "metadata": facts},
        )
        (directory / "model-00001-of-00001.safetensors").write_bytes(os.urandom(1000))
        write_prompts(directory / PROMPTS, {"stored": rows(9)})
    return place


@pytest.fixture
def cached(tmp_path) -> Path:
    """A cache directory that knows TASKS."""
    for seed, task in enumerate(TASKS):
        TextCache(tmp_path / "cache", LEN, DIM).write(task, rows(seed))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny text_encoder artifact."""
    pytest.importorskip("tokenizers", reason="needs edgewam[text]")
    pytest.importorskip("ftfy", reason="needs edgewam[text]")
    return tiny_umt5.make_artifact(tmp_path_factory.mktemp("umt5") / "text")


def rows(seed, words=5):
    made = np.zeros((LEN, DIM), np.float32)
    made[:words] = np.random.default_rng(seed).integers(-8, 9, (words, DIM))
    made[:words, 0] = 1
    return made


def trained_with_umt5(shipped, place, **host) -> Path:
    """A copy of the shipped bundle that says its policy was trained with UMT5."""
    old = read_manifest(shipped / "bundle")
    config = {**old.config, "host": {**old.config["host"], "text_encoder": "umt5", **host}}
    with write_artifact(place, "bundle", config=config, parents=old.parents, measured=dict(old.measured)) as directory:
        shutil.copytree(shipped / "bundle", directory, dirs_exist_ok=True)
        (directory / "manifest.json").unlink()
    return place


def refused(done, *pieces):
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err, done.err
    for piece in pieces:
        assert piece in done.err, done.err


def test_prompts_of_a_policy_are_listed_and_added_and_nothing_else_changes(policy, cached):
    assert here("prompt", "list", policy).ok().out.splitlines() == ["stored"]
    before = read_manifest(policy)
    assert "A finished bundle takes prompts itself" in here("prompt", "add", policy, *TASKS, "--text", cached).ok().err
    after = read_manifest(policy)  # every file matches its digest
    assert here("prompt", "list", policy).ok().out.splitlines() == sorted(["stored", *TASKS])
    found = read_prompts(policy / PROMPTS)
    assert all(np.array_equal(found[task], rows(seed)) for seed, task in enumerate(TASKS))
    assert np.array_equal(found["stored"], rows(9))
    assert after.digest != before.digest and (after.config, after.parents) == (before.config, before.parents)
    assert {name for name in after.files if after.files[name] != before.files[name]} == {PROMPTS}
    assert not leftovers(policy.parent)


def test_a_prompt_of_an_artifact_without_any_is_stored(policy, cached):
    (policy / PROMPTS).unlink()
    manifest = json.loads((policy / "manifest.json").read_text())
    with write_artifact(policy.parent / "bare", "student", config=manifest["config"]) as directory:
        shutil.copyfile(policy / "model.json", directory / "model.json")
    none = here("prompt", "list", policy.parent / "bare").ok()
    assert none.out == "" and "edgewam prompt add" in none.err
    here("prompt", "add", policy.parent / "bare", TASKS[0], "--text", cached).ok()
    assert here("prompt", "list", policy.parent / "bare").ok().out.splitlines() == [TASKS[0]]


def test_a_prompt_that_cannot_be_added_leaves_the_policy_as_it_was(policy, cached, encoder):
    before = (policy / "manifest.json").read_bytes()
    refused(here("prompt", "add", policy, "stored", "--text", cached), "knows 'stored' already")
    refused(here("prompt", "add", policy, TASKS[0], "dance", "--text", cached), "no embedding of 'dance'", "edgewam prompt add")
    refused(here("prompt", "add", policy, "dance"), "text encoder 'umt5'", "--text", "edgewam prompt cache")
    refused(here("prompt", "add", policy, "dance", "--text", "small"), "would mean nothing to it", "cached embeddings")
    refused(here("prompt", "add", policy, "dance", "--text", "nowhere"), "no text source 'nowhere'", "edgewam convert")
    refused(here("prompt", "add", policy, "dance", "--text", encoder), "rows of width 16, this policy takes 128")
    refused(here("prompt", "add", policy, " ", "--text", cached), "The instruction is empty")
    assert (policy / "manifest.json").read_bytes() == before and not leftovers(policy.parent)
    TextCache(cached, LEN, DIM).path(TASKS[1]).write_bytes(b"PK")
    refused(here("prompt", "add", policy, TASKS[1], "--text", cached), "truncated or damaged", "edgewam prompt cache")
    (policy / "model.json").write_text("{}")
    refused(here("prompt", "list", policy), "does not describe a policy")
    assert (policy / "manifest.json").read_bytes() == before


def test_a_policy_of_the_small_encoder_lists_its_tasks_and_stores_none(shipped):
    tasks = json.loads((shipped / "student/model.json").read_text())["metadata"]["tasks"]
    assert here("prompt", "list", shipped / "student").ok().out.splitlines() == sorted(tasks)
    refused(here("prompt", "add", shipped / "student", "again"), "embeds any instruction", "Add the instruction to its bundle")


def test_the_small_encoders_bundle_needs_no_source_and_takes_no_other(shipped, cached, tmp_path):
    copy = shutil.copytree(shipped / "bundle", tmp_path / "bundle")
    refused(here("prompt", "add", copy, TASKS[0], "--text", cached), "text encoder 'small'", "Leave --text out")
    refused(here("prompt", "add", copy, "?!"), "no words")
    refused(here("prompt", "add", copy, " ".join(["word"] * 17)), "17 words", "Shorten it")
    here("prompt", "add", copy, *TASKS).ok()
    added = load_prompts(copy / PROMPTS)[TASKS[0]]
    expected = pack_context(SmallTextEncoder(DIM, LEN).encode(TASKS[0]), LEN)
    assert np.array_equal(added["text_rows"], expected[0]) and np.array_equal(added["text_bias"], expected[1])


def test_a_bundle_of_another_encoder_asks_for_the_source_and_packs_its_rows(shipped, cached, tmp_path):
    bundle = trained_with_umt5(shipped, tmp_path / "bundle")
    engines = {name: (bundle / name).stat().st_ino for name in read_manifest(bundle).files if name.startswith("stages/")}
    refused(here("prompt", "add", bundle, TASKS[0]), "Say with --text")
    here("prompt", "add", bundle, TASKS[0], "--text", cached).ok()
    found = load_prompts(bundle / PROMPTS)[TASKS[0]]
    expected = pack_context(rows(0), LEN)
    assert np.array_equal(found["text_rows"], expected[0]) and np.array_equal(found["text_bias"], expected[1])
    assert TASKS[0] in here("prompt", "list", bundle).ok().out.splitlines()
    assert {name: (bundle / name).stat().st_ino for name in engines} == engines  # gigabytes are not copied


def test_a_prompt_longer_than_the_bundles_bucket_is_refused(shipped, cached, tmp_path):
    bundle = trained_with_umt5(shipped, tmp_path / "bundle", text_bucket=4)
    refused(here("prompt", "add", bundle, TASKS[0], "--text", cached), "has 5 tokens, this bundle holds 4", "compile again")


def test_a_cache_is_filled_from_a_file_and_goes_on_where_it_stopped(encoder, tmp_path):
    (tmp_path / "tasks.txt").write_text("\n".join([*TASKS, "", TASKS[0]]) + "\n")
    arguments = ["prompt", "cache", tmp_path / "tasks.txt", tmp_path / "cache", "--text", encoder, "--text-len", LONG]
    assert "2 embeddings written, 0 were there" in here(*arguments).ok().err
    cache = TextCache(tmp_path / "cache", LONG, tiny_umt5.CONFIG.dim)
    first = cache.path(TASKS[0])
    whole, stamp = first.read_bytes(), first.stat().st_mtime_ns
    cache.path(TASKS[1]).unlink()
    assert "1 embeddings written, 1 were there" in here(*arguments).ok().err
    assert (first.read_bytes(), first.stat().st_mtime_ns) == (whole, stamp)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {cache.path(task).name for task in TASKS}
    assert not np.array_equal(cache.encode(TASKS[0]), cache.encode(TASKS[1]))
    arguments[arguments.index(encoder)] = tmp_path / "nowhere"  # with nothing to embed no encoder is opened
    assert "0 embeddings written, 2 were there" in here(*arguments).ok().err


def test_an_instruction_is_added_to_a_cache(encoder, tmp_path):
    cache = TextCache(tmp_path / "cache", LONG, tiny_umt5.CONFIG.dim)
    here("prompt", "cache", _file(tmp_path, TASKS[0]), tmp_path / "cache", "--text", encoder, "--text-len", LONG).ok()
    here("prompt", "add", tmp_path / "cache", TASKS[1], "--text", encoder).ok()
    assert cache.encode(TASKS[1]).any()
    refused(here("prompt", "add", tmp_path / "cache", TASKS[1], "--text", encoder), "already")
    refused(here("prompt", "add", tmp_path / "cache", "dance"), "which text_encoder artifact")
    refused(here("prompt", "list", tmp_path / "cache"), "by a hash")


def test_every_task_of_a_dataset_is_cached(encoder, dataset, tmp_path):
    from edgewam.data.dataset import Dataset

    here("prompt", "cache", dataset, tmp_path / "cache", "--text", encoder, "--text-len", LONG).ok()
    cache = TextCache(tmp_path / "cache", LONG, tiny_umt5.CONFIG.dim)
    assert Dataset.open(dataset).tasks and all(cache.encode(task).any() for task in Dataset.open(dataset).tasks)


def test_what_cannot_fill_a_cache_says_so_and_makes_no_directory(encoder, policy, tmp_path):
    out = tmp_path / "out"
    refused(here("prompt", "cache", _file(tmp_path, "\n \n"), out, "--text", encoder), "has no instructions")
    refused(here("prompt", "cache", _file(tmp_path, "x"), out, "--text", policy), "is a policy, but a text_encoder is needed")
    refused(here("prompt", "cache", tmp_path / "nothing", out, "--text", encoder), "nothing")
    (tmp_path / "tasks.txt").write_bytes(b"\xff\xfe\x00")
    refused(here("prompt", "cache", tmp_path / "tasks.txt", out, "--text", encoder), "is no text file")
    assert not out.exists()


def _file(folder, text) -> Path:
    (folder / "tasks.txt").write_text(text)
    return folder / "tasks.txt"

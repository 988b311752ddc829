"""`edgewam convert`: every released file becomes an artifact with the same tensors, goes back as it was, or is refused whole."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import typer
import typer.core
import typer.main

torch = pytest.importorskip("torch", reason="needs edgewam[train]")

from safetensors.torch import load_file, save_file  # noqa: E402

from edgewam import cli  # noqa: E402
from edgewam.core.artifacts import read_manifest  # noqa: E402
from edgewam.models import checkpoints  # noqa: E402
from tests.cli.command import apart, here, leftovers, started  # noqa: E402
from tests.cli.test_bad_input import refused  # noqa: E402
from tests.command_lines import parse  # noqa: E402
from tests.models import weight_files as files  # noqa: E402

AHA = ("--config", files.CONFIG, "--composition", "single")


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae") / "vae"
    here("convert", files.VAE, out).ok()
    return out


@pytest.fixture
def stats(tmp_path) -> Path:
    return write_stats(tmp_path / "dataset_stats.json", 6, 5)


def write_stats(path: Path, state: int, action: int) -> Path:
    form = {name: {"default": {"global_mean": [0.1] * size, "global_std": [0.5] * size}}
            for name, size in (("state", state), ("action", action))}  # fmt: skip
    path.write_text(json.dumps(form))
    return path


def same(found, expected) -> None:
    """Nested dicts of tensors and plain values: keys in order, dtypes, values."""
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            same(found[key], value)
        elif isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
        else:
            assert found[key] == value and type(found[key]) is type(value), key


@pytest.mark.parametrize(
    "source", [files.AHA_WAM, files.STUDENT, files.VAE, files.FAST_WAM], ids=["policy", "student", "vae", "fast_wam"]
)
def test_a_file_comes_back_equal_in_tensors_values_order_and_dtypes(source, tmp_path):
    content = files.loaded(source)
    if source == files.STUDENT:  # mixed dtypes, and values that JSON has no form for
        content["mot"] = {k: v.bfloat16() if v.ndim > 1 else v for k, v in content["mot"].items()}
        content["more"] = {"pair": (1, 2.5), "by_number": {3: "c"}, "none": None, "nan_is_no_json": float("inf")}
    torch.save(content, tmp_path / "before.pt")
    options = {files.VAE: (), files.FAST_WAM: ("--config", files.FAST_CONFIG)}.get(source, AHA)
    here("convert", tmp_path / "before.pt", tmp_path / "artifact", *options, "--shard-gb", 0.0005).ok()
    assert len(list((tmp_path / "artifact").glob("model-0*.safetensors"))) > 1
    here("convert", tmp_path / "artifact", tmp_path / "after.pt", "--format", "upstream").ok()
    same(files.loaded(tmp_path / "after.pt"), content)


def test_a_policy_artifact_is_what_train_writes(vae, stats, tmp_path):
    from edgewam.models import aha_wam
    from edgewam.training.policy_artifact import load_policy
    from tests.models import aha_wam_golden as golden

    for source, kind, steps in ((files.AHA_WAM, "policy", 10), (files.STUDENT, "student", 2)):
        out = tmp_path / kind
        options = ("--vae", vae, "--stats", stats, *AHA, "--text", "small", "--prompt", "lift", "--json")
        done = here("convert", source, out, *options).ok()
        assert done.json["kind"] == kind and not done.json["skipped"]
        loaded = load_policy(out)
        assert loaded.facts.num_action_steps == steps and loaded.facts.sampler_tables == "float32"
        assert loaded.facts.tasks == ("lift",) and not loaded.facts.steps_are_fixed
        layout = loaded.facts.layout
        assert (layout.num_steps, layout.horizon, layout.max_offset, layout.stride) == (17, 16, 0, 2)
        expected = aha_wam.load(source, golden.config()).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
        if kind == "student":
            assert loaded.facts.ode_metadata["teacher_num_inference_steps"] == 16


@pytest.mark.parametrize("told", [{"torch_dtype": "torch.bfloat16"}, {}])
def test_the_samplers_tables_are_rounded_unless_the_weights_were_trained_in_float32(told, vae, stats, tmp_path):
    from edgewam.training.policy_artifact import load_policy

    content = {name: value for name, value in files.loaded(files.FAST_WAM).items() if name != "torch_dtype"} | told
    torch.save(content, tmp_path / "fast.pt")
    options = ("--config", files.FAST_CONFIG, "--composition", "single", "--vae", vae, "--stats", stats, "--dtype", "float32")
    here("convert", tmp_path / "fast.pt", tmp_path / "out", *options).ok()
    assert load_policy(tmp_path / "out").facts.sampler_tables == "bf16"


def test_instructions_are_embedded_from_a_cache_and_stored(vae, stats, tmp_path):
    from edgewam.models.text_cache import TextCache
    from edgewam.training.policy_artifact import load_policy

    (tmp_path / "cache").mkdir()
    rows = np.zeros((7, 44), np.float32)
    rows[:3] = np.arange(132).reshape(3, 44)
    TextCache(tmp_path / "cache", 7, 44).write("lift the cube", rows)
    command = ("convert", files.AHA_WAM, tmp_path / "out", "--vae", vae, "--stats", stats, *AHA, "--text", tmp_path / "cache")
    refused(here(*command, "--prompt", "fly"), "no embedding of 'fly'")
    assert not (tmp_path / "out").exists()
    here(*command, "--prompt", "lift the cube").ok()
    loaded = load_policy(tmp_path / "out")
    assert loaded.facts.text_encoder == "umt5" and loaded.facts.tasks == ("lift the cube",)
    assert np.array_equal(loaded.text().encode("lift the cube"), rows)


def test_released_sizes_give_the_released_windows():
    from edgewam.data.windows import fast_wam_layout, offset_layout, released_layout
    from edgewam.models import aha_wam, fast_wam
    from edgewam.recipes.convert import _layout

    assert _layout(aha_wam.full(), {}, 0) == released_layout()
    assert _layout(aha_wam.full(80), {}, 15) == offset_layout()
    assert _layout(fast_wam.Config(), {}, 0) == fast_wam_layout()


def test_a_directory_that_is_not_ours_is_not_replaced(vae, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    copy = shutil.copyfile(files.VAE, tmp_path / "mine" / "vae.pth")
    refused(here("convert", files.VAE, tmp_path / "mine"), "a directory that is no artifact and is not replaced")
    refused(here("convert", files.VAE, copy), "is a file and is not replaced by a vae")
    refused(here("convert", files.AHA_WAM, vae, *AHA), "is a vae and is not replaced by a weights")
    refused(here("convert", copy, tmp_path), "would be replaced, but it holds")
    refused(here("convert", vae, tmp_path / "mine", "--format", "upstream"), "is a directory. Give the file")
    refused(here("convert", vae, vae / "model.safetensors", "--format", "upstream"), "would damage")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "thesis.txt", "vae.pth"]
    assert copy.read_bytes() == files.VAE.read_bytes() and read_manifest(vae).kind == "vae"


def test_fast_wam_and_its_extra_key_are_taken(tmp_path):
    source = files.fast_wam(tmp_path / "fast.pt", action_branch_embedding=torch.zeros(2, 40))
    done = here("convert", source, tmp_path / "out", "--head-dim", 20, "--json").ok()
    assert done.json["family"] == "fast_wam"
    assert done.json["skipped"] == ["'mot.action_branch_embedding' is not read by a fast_wam"]
    assert any(note.startswith("released values were assumed: image_height 384") for note in done.json["notes"])
    assert "mot.action_branch_embedding" not in checkpoints.read(tmp_path / "out").tensors


@pytest.mark.parametrize("by_layer", [True, False])
def test_lerobots_policy_folder_is_taken_with_its_sizes(by_layer, vae, stats, tmp_path):
    from edgewam.training.policy_artifact import load_policy

    folder = files.lerobot_folder(tmp_path / "lerobot", by_layer)
    facts = here("inspect", folder, "--json").ok().json
    assert (facts["family"], facts["policy_folder"], facts["unexpected"]) == ("fast_wam", "fastwam", [])
    done = here("convert", folder, tmp_path / "out", "--vae", vae, "--stats", stats, "--json").ok()
    assert any("LeRobot turns actions [-1]" in note for note in done.json["notes"])
    assert read_manifest(tmp_path / "out").config["notes"] == done.json["notes"], "who deploys it later can still read them"
    loaded = load_policy(tmp_path / "out")
    config = loaded.model.config
    assert (config.horizon, config.head_dim, config.image_height, config.image_width, config.text_len) == (16, 20, 64, 96, 7)
    assert loaded.facts.composition == "side_by_side" and loaded.facts.layout.stride == 2
    assert "from left to right on the picture, 'observation.images.image' is called 'front' and" in " ".join(done.json["notes"])
    assert loaded.facts.sampler_tables == "bf16" and loaded.facts.num_action_steps == 10
    assert np.allclose(loaded.stats.state.mean, [0.1] * 6) and np.allclose(loaded.stats.action.mean, [0.1] * 5)


def described(folder, **changes):
    """LeRobot's folder with another config.json."""
    file = files.lerobot_folder(folder, by_layer=True) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def test_what_lerobot_executes_and_how_it_samples_is_taken_over(vae, stats, tmp_path):
    from edgewam.training.policy_artifact import load_policy

    changes = {"num_inference_steps": 20, "n_action_steps": 9, "sigma_shift": 3.0, "torch_dtype": "float32"}
    folder = described(tmp_path / "lerobot", **changes, action_scheduler={"infer_shift": 5.0, "train_shift": 5.0})
    here("convert", folder, tmp_path / "out", "--vae", vae, "--stats", stats).ok()
    loaded = load_policy(tmp_path / "out")
    assert loaded.facts.num_action_steps == 20 and loaded.facts.sampler_tables == "float32"
    config = loaded.model.config
    assert (config.execute_steps, config.shift, config.train_shift) == (9, 3.0, 5.0)


def test_what_lerobot_does_and_edgewam_does_not_is_refused(vae, stats, tmp_path):
    policy = ("--vae", vae, "--stats", stats)
    cameras = {f"observation.images.{name}": {} for name in ("left", "right", "top")}
    three = described(tmp_path / "three", input_features=cameras)
    refused(here("convert", three, tmp_path / "out", *policy), "left, .*top beside each other", "--composition single")
    other = described(tmp_path / "other", prompt_template="Task: {task}")
    refused(here("convert", other, tmp_path / "out", *policy), "reads instructions as 'Task: {task}'", "leave out --vae")
    here("convert", other, tmp_path / "bare").ok()


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES"])
def test_lerobots_own_statistics_are_used_as_its_preprocessor_says(mode, vae, tmp_path):
    from edgewam.data.stats import read_stats

    folder = files.lerobot_folder(tmp_path / "lerobot", by_layer=True)
    file = folder / "policy_preprocessor.json"
    file.write_text(file.read_text().replace('"MEAN_STD"', f'"{mode}"'))
    done = here("convert", folder, tmp_path / "out", "--vae", vae)
    if mode == "QUANTILES":
        return refused(done, "normalises STATE by QUANTILES")
    stats = read_stats(done.ok() and tmp_path / "out" / "stats.json")
    low = {"MEAN_STD": (-3.0 - 0.5) / 2.0, "MIN_MAX": -1.0}[mode]
    for normalizer, size in ((stats.state, 6), (stats.action, 5)):
        assert normalizer.forward(np.full(size, -3.0, np.float32)).tolist() == pytest.approx([low] * size)


def test_dimensions_that_do_not_move_are_refused_where_lerobot_makes_something_else_of_them(vae, tmp_path):
    folder = files.lerobot_folder(tmp_path / "lerobot", by_layer=True)
    file = folder / "policy_preprocessor.json"
    file.write_text(file.read_text().replace('"MEAN_STD"', '"MIN_MAX"'))
    (state,) = folder.glob("policy_preprocessor_*.safetensors")
    values = load_file(state)
    values["action.max"][3] = values["action.min"][3]
    save_file(values, state)
    refused(here("convert", folder, tmp_path / "out", "--vae", vae), r"ACTION by MIN_MAX, but its dimensions \[3\] do not move")
    form = {
        name: {"default": {"global_min": [-2.0] * size, "global_max": [2.0] * size}}
        for name, size in (("state", 6), ("action", 5))
    }
    (tmp_path / "stats.json").write_text(json.dumps(form))  # only by what the folder says these can be used
    here("convert", folder, tmp_path / "out", "--vae", vae, "--stats", tmp_path / "stats.json").ok()


def test_a_configuration_of_plain_sizes_has_no_names_that_mean_nothing(tmp_path):
    def config(**sizes):
        (tmp_path / "sizes.json").write_text(json.dumps(sizes))
        return here("convert", files.AHA_WAM, tmp_path / "out", "--config", tmp_path / "sizes.json")

    refused(config(head_dim=20, horizn=32), r"sizes.json' has horizn, which no family has")
    config(head_dim=20, action_horizon=32, action_chunk_size=8, image_size=[64, 96]).ok()
    stored = checkpoints.read(tmp_path / "out", "aha_wam").config
    assert (stored["horizon"], stored["chunk_size"], stored["image_width"]) == (32, 8, 96)


def test_one_row_of_the_branch_embedding_becomes_row_one_and_queries_are_interpolated(tmp_path):
    content = files.loaded(files.AHA_WAM)
    branch, queries = content["mot"]["action_branch_embedding"], content["chunk_obs_query_encoder"]["base_queries"]
    content["mot"]["action_branch_embedding"] = branch[1:]
    content["chunk_obs_query_encoder"]["base_queries"] = queries.repeat_interleave(2, dim=2)
    torch.save(content, tmp_path / "file.pt")
    done = here("convert", tmp_path / "file.pt", tmp_path / "out", *AHA, "--json").ok()
    tensors = checkpoints.read(tmp_path / "out").tensors
    assert len(done.json["repaired"]) == 2
    assert torch.equal(tensors["mot.action_branch_embedding"][1], branch[1])
    torch.testing.assert_close(tensors["chunk_obs_query_encoder.base_queries"], queries)  # halves of pairs of equal rows


def test_dtypes_are_kept_or_converted(tmp_path):
    here("convert", files.AHA_WAM, tmp_path / "half", *AHA, "--dtype", "bf16").ok()
    exact = files.loaded(files.AHA_WAM)
    half = checkpoints.read(tmp_path / "half").tensors
    assert all(torch.equal(half[f"mot.{name}"], tensor.bfloat16()) for name, tensor in exact["mot"].items())
    here("convert", tmp_path / "half", tmp_path / "half.pt", "--format", "upstream").ok()
    assert files.loaded(tmp_path / "half.pt")["torch_dtype"] == "torch.bfloat16"
    refused(here("convert", files.AHA_WAM, tmp_path / "x", *AHA, "--dtype", "int4"), "Unknown dtype 'int4'", "Available: keep")


def test_a_vae_artifact_reconstructs_as_the_file_did(vae, tmp_path):
    from edgewam.models.wan_vae import WanVae, WanVaeConfig
    from edgewam.training.weights import load_vae

    network, _ = load_vae(vae)
    expected = WanVae(WanVaeConfig(dim=8, dec_dim=4))
    expected.load_state_dict(files.loaded(files.VAE))
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    assert torch.equal(network.encode(video), expected.encode(video))


def test_a_text_encoder_goes_with_its_tokenizer(tmp_path):
    from edgewam.models.umt5_encoder import load_text_encoder
    from tests.models import tiny_umt5

    pytest.importorskip("tokenizers", reason="needs edgewam[text]")
    network, tokenizer = tiny_umt5.make_network(), tiny_umt5.make_tokenizer(tmp_path / "tokenizer")
    torch.save(network.state_dict(), tmp_path / "t5.pth")
    refused(here("convert", tmp_path / "t5.pth", tmp_path / "text"), "Add --tokenizer")
    done = here("convert", tmp_path / "t5.pth", tmp_path / "text", "--tokenizer", tokenizer, "--json").ok()
    assert done.json["kind"] == "text_encoder"
    again = load_text_encoder(tmp_path / "text", text_len=16)
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in again.network.state_dict().items())


def test_transformers_alone_become_weights(tmp_path):
    video = {k[15:]: v for k, v in files.loaded(files.AHA_WAM)["mot"].items() if k.startswith("mixtures.video.")}
    torch.save({"dit": video, "step": 5}, tmp_path / "dit.pt")
    here("convert", tmp_path / "dit.pt", tmp_path / "out").ok()
    assert read_manifest(tmp_path / "out").kind == "weights"
    stored = checkpoints.read(tmp_path / "out", "video_dit")
    assert stored.config["video_dim"] == 60 and stored.config["num_layers"] == 3
    here("convert", tmp_path / "out", tmp_path / "again.pt", "--format", "upstream").ok()
    same(files.loaded(tmp_path / "again.pt"), {"dit": video, "step": 5})
    torch.save({"dit": video, "proprio_encoder": {"bias": torch.zeros(4)}}, tmp_path / "more.pt")
    refused(here("convert", tmp_path / "more.pt", tmp_path / "more"), "'proprio_encoder.bias' is not part of a video_dit")
    here("convert", tmp_path / "more.pt", tmp_path / "more", "--lenient").ok()


def test_keys_that_do_not_belong_are_refused_or_left_out_and_named(tmp_path):
    content = files.loaded(files.AHA_WAM)
    content["mot"]["lora.weight"] = torch.zeros(2)
    content["proprio_encoder"]["bias"] = content["proprio_encoder"]["bias"].double()
    content["optimizer"] = {"state": {0: torch.zeros(2)}}
    torch.save(content, tmp_path / "file.pt")
    done = here("convert", tmp_path / "file.pt", tmp_path / "out", *AHA)
    refused(done, "'mot.lora.weight' is not part of", "float64", "Give --lenient")
    assert not (tmp_path / "out").exists()
    done = here("convert", tmp_path / "file.pt", tmp_path / "out", *AHA, "--lenient", "--json").ok()
    assert done.json["skipped"] == ["'mot.lora.weight' is not part of a aha_wam", "the optimizer's state (1 tensors)"]
    assert done.json["repaired"] == ["'proprio_encoder.bias' was float64 and is now float32"]
    assert checkpoints.read(tmp_path / "out").tensors["proprio_encoder.bias"].dtype == torch.float32


def broken(content: dict, what: str) -> tuple[str, ...]:
    mot = content["mot"]
    if what == "missing":
        del mot["mixtures.action.head.bias"]
        return ("'mot.mixtures.action.head.bias' is missing", "Download it again")
    if what == "shape":
        mot["mixtures.video.blocks.1.ffn.0.weight"] = mot["mixtures.video.blocks.1.ffn.0.weight"][:, :-1]
        return (r"'mot.mixtures.video.blocks.1.ffn.0.weight' is \[112, 59\] where the others ask for \[112, 60\]",)
    mot["mixtures.action.head.weight"] = mot["mixtures.action.head.weight"].to(torch.int8)
    return ("'mot.mixtures.action.head.weight' has dtype int8",)


@pytest.mark.parametrize("strictness", ["--strict", "--lenient"])
@pytest.mark.parametrize("what", ["missing", "shape", "dtype"])
def test_a_network_with_holes_is_refused_by_key(what, strictness, tmp_path):
    content = files.loaded(files.AHA_WAM)
    phrases = broken(content, what)
    torch.save(content, tmp_path / "file.pt")
    refused(here("convert", tmp_path / "file.pt", tmp_path / "out", *AHA, strictness), r"file\.pt", *phrases)
    assert not (tmp_path / "out").exists() and not leftovers(tmp_path)


@pytest.mark.parametrize(("dtype", "value"), [("float32", "nan"), ("bfloat16", "-inf"), ("float16", "inf")])
def test_a_number_that_is_none_is_refused_by_its_place(dtype, value, tmp_path):
    content, key = files.loaded(files.AHA_WAM), "mixtures.action.blocks.0.ffn.2.weight"
    content["mot"][key] = content["mot"][key].to(getattr(torch, dtype))
    content["mot"][key][3, 5] = float(value)
    torch.save(content, tmp_path / "file.pt")
    done = here("convert", tmp_path / "file.pt", tmp_path / "out", *AHA)
    refused(done, f"'mot.{key}' is not finite in {dtype}", r"first at \[3, 5\]", "Download it again, or convert an earlier")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_what_does_not_belong_together_is_refused(vae, stats, tmp_path):
    out = tmp_path / "out"
    wrong = write_stats(tmp_path / "wrong.json", 6, 14)
    policy = ("convert", files.AHA_WAM, out, *AHA)
    refused(here(*policy, "--vae", vae, "--stats", wrong), r"wrong.json' has 'action' of 14 values, but the checkpoint takes 5")
    refused(here(*policy, "--vae", vae), "Add --stats")
    refused(here(*policy, "--stats", stats), "Add --vae")
    refused(here(*policy, "--prompt", "lift"), "Add --vae VAE and --stats")
    refused(here(*policy, "--vae", vae, "--stats", stats, "--prompt", "lift"), "Add --text")
    refused(here(*policy, "--vae", files.VAE.parent, "--stats", stats), "no edgewam artifact")
    refused(here(*policy, "--tokenizer", tmp_path), "--tokenizer belongs to a text encoder")
    refused(here("convert", files.VAE, out, "--stats", stats), "takes no --stats")
    refused(here("convert", files.AHA_WAM, out), "head", "--head-dim")
    refused(here(*policy, "--image-size", "wide"), "no image size", "384x320")
    three = ("--vae", vae, "--stats", stats, "--composition", "three_cameras")
    refused(here(*policy, *three), "canvas must have height % 3", "--composition, or give --image-size")
    refused(here(*policy, "--vae", vae, "--stats", stats, "--composition", "mosaic"), "No composition 'mosaic'")
    refused(here("convert", vae, out), "is an artifact already", "--format upstream")
    refused(here("convert", vae, out, "--format", "gguf"), "Available: artifact, upstream")
    refused(here("convert", vae, out, "--format", "upstream", "--dtype", "bf16"), "--dtype would be ignored")
    refused(here(*policy, "--vae", files.VAE, "--stats", stats), "is a file, but an artifact is a directory", "edgewam convert")
    assert not out.exists() and not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "phrase"),
    [
        ({"horizon": "x"}, "'horizon' is 'x', but it must be a whole number from 1"), ({"head_dim": 0}, "'head_dim' is 0"),
        ({"num_queries": -2}, "'num_queries' is -2"), ({"rope_stride": 0}, "'rope_stride' is 0"), ({"text_len": None}, "None"),
        ({"shift": float("inf")}, "'shift' is inf, but it must be a number"), ({"horizn": 80}, "horizn, which no family has"),
        ({"a": {}, "image_size": [64]}, "but it must be .height, width."), ([], "no JSON object"),
    ],
)  # fmt: skip
def test_a_configuration_with_no_sizes_is_refused_by_name(sizes, phrase, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(sizes))
    refused(here("convert", files.AHA_WAM, tmp_path / "out", "--config", tmp_path / "c.json"), r"c\.json'", phrase)


def test_a_network_of_nothing_and_a_student_of_nobody_are_refused(tmp_path):
    content = files.loaded(files.AHA_WAM)
    torch.save({**content, "ode_metadata": [16, 2]}, tmp_path / "ode.pt")
    refused(here("convert", tmp_path / "ode.pt", tmp_path / "out", *AHA), r"ode\.pt': 'ode_metadata' is \[16, 2\]")
    encoder = content["chunk_obs_query_encoder"]
    encoder["base_queries"] = encoder["base_queries"][:, :, :0]
    torch.save(content, tmp_path / "none.pt")
    refused(here("convert", tmp_path / "none.pt", tmp_path / "out", *AHA), r"none\.pt' is no aha_wam.*its num_queries is 0")
    assert not (tmp_path / "out").exists()


def test_no_space_leaves_what_was_there(vae, tmp_path):
    out = shutil.copytree(vae, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for arguments in (("convert", files.VAE, out), ("convert", vae, tmp_path / "file.pt", "--format", "upstream")):
        done = apart(*arguments, file_limit=300_000)
        assert done.code == 1 and "Free some space" in done.err and "Traceback" not in done.err, done.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not leftovers(tmp_path) and not (tmp_path / "file.pt").exists()


def test_killed_in_the_middle_nothing_half_written_is_left_in_place(tmp_path):
    partial = tmp_path / ".out.partial"
    with started("convert", files.VAE, tmp_path / "out", "--shard-gb", 0.00001) as command:  # 190 shards
        command.wait_until(lambda: any(partial.glob("model-*")))
        command.cut(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    here("convert", files.VAE, tmp_path / "out").ok()  # the leftover does not stand in the way
    assert not leftovers(tmp_path)


def test_the_page_tells_commands_and_options_that_exist():
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    lines = [line.split("#")[0].strip() for line in page.splitlines() if line.startswith("edgewam ")]
    assert len(lines) >= 5
    for line in lines:
        parse(line)
    named = set(re.findall(r"--[a-z][a-z-]*", page)) - {"--json"}
    group = typer.main.get_command(cli.build())
    assert isinstance(group, typer.core.TyperGroup)
    known = {o for parameter in group.commands["convert"].params for o in (*parameter.opts, *parameter.secondary_opts)}
    assert named <= known, named - known

"""Headers of weight files: every form is read without its tensors, without torch and without running code of the file."""

import json
import os
import pickle
import random
import re
import subprocess
import sys
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgewam.core.errors import ArtifactError
from edgewam.models import aha_wam
from edgewam.models.checkpoints import identify, open_weights
from edgewam.models.checkpoints.mapped import mapped
from edgewam.models.checkpoints.templates import KINDS, match
from edgewam.models.umt5 import Umt5
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from tests.golden import golden_dir
from tests.models import tiny_umt5, umt5_reference
from tests.models import weight_files as files

MANIFESTS = golden_dir().parent / "manifests"
MAX_INSPECT_CPU_S = 2.0  # issue 6, for 15 GB; processor time, so that a busy machine does not fail it
MAX_INSPECT_BYTES = 10**9


def equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items())


def flat(content):
    return {f"{group}.{key}": t for group, values in content.items() if isinstance(values, dict)
            for key, t in values.items() if isinstance(t, torch.Tensor)}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_forms_give_the_tensors_that_torch_reads(zipped, tmp_path):
    path, content = tmp_path / "file.pt", files.loaded(files.STUDENT)
    content["proprio_encoder"]["weight"] = torch.randn(6, 44).t()  # strides that are not row-major
    content["mot"]["action_branch_embedding"] = torch.randn(4, 40)[1:3].to(torch.bfloat16)  # within a larger storage
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = open_weights(path)
    assert found.format == ("torch zip" if zipped else "legacy torch")
    equal(mapped(found.entries), flat(content))
    assert found.layout == tuple(content) and found.extra["ode_metadata"] == content["ode_metadata"]
    strided = found.entries["proprio_encoder.weight"]
    assert b"".join(strided.pieces()) == content["proprio_encoder"]["weight"].contiguous().numpy().tobytes()


def test_safetensors_alone_and_in_shards_give_the_same_tensors(tmp_path):
    tensors = {k: v.contiguous() for k, v in files.loaded(files.VAE).items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    equal(mapped(open_weights(tmp_path / "vae.safetensors").entries), tensors)
    index = files.shards(tmp_path / "hub", tensors)
    equal(mapped(open_weights(index).entries), tensors)
    equal(mapped(open_weights(index.parent).entries), tensors)


RELEASED = {"ahawam_full": "aha_wam", "fastwam_full": "fast_wam", "wan22_vae": "wan_vae", "umt5_full": "umt5"}


@pytest.mark.parametrize("name", RELEASED)
def test_templates_are_the_released_keys_and_shapes(name):
    manifest, kind = json.loads((MANIFESTS / f"manifest_{name}.json").read_text()), RELEASED[name]
    shapes = {key: value if kind == "umt5" else value[0] for key, value in manifest.items()}
    found = match(kind, {key: _entry(shape, "bfloat16") for key, shape in shapes.items()})
    assert not (found.missing or found.extra or found.shapes or found.dtypes)
    assert KINDS[kind](manifest).keys() == manifest.keys()


def _entry(shape, dtype):
    from edgewam.models.checkpoints import Entry

    return Entry(MANIFESTS, 0, dtype, tuple(shape))


def test_templates_are_those_of_our_networks_at_any_size():
    with torch.device("meta"):
        vae = WanVae(WanVaeConfig(dim=16, dec_dim=8, num_res_blocks=1))
        networks = {"aha_wam": aha_wam.build(aha_wam.small()), "wan_vae": vae, "umt5": Umt5(tiny_umt5.CONFIG)}
    for kind, network in networks.items():
        entries = {key: _entry(tensor.shape, "float32") for key, tensor in network.state_dict().items()}
        found = match(kind, entries)
        assert not (found.missing or found.extra or found.shapes), kind


VARIANTS = {
    "student": lambda c: c,
    "module": lambda c: {g: {f"module.{k}": t for k, t in v.items()} if isinstance(v, dict) else v for g, v in c.items()},
    "wrapped": lambda c: {"state_dict": c},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefixes_and_wrappers_of_a_policy_are_undone(variant, tmp_path):
    content = {k: v for k, v in files.loaded(files.AHA_WAM).items()}
    torch.save(VARIANTS[variant](content), tmp_path / "file.pt")
    found = identify(tmp_path / "file.pt")
    assert found.kind == "aha_wam" and not found.unexpected and bool(found.renamed) == (variant != "student")
    equal(mapped(found.tensors), flat(content))


@pytest.mark.parametrize("variant", ["plain", "model.", "model_state", "model_state+model."])
def test_a_vae_is_known_with_and_without_prefix_and_wrapper(variant, tmp_path):
    tensors = files.loaded(files.VAE)
    content = {f"model.{k}": v for k, v in tensors.items()} if "model." in variant else tensors
    torch.save({"model_state": content} if "model_state" in variant else content, tmp_path / "vae.pth")
    found = identify(tmp_path / "vae.pth")
    assert found.kind == "wan_vae" and not found.unexpected
    equal(mapped(found.tensors), tensors)


def test_transformers_alone_are_known(tmp_path):
    mot = files.loaded(files.AHA_WAM)["mot"]
    video = {k[15:]: v for k, v in mot.items() if k.startswith("mixtures.video.")}
    action = {k[16:]: v for k, v in mot.items() if k.startswith("mixtures.action.")}
    backbone = {k: v for k, v in action.items() if not k.startswith(("action_encoder.", "head."))}
    torch.save({"dit": video, "step": 3}, tmp_path / "dit.pt")
    torch.save({"policy": {"alpha": 1}, "backbone_state_dict": backbone, "meta": {"scale": 0.5}}, tmp_path / "backbone.pt")
    save_file({k: v.contiguous() for k, v in action.items()}, tmp_path / "action.safetensors")
    for name, kind, tensors in (
        ("dit.pt", "video_dit", video), ("backbone.pt", "action_dit_backbone", backbone),
        ("action.safetensors", "action_dit", action),
    ):  # fmt: skip
        found = identify(tmp_path / name)
        assert found.kind == kind and not found.unexpected
        equal(mapped(found.tensors), tensors)


@pytest.mark.parametrize("by_layer", [True, False])
def test_both_forms_of_lerobots_folder_have_the_released_names(by_layer, tmp_path):
    folder = files.lerobot_folder(tmp_path / "policy", by_layer)
    found, plain = identify(folder), identify(files.fast_wam(tmp_path / "plain.pt"))
    assert found.kind == "fast_wam" and not found.unexpected and found.file.config["type"] == "fastwam"
    equal(mapped(found.tensors), mapped(plain.tensors))


@pytest.mark.parametrize("tied", [(), ("encoder.embed_tokens.weight",)])
def test_a_text_encoder_as_transformers_saves_it_has_wans_names(tied, tmp_path):
    network, named = Umt5(tiny_umt5.CONFIG), {}
    for name, tensor in network.state_dict().items():
        for theirs, ours in reversed(umt5_reference.WAN_OF_HF.items()):
            name = re.sub(rf"(^|\.){ours}(?=\.)", rf"\g<1>{theirs}", name)
        named[name] = tensor
    named |= {name: named["shared.weight"].clone() for name in tied}
    save_file(named, tmp_path / "model.safetensors")
    found = identify(tmp_path / "model.safetensors")
    assert found.kind == "umt5" and not found.unexpected and len(found.renamed) == 1
    tensors = mapped(found.tensors)
    assert tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_what_is_unexpected_is_said_by_key(tmp_path):
    content = files.loaded(files.AHA_WAM)
    gate, head = "chunk_kv_cache_editor.delta_gate", "mixtures.action.head.weight"
    content["mot"][head] = content["mot"][head].to(torch.int8)
    content["mot"][gate] = content["mot"][gate][:-1]
    content["mot"]["more"] = torch.zeros(1)
    del content["proprio_encoder"]["bias"]
    content["optimizer"] = {"state": {0: {"exp_avg": torch.zeros(8), "step": 3}}, "param_groups": [{"lr": 0.1}]}
    torch.save(content, tmp_path / "odd.pt")
    found = identify(tmp_path / "odd.pt")
    said = " | ".join(found.unexpected)
    for phrase in (f"'mot.{gate}' is [2] where the others ask for [3]", f"'mot.{head}' has dtype int8",
                   "'mot.more' is not part of a aha_wam", "'proprio_encoder.bias' is missing"):  # fmt: skip
        assert phrase in said
    assert found.file.optimizer == {"tensors": 1, "bytes": 32}


def test_a_15_gb_file_is_inspected_in_two_seconds_and_little_memory(tmp_path):
    manifest = json.loads((MANIFESTS / "manifest_ahawam_full.json").read_text())
    path = files.sparse(tmp_path / "full.pt", {name: tuple(shape) for name, (shape, _) in manifest.items()})
    assert path.stat().st_size > 14.6e9 and path.stat().st_blocks * 512 < 100e6
    code = (
        "import runpy, sys, time\n"
        f"sys.argv = ['edgewam', 'inspect', {str(path)!r}, '--json']\n"
        "try:\n    runpy.run_module('edgewam', run_name='__main__')\nexcept SystemExit as stop:\n    assert not stop.code, stop\n"
        "peak = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(time.process_time(), peak * 1024, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    seconds, memory, torch_came = done.stderr.strip().splitlines()[-1].split()
    facts = json.loads(done.stdout)
    assert facts["family"] == "aha_wam" and facts["values"] == 7_349_428_556 and not facts["unexpected"] and facts["step"] == 7
    assert float(seconds) < MAX_INSPECT_CPU_S and int(memory) < MAX_INSPECT_BYTES and torch_came == "False"


class _Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", ["system", "eval", "getattr"])
def test_a_pickle_that_asks_for_code_runs_none_and_says_what_it_asked_for(function, protocol, tmp_path):
    mark, path = tmp_path / "it-ran", tmp_path / "evil.pt"
    action = f"touch {mark}"
    evil = {
        "system": _Call(os.system, action), "eval": _Call(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": _Call(getattr, dict, "fromkeys"),
    }  # fmt: skip
    content = {"mot": {"w": evil[function]}}
    for packed in (True, False):
        if packed:
            torch.save(content, path, pickle_protocol=max(protocol, 2))
        else:
            path.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(ArtifactError, match=r"asks to run '(posix|builtins)|__builtin__|neither a torch file") as caught:
            open_weights(path)
        assert str(path) in str(caught.value) and "Download it again" in str(caught.value)
    assert not mark.exists()


def test_a_pickle_that_claims_to_be_huge_takes_no_memory(tmp_path):
    path = tmp_path / "file.pt"
    for opcodes in (b"]r\x00\x00\x00\x7f.", b"\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", b"(" * 10):  # memo, bytes, marks
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x04" + opcodes)
        tracemalloc.start()
        with pytest.raises(ArtifactError):
            open_weights(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6


def test_damaged_bytes_of_any_header_are_refused_or_read(tmp_path):
    """Never another exception, never a hang: every file is read before anyone looked at it."""
    generator = random.Random(0)
    tensors = {"mot": {"a": torch.zeros(3, 2), "b": torch.ones(4)}, "step": 3}
    torch.save(tensors, tmp_path / "zip.pt")
    torch.save(tensors, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(dict(tensors["mot"]), tmp_path / "file.safetensors")
    refused = 0
    for name in ("zip.pt", "legacy.pt", "file.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(generator.randint(1, 4)):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                for entry in identify(tmp_path / name).file.entries.values():
                    assert sum(map(len, entry.pieces())) == entry.nbytes
            except ArtifactError:
                refused += 1
    assert refused > 100


def test_a_pickle_cannot_change_the_stand_ins(tmp_path):
    """BUILD on a named function or type would reach what later files are read with."""
    path = tmp_path / "file.pt"
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"collections\nOrderedDict", b"torch\nSize"):
        pickled = b"\x80\x02c" + name + b"\n}X\x05\x00\x00\x00dtypeX\x03\x00\x00\x00badsb."
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
        with pytest.raises(ArtifactError, match="tries to change"):
            open_weights(path)
    assert identify(files.AHA_WAM).kind == "aha_wam"


def test_truncation_anywhere_is_refused_by_name(tmp_path):
    tensors = {k: v.contiguous() for k, v in list(files.loaded(files.VAE).items())[:20]}
    torch.save(tensors, tmp_path / "zip.pt")
    torch.save(tensors, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "file.safetensors")
    for name in ("zip.pt", "legacy.pt", "file.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(ArtifactError, match=rf"{name}' \({length} bytes\) is truncated"):
                open_weights(tmp_path / name)


def test_shards_that_are_missing_short_or_wrong_are_named(tmp_path):
    tensors = {k: v.contiguous() for k, v in list(files.loaded(files.VAE).items())[:20]}
    index = files.shards(tmp_path, tensors)
    shard = tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ArtifactError, match=r"00002-of-00003.*it ends before"):
        open_weights(index)
    save_file({"another": torch.zeros(1)}, shard)
    with pytest.raises(ArtifactError, match=r"00002-of-00003\.safetensors' lacks 'encoder"):
        open_weights(index)
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"00002-of-00003.*is missing"):
        open_weights(index)
    index.write_text("{}")
    with pytest.raises(ArtifactError, match="no index of shards"):
        open_weights(index)


def test_foreign_files_say_what_they_are(tmp_path):
    path = tmp_path / "file.pt"
    cases = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "Git LFS pointer",
        b"<!DOCTYPE html>": "neither a torch file nor safetensors",
        pickle.dumps({"a": 1}): "not one of torch.save",
    }
    for content, phrase in cases.items():
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=phrase):
            open_weights(path)
    torch.save({"a": torch.zeros(9)}, tmp_path / "good.pt")
    files.rezipped(tmp_path / "good.pt", path, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="is compressed"):
        open_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ArtifactError, match=r"without data\.pkl"):
        open_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(ArtifactError, match="holds a list"):
        open_weights(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="holds no weights"):
        open_weights(tmp_path / "folder")


def test_offsets_that_lie_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    for offsets, shape in (([0, 400], [10]), ([-8, 32], [10]), ([0, 40], [-10])):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1000))
        with pytest.raises(ArtifactError, match=r"'a' has|damaged"):
            open_weights(path)


def test_what_shards_hold_is_what_safetensors_reads(tmp_path):
    from edgewam.models.checkpoints.shards import Cast, Held, write_shards

    torch.manual_seed(0)
    tensors = {"b": torch.randn(3, 5).bfloat16(), "a": torch.randn(7), "empty": torch.zeros(0, 4)}
    tensors |= {"i": torch.arange(3), "s": torch.randn(())}
    torch.save(tensors, tmp_path / "file.pt")
    entries = dict(open_weights(tmp_path / "file.pt").entries)
    sources = {**entries, "a16": Cast(entries["a"], "bfloat16"), "held": Held(torch.ones(2, 2, dtype=torch.float16).t())}
    expected = {**tensors, "a16": tensors["a"].bfloat16(), "held": torch.ones(2, 2, dtype=torch.float16)}
    for limit, parts in ((10**9, 1), (40, 4)):
        out = tmp_path / str(limit)
        out.mkdir()
        names = write_shards(out, sources, limit)
        assert len(names) == parts
        equal({k: v for name in names for k, v in load_file(out / name).items()}, expected)
        again = open_weights(out)
        equal(mapped(again.entries), expected)
        assert list(again.entries) == list(expected)  # the order survives

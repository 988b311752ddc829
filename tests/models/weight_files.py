"""Weight files as others write them, for tests: upstream's variants, legacy torch, shards, and one that asks for code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden import golden_dir

AHA_WAM, STUDENT = golden_dir() / "checkpoint_ahawam.pt", golden_dir() / "checkpoint_ahawam_student_ode.pt"
VAE = golden_dir() / "vae_raw.pt"
FAST_WAM = golden_dir() / "checkpoint_fastwam.pt"
CONFIG, FAST_CONFIG = golden_dir() / "config_ahawam.json", golden_dir() / "config_fastwam.json"
EDITOR = "chunk_kv_cache_editor."


def loaded(path: Path) -> dict[str, Any]:
    """What torch reads."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def fast_wam(path: Path, **changes: Tensor | None) -> Path:
    """A Fast-WAM file with the tensors of the golden AHA-WAM; `changes` of `mot`, None removes."""
    content = loaded(AHA_WAM)
    mot = {k: v for k, v in content["mot"].items() if not k.startswith(EDITOR) and k != "action_branch_embedding"}
    mot = {k: v for k, v in {**mot, **changes}.items() if v is not None}
    torch.save({"mot": mot, "step": 11, "torch_dtype": "torch.float32", "proprio_encoder": content["proprio_encoder"]}, path)
    return path


def lerobot_folder(folder: Path, by_layer: bool) -> Path:
    """LeRobot's Fast-WAM policy: one safetensors file under `model.`, by expert as first released or by layer as now."""
    content = loaded(AHA_WAM)
    tensors = {f"model.proprio_encoder.{k}": v for k, v in content["proprio_encoder"].items()}
    for name, tensor in content["mot"].items():
        parts = name.split(".")
        if parts[0] != "mixtures":
            continue
        if by_layer and parts[2] == "blocks":
            name = ".".join(["layers", parts[3], "blocks", parts[1], *parts[4:]])
        tensors[f"model.mot.{name}"] = tensor.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads(CONFIG.read_text())
    described = {
        "type": "fastwam", "action_dim": 5, "proprio_dim": 6, "action_horizon": 16, "action_video_freq_ratio": 2,
        "image_size": [64, 96], "context_len": 7, "video_dit_config": config["video_dit_config"],
        "action_dit_config": config["action_dit_config"], "toggle_action_dimensions": [-1],
        "input_features": {"observation.images.image": {}, "observation.images.wrist": {}, "observation.state": {}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    state = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    values = {f"{part}.{name}": torch.full((size,), value) for part, size in (("observation.state", 6), ("action", 5))
              for name, value in (("mean", 0.5), ("std", 2.0), ("min", -3.0), ("max", 5.0))}  # fmt: skip
    save_file(values, folder / state)
    step = {"registry_name": "normalizer_processor", "state_file": state,
            "config": {"norm_map": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}}}  # fmt: skip
    steps = [{"registry_name": "rename_observations_processor", "config": {}}, step]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))
    return folder


def shards(folder: Path, tensors: dict[str, Tensor], parts: int = 3) -> Path:
    """The tensors in several safetensors files with an index; returns the index."""
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for part in range(parts):
        name = f"diffusion_pytorch_model-{part + 1:05}-of-{parts:05}.safetensors"
        own = {key: tensors[key].contiguous() for key in list(tensors)[part::parts]}
        save_file(own, folder / name)
        weight_map |= dict.fromkeys(own, name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A torch file of bf16 tensors of these shapes (group.key), as torch lays it out, whose values are holes on the disk."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    groups: dict[str, Any] = {}
    with FakeTensorMode():
        for name, shape in shapes.items():
            group, key = name.split(".", 1)
            groups.setdefault(group, {})[key] = torch.empty(shape, dtype=torch.bfloat16)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({**groups, "step": 7, "torch_dtype": "torch.bfloat16"}, path)
    return path


def rezipped(path: Path, out: Path, compression: int) -> Path:
    """The same entries with another compression."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out

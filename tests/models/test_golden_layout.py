"""The golden folder is complete: what tests would miss in silence is named here, and sizes are the declared ones.

The shipped folder's index is the layout.  Numbers in names (layers, chunks, refreshes, steps) may differ in other folders.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from tests.golden import GOLDEN
from tests.models import aha_wam_golden as golden
from tests.models import fast_wam_golden as fast

INDEX = json.loads((GOLDEN / "aha_wam" / "_index.json").read_text())
FAST = [name for name in INDEX if name.startswith("fastwam_")]
FILES = [name for name in INDEX if name not in FAST]


def pattern(name: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "*", name)


@pytest.mark.parametrize("name", INDEX)
def test_every_kind_of_tensor_is_there(name):
    dtypes = {pattern(key): str(value.dtype).removeprefix("torch.") for key, value in golden.arrays(name).items()}
    expected = {pattern(key): dtype for key, (_, dtype) in INDEX[name].items()}
    assert {key: dtypes.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", FILES)
def test_every_layer_is_there(name):
    found = golden.arrays(name)
    layers: dict[str, set[int]] = {}
    for key in found:
        if number := re.search(r"(?:\blayer|blocks\.|after_layer)(\d+)", key):
            layers.setdefault(key[: number.start(1)] + "*" + key[number.end(1) :], set()).add(int(number[1]))
    assert all(numbers == set(range(golden.config().num_layers)) for numbers in layers.values())


def test_the_shipped_arrays_have_the_shapes_of_their_index():
    for name in INDEX:
        stored = load_file(GOLDEN / "aha_wam" / f"{name}.safetensors")
        assert {key: list(value.shape) for key, value in stored.items()} == {
            key: shape for key, (shape, _) in INDEX[name].items()
        }


@pytest.mark.parametrize("name", [name for name in FILES if any(key.endswith("context_mask") for key in INDEX[name])])
def test_every_text_row_is_attended_padding_included(name):
    data = golden.arrays(name)
    prefix = "batch." if "batch.context" in data else "text."
    context, mask = data[f"{prefix}context"], data[f"{prefix}context_mask"]
    assert context.shape[1:] == (golden.config().text_len, golden.config().text_dim)
    assert torch.equal(mask, torch.ones(context.shape[:2], dtype=torch.uint8))


@pytest.mark.parametrize("name", [name for name in FILES if "batch.video_u8" in INDEX[name]])
def test_batches_have_the_declared_sizes(name):
    data, config, sizes = golden.arrays(name), golden.config(), golden.release_json()["golden_sizes"]
    prefix = "offset_" if "batch.action_offset" in data else ""
    frames, ratio = sizes[f"{prefix}num_video_frames"], sizes["action_video_freq_ratio"]
    batch, size = len(data["batch.action"]), (config.image_height, config.image_width)
    assert data["batch.action"].shape == (batch, (frames - 1) * ratio, config.action_dim)
    assert data["batch.proprio"].shape == (batch, (frames - 1) * ratio, config.proprio_dim)
    assert data["batch.video_u8"].shape == (batch, 3, frames, *size)
    assert data["batch.video_history_u8"].shape == (batch, 3, config.memory_slots, *size)
    assert torch.equal(data["batch.video_current_frame_index"], data["batch.video_temporal_position_ids"][:, 0])
    if prefix:
        assert data["batch.action_offset"].min() >= 0 and data["batch.action_offset"].max() <= sizes["offset_max"]


def test_samplers_go_through_every_chunk():
    for name in ("sampler_streaming", "student_sampler_streaming"):
        for steps in golden.indices(name, r"steps(\d+)\."):
            chunks = golden.indices(name, rf"steps{steps}\.chunk(\d+)\.actions_normalized")
            assert chunks == list(range(golden.config().num_chunks))


@pytest.mark.parametrize("name", FAST)
def test_arrays_of_fast_wam_have_its_declared_sizes(name):
    data, config = golden.arrays(name), fast.config()
    prefix, size = ("batch." if "batch.context" in data else "text."), (config.image_height, config.image_width)
    assert data[f"{prefix}context"].shape[1:] == (config.text_len, config.text_dim)
    assert torch.equal(data[f"{prefix}context_mask"], torch.ones(data[f"{prefix}context"].shape[:2], dtype=torch.uint8))
    if prefix == "batch.":
        assert data["batch.action"].shape[1:] == (config.horizon, config.action_dim)
        assert data["batch.proprio"].shape[1:] == (config.horizon, config.proprio_dim)
        assert data["batch.video_u8"].shape[-2:] == size
        assert (data["batch.video_u8"].shape[2] - 1) % 4 == 0, "frame 0, then groups of four"
    else:
        assert data["image_u8"].shape[-2:] == size and data["start_noise"].shape[1:] == (config.horizon, config.action_dim)
        layers = {int(key.split(".layer")[1].split(".")[0]) for key in data if ".layer" in key}
        assert layers == set(range(config.num_layers))

"""What training asks of a family: the attributes are there, sizes come out of tensor shapes, students learn one expert."""

from __future__ import annotations

import pytest
import torch

from edgewam.core.errors import ContractError, PluginError
from edgewam.models import aha_wam
from edgewam.models.checkpoints import read_release
from edgewam.models.family import trainable
from tests.models import aha_wam_golden as golden


def golden_shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in read_release(golden.FOLDER / "checkpoint_ahawam.pt").tensors.items()}


def test_a_family_that_cannot_be_trained_is_refused_by_name() -> None:
    assert trainable("aha_wam") is aha_wam
    with pytest.raises(PluginError, match=r"'toy_three' can be compiled but not trained.*training_loss"):
        trainable("toy_three")


def test_sizes_of_a_checkpoint_are_read_from_its_shapes() -> None:
    told = {"horizon", "chunk_size", "text_len", "image_height", "image_width", "memory_slots", "rope_stride", "head_dim"}
    config = golden.config()
    found = aha_wam.sizes_of(golden_shapes(), **{name: getattr(config, name) for name in told})
    assert found == config
    with torch.device("meta"):
        released = {name: tuple(t.shape) for name, t in aha_wam.AhaWam(aha_wam.full()).state_dict().items()}
    assert aha_wam.sizes_of(released) == aha_wam.full(), "nothing has to be told of the released form"


def test_what_shapes_do_not_tell_is_asked_for() -> None:
    shapes = golden_shapes()
    with pytest.raises(ContractError, match=r"60 wide; heads of 128.*Give head_dim"):
        aha_wam.sizes_of(shapes)
    with pytest.raises(ContractError, match="heads of 7 do not divide"):
        aha_wam.sizes_of(shapes, head_dim=7)
    with pytest.raises(ContractError, match="video_dim 60, not 64"):
        aha_wam.sizes_of(shapes, head_dim=20, video_dim=64)
    with pytest.raises(ContractError, match="multiple of chunk_size"):
        aha_wam.sizes_of(shapes, head_dim=20, chunk_size=7)
    with pytest.raises(ContractError, match=r"'proprio_encoder.weight' is missing"):
        aha_wam.sizes_of({name: shape for name, shape in shapes.items() if not name.startswith("proprio")}, head_dim=20)
    fewer = {name: shape for name, shape in shapes.items() if not name.startswith("mot.mixtures.action.blocks.2.")}
    with pytest.raises(ContractError, match="3 video layers and 2 action layers"):
        aha_wam.sizes_of(fewer, head_dim=20)


def test_a_checkpoint_is_known_by_the_routers_editor() -> None:
    shapes = golden_shapes()
    assert aha_wam.matches(shapes)
    assert not aha_wam.matches(name for name in shapes if "chunk_kv_cache_editor" not in name)


def test_every_layer_is_a_block_and_students_learn_the_executor_alone() -> None:
    model = golden.model()
    in_blocks = {id(p) for block in aha_wam.BLOCKS(model) for p in block.parameters()}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in in_blocks) == (".blocks." in name or ("_proj." in name and "chunk_kv" in name)), name
    learnt = {name for name in model.state_dict() if name.startswith(aha_wam.LEARNT_BY_STUDENTS)}
    assert learnt == {name for name in model.state_dict() if "mixtures.action" in name or "branch_embedding" in name}

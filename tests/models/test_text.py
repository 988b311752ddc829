"""The small text encoder is frozen and separates words; packed padding attends like the rows it stands for."""

import numpy as np
import pytest
import torch

from edgewam.core.errors import ContractError
from edgewam.models.dit_block import attend
from edgewam.models.text import SmallTextEncoder, pack_context, prompt_of
from tests.models import aha_wam_golden as golden


def test_words_are_frozen_vectors_of_unit_variance_and_padding_is_zero():
    rows = SmallTextEncoder().encode("Pick up the red cube!")
    assert rows.shape == (16, 128) and rows.dtype == np.float32
    assert np.all(np.abs(rows[:5]) == 1) and not rows[5:].any()
    # printf 'pick/0' | sha256sum begins with 3d96; a change would silently re-label every trained policy
    bits = f"{0x3D96:016b}"
    assert rows[0, :16].tolist() == [1.0 if bit == "1" else -1.0 for bit in bits]


def test_case_and_punctuation_do_not_matter_and_different_words_are_nearly_orthogonal():
    encoder = SmallTextEncoder(text_dim=300)
    a, b = encoder.encode("Red, cube"), encoder.encode("red CUBE.")
    assert np.array_equal(a, b)
    assert abs(a[0] @ a[1]) / 300 < 0.25  # four standard deviations


def test_instructions_that_do_not_fit_are_refused():
    with pytest.raises(ContractError, match="Shorten it"):
        SmallTextEncoder(text_len=2).encode("one two three")
    with pytest.raises(ContractError, match="no words"):
        SmallTextEncoder().encode(" !? ")


def test_the_prompt_holds_the_task_after_the_template():
    assert prompt_of(" fold the towel ") == (
        "A video recorded from a robot's point of view executing the following instruction: fold the towel"
    )


@pytest.mark.parametrize("extra", [0, 3])
def test_packed_padding_attends_like_all_its_zero_rows(extra):
    context = golden.arrays("prefill_memory")["text.context"]
    num_words = int((context[0] != 0).any(-1).sum())
    rows, bias = pack_context(context[0].numpy(), num_words + extra)
    net = golden.model().planner
    q = torch.randn(1, 4, golden.config().attention_dim, generator=torch.Generator().manual_seed(0))
    packed = torch.cat([torch.from_numpy(rows), torch.zeros(1, rows.shape[1])])[None]
    heads = golden.config().num_heads
    for full, short in zip(net.text_key_values(context), net.text_key_values(packed), strict=True):
        torch.testing.assert_close(
            attend(q, *short, heads, torch.from_numpy(bias)), attend(q, *full, heads), atol=golden.STAGE_ATOL, rtol=0
        )


def test_a_prompt_without_padding_masks_the_padding_key_and_a_long_one_is_refused():
    rows, bias = pack_context(np.ones((3, 4)), 5)
    assert rows.shape == (5, 4) and bias.tolist() == [0, 0, 0, -np.inf, -np.inf, -np.inf]
    with pytest.raises(ContractError, match="compile again"):
        pack_context(np.ones((3, 4)), 2)

"""Stages at golden size for the tests of rewrites, in float32 or wholly in float64, and one walk through all of them.

Gains, norms and gates of the golden weights are drawn anew: some are ones and zeros there, and folding those proves nothing.
"""

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.core.rope import axis_rope, frame_rope
from edgewam.models import aha_wam
from edgewam.models.text import pack_context
from edgewam.models.wan_vae_image import image_encoder
from tests.contracts.test_family import ACTIONS, STATES
from tests.models import aha_wam_golden as golden

BUCKET = 4  # below the head width of the golden model, so that no rewrite refuses


def lively_model():
    """The golden network with every one-dimensional parameter, and every zero tensor, moved away from ones and zeros."""
    model = golden.model().requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1 or not parameter.any():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def stages_of(model, bucket=BUCKET):
    return aha_wam.stages(model, image_encoder(golden.vae()), STATES, ACTIONS, bucket)


@contextmanager
def in_float64():
    """Let `.float()`, with which stages ask for wide sums, give float64: what remains of a deviation is the algebra's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def as_float64(stages):
    """Copies whose weights, constants, inputs and outputs are float64; use them inside `in_float64`."""

    def wide(specs):
        return tuple(replace(spec, dtype="float64") if spec.dtype == "float32" else spec for spec in specs)

    return {
        name: replace(s, inputs=wide(s.inputs), outputs=wide(s.outputs), function=copy.deepcopy(s.function).double())
        for name, s in stages.items()
    }


def walk(stages, dtype=torch.float32, seed=3):
    """What a policy makes of fixed random inputs: planner context, routed context and the state after one solver step."""
    config = golden.config()
    rng = np.random.default_rng(seed)

    def draw(stage, name):
        return torch.from_numpy(rng.standard_normal(stages[stage].input(name).shape)).to(dtype)

    rows = np.zeros((config.text_len, config.text_dim), np.float32)
    rows[:3] = rng.standard_normal((3, config.text_dim))
    words = [torch.from_numpy(part).to(dtype) for part in pack_context(rows, stages["text"].input("text_rows").shape[0])]
    slots = torch.zeros(config.memory_slots, dtype=dtype)
    slots[1:] = -torch.inf
    frame = [torch.from_numpy(t).to(dtype) for t in frame_rope(9, config.grid, config.rope_dims, config.rope_theta)]
    chunk = [torch.from_numpy(t).to(dtype) for t in axis_rope(np.arange(config.chunk_size), config.head_dim, config.rope_theta)]
    mask = torch.arange(config.chunk_size) < 2
    latent, memory = draw("planner", "latent"), draw("planner", "memory")
    x, time_row, clean_row = (draw("denoise", name) for name in ("x", "time_row", "clean_row"))
    delta, prefix, state = draw("denoise", "delta"), draw("denoise", "prefix_normalised"), draw("state", "state")
    with torch.no_grad():
        planner_text, executor_text, key_bias = stages["text"].function(*words)
        (context,) = stages["planner"].function(latent, memory, slots, planner_text, key_bias, *frame)
        (routed,) = stages["router"].function(latent, context)
        (cross,) = stages["state"].function(state, executor_text)
        (after,) = stages["denoise"].function(x, time_row, clean_row, delta, routed, cross, key_bias, *chunk, prefix, mask)
    return {"context": context, "routed": routed, "x_next": after}


def deviation(found, expected):
    """Largest deviation of any output from the expected one, relative to that one's maximum."""
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)

"""Compiling Fast-WAM: the rewrites that fit are exact, the router's say that there is none, and groups of layers are refused."""

import numpy as np
import pytest
import torch

from edgewam.compile.layer_groups import in_layer_groups
from edgewam.compile.rewrites import REWRITES, RewriteRefused, refusals, rewrite
from edgewam.core.errors import EdgewamError
from edgewam.core.rope import axis_rope, frame_rope
from edgewam.models import fast_wam
from edgewam.models.text import pack_context
from edgewam.models.wan_vae_image import image_encoder
from tests.compile.rewritten import BUCKET, as_float64, deviation, in_float64
from tests.compile.test_rewrites import FLOAT64
from tests.contracts.test_family import ACTIONS, STATES
from tests.models import aha_wam_golden as golden
from tests.models import fast_wam_golden as fast

OF_THE_ROUTER = {name for name, row in REWRITES.items() if row.stages == ("router",)}
FITTING = [name for name, row in REWRITES.items() if row.function is not None and name not in OF_THE_ROUTER]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    net, generator = fast.model().requires_grad_(False), torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        if parameter.dim() == 1:  # gains and norms away from ones and zeros: folding those proves nothing
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return net


@pytest.fixture(scope="module")
def plain(model):
    return fast_wam.stages(model, image_encoder(golden.vae()), STATES, ACTIONS, BUCKET)


def walk(stages, dtype=torch.float32, seed=3):
    """What a policy makes of fixed random inputs: the prefilled context and the state after one solver step."""
    config, rng = fast.config(), np.random.default_rng(seed)

    def draw(stage, name):
        return torch.from_numpy(rng.standard_normal(stages[stage].input(name).shape)).to(dtype)

    rows = np.zeros((config.text_len, config.text_dim), np.float32)
    rows[:3] = rng.standard_normal((3, config.text_dim))
    words = [torch.from_numpy(part).to(dtype) for part in pack_context(rows, BUCKET)]
    frame = [torch.from_numpy(t).to(dtype) for t in frame_rope(0, config.grid, config.rope_dims, config.rope_theta)]
    chunk = [torch.from_numpy(t).to(dtype) for t in axis_rope(np.arange(config.horizon), config.head_dim, config.rope_theta)]
    mask = torch.arange(config.horizon) < 2
    latent, state = draw("planner", "latent"), draw("state", "state")
    x, time_row, clean_row, delta, prefix = (
        draw("denoise", name) for name in ("x", "time_row", "clean_row", "delta", "prefix_normalised")
    )
    with torch.no_grad():
        planner_text, executor_text, key_bias = stages["text"].function(*words)
        planner_cross, cross = stages["state"].function(state, planner_text, executor_text)
        (context,) = stages["planner"].function(latent, planner_cross, key_bias, *frame)
        (after,) = stages["denoise"].function(x, time_row, clean_row, delta, context, cross, key_bias, *chunk, prefix, mask)
    return {"context": context, "x_next": after}


@pytest.mark.parametrize("names", [[name] for name in FITTING] + [FITTING], ids=[*FITTING, "all"])
def test_a_rewrite_is_exact_in_float64_and_within_its_tolerance_in_float32(plain, names):
    changed = rewrite(plain, names)
    found = deviation(walk(changed), walk(plain))
    assert found <= max(REWRITES[name].tolerance for name in names)
    assert {stage for stage in plain if changed[stage].function is not plain[stage].function} == {
        stage for name in names for stage in REWRITES[name].stages
    }
    with in_float64():
        wide = as_float64(plain)
        assert deviation(walk(rewrite(wide, names), torch.float64), walk(wide, torch.float64)) < FLOAT64


def test_what_does_not_fit_is_left_out_with_the_reason(plain):
    reasons = refusals(plain)
    assert set(reasons) == OF_THE_ROUTER and all("no stage 'router'" in reason for reason in reasons.values())
    assert sum(s.cost.flops for s in rewrite(plain).values()) < sum(s.cost.flops for s in plain.values())
    with pytest.raises(RewriteRefused, match=r"'fold_state'.*already"):
        rewrite(rewrite(plain, ["fold_state"]), ["fold_state"])


def test_groups_of_layers_are_refused_because_there_is_no_refresh(model, plain):
    with pytest.raises(EdgewamError, match=r"runs inside every chunk.*Leave the layer groups out"):
        in_layer_groups(plain, fast_wam.programs(model, 2, text_bucket=BUCKET), 2)

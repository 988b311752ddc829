"""The programs of Fast-WAM are its plain forward pass, with the state token, zero padding, given rows and a larger bucket."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewam.core.observation import Normalizer
from edgewam.flow.solver import euler_table
from edgewam.models import fast_wam
from edgewam.models.flow_ode import Prefix
from edgewam.models.wan_vae_image import image_encoder
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.pipeline import Pipeline
from tests.models import aha_wam_golden as golden
from tests.models import fast_wam_golden as fast


def _normalizer(size, seed):
    rng = np.random.default_rng(seed)
    return Normalizer(rng.normal(size=size).astype(np.float32), rng.uniform(0.5, 1.5, size).astype(np.float32))


CONFIG = fast.config()
STATES, ACTIONS = _normalizer(CONFIG.proprio_dim, 1), _normalizer(CONFIG.action_dim, 2)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return fast.model().requires_grad_(False)


def robot(model, steps, bucket=CONFIG.text_len):
    """A pipeline that was given the golden prompt."""
    stages = fast_wam.stages(model, image_encoder(golden.vae()), STATES, ACTIONS, bucket)
    engines = {name: TorchEngine(stage) for name, stage in stages.items()}
    pipeline = Pipeline(fast_wam.programs(model, steps, text_bucket=bucket), stages, engines)
    rows = golden.arrays(fast.INFERENCE)["text.context"][0].numpy()
    pipeline.run("prompt", fast_wam.prompt_inputs(CONFIG, rows, bucket))
    return pipeline


def act(pipeline, prefix=None, mask=None):
    """Normalised actions [horizon, D] for the golden image, state and noise."""
    data = golden.arrays(fast.INFERENCE)
    noise = data["start_noise"][0].numpy()
    inputs = {
        "image": np.ascontiguousarray(data["image_u8"][0].permute(1, 2, 0).numpy()),
        "state": STATES.backward(data["proprio"][0].numpy()),
        "noise": noise,
        "prefix": np.zeros_like(noise) if prefix is None else prefix,
        "prefix_mask": np.zeros(len(noise), bool) if mask is None else mask,
    }
    return (pipeline.run("act", inputs)["actions"] - ACTIONS.mean) / ACTIONS.std


@pytest.mark.parametrize("steps", golden.indices(fast.INFERENCE, r"steps(\d+)\."))
def test_programs_give_the_released_actions(model, steps):
    expected = golden.arrays(fast.INFERENCE)[f"steps{steps}.actions_normalized"].numpy()
    np.testing.assert_allclose(act(robot(model, steps)), expected, atol=golden.SAMPLER_ATOL, rtol=0)


def test_a_larger_text_bucket_gives_the_same_actions(model):
    small, large = (act(robot(model, 2, CONFIG.text_len + extra)) for extra in (0, 2))
    np.testing.assert_allclose(small, large, atol=golden.STAGE_ATOL, rtol=0)


def test_given_rows_are_those_of_the_plain_sampler_and_an_empty_mask_changes_no_bit(model):
    data, pipeline = golden.arrays(fast.INFERENCE), robot(model, 2)
    plain = act(pipeline)
    nothing = np.full_like(plain, np.nan)
    assert np.array_equal(act(pipeline, nothing, np.zeros(len(plain), bool)), plain)
    wanted = torch.linspace(-1, 1, plain.size).reshape(1, *plain.shape)
    given = CONFIG.horizon // 4
    conditioning = fast_wam.prefill(model, golden.encode_images(data["image_u8"]), data["text.context"], data["proprio"])
    prefix = Prefix(wanted, torch.tensor([[given]]))
    table = euler_table(2, CONFIG.shift)
    expected = fast_wam.sample_horizon(model, conditioning, data["start_noise"], table, prefix)[-1][0].numpy()
    found = act(pipeline, ACTIONS.backward(wanted[0].numpy()), np.arange(len(plain)) < given)
    np.testing.assert_allclose(found, expected, atol=golden.SAMPLER_ATOL, rtol=0)
    assert np.abs(found[given:] - plain[given:]).max() > 1e-3


def test_keys_and_values_have_the_weights_dtype_and_hosts_give_the_rest():
    programs = fast_wam.programs(fast.model().to(torch.bfloat16), 2)
    assert {spec.dtype for spec in programs.programs["act"].inputs} == {"uint8", "float32", "bool"}
    assert {spec.name for spec in programs.programs["act"].inputs} == {"image", "state", "noise", "prefix", "prefix_mask"}
    states = {state.spec.name: state.spec.dtype for state in programs.states}
    assert states == {"planner_text": "bfloat16", "executor_text": "bfloat16", "key_bias": "float32"}


def test_a_tenth_of_the_full_layers_builds_on_the_meta_device_and_counts_a_tenth_of_the_work():
    with torch.device("meta"):
        model = fast_wam.build(replace(fast_wam.full(), num_layers=3)).to(torch.bfloat16)
    encoder = torch.nn.Module()
    encoder.forward = lambda image: torch.empty(1, 48, 24, 20, device="meta")
    unit = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    denoise = fast_wam.stages(model, encoder, unit, unit)["denoise"]
    # the executor's step is AHA-WAM's, 27.7 GFLOP for 16 rows on 817.9M weights (facts/aha_wam.md 8), with 32 rows
    assert denoise.cost.flops == pytest.approx(2 * 27.7e9 / 10, rel=0.03)
    assert denoise.cost.weight_bytes == pytest.approx(2 * 817.9e6 / 10, rel=0.01)
    assert denoise.input("context").shape == (3, 2, 120, 3072)

"""The inference tables are the released ones, bit for bit, and the training weight follows its closed form."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from edgewam.flow.schedule import shift_sigma, sigma_grid, step_table
from edgewam.flow.training import add_noise, draw_timesteps, loss_weight, velocity_target, weight_constants
from tests.golden import golden_dir

GOLDEN = golden_dir()
ARRAYS = load_file(GOLDEN / "scheduler.safetensors")
SHIFTS = json.loads((GOLDEN / "config_ahawam.json").read_text())["scheduler"]
TABLES = sorted(key.removesuffix(".timesteps.f32") for key in ARRAYS if key.endswith(".timesteps.f32"))
ROUNDED = sorted(key.removesuffix(".timesteps.bf16") for key in ARRAYS if key.endswith(".timesteps.bf16"))
assert TABLES and ROUNDED, "parametrised tests without a case would be skipped in silence"


def steps_and_shift(name: str) -> tuple[int, float]:
    steps, shift = re.fullmatch(r"infer\.steps(\d+)(?:\.shift([\d.]+))?", name).groups()
    return int(steps), float(shift or SHIFTS["infer_shift"])


@pytest.mark.parametrize("name", TABLES)
def test_float32_tables_equal_the_golden_ones_bitwise(name):
    table = step_table(*steps_and_shift(name))
    assert torch.equal(table.timesteps, ARRAYS[f"{name}.timesteps.f32"])
    assert torch.equal(table.deltas, ARRAYS[f"{name}.deltas.f32"])


@pytest.mark.parametrize("name", ROUNDED)
def test_bf16_tables_equal_the_golden_ones_bitwise(name):
    table = step_table(*steps_and_shift(name), "bf16")
    assert torch.equal(table.timesteps, ARRAYS[f"{name}.timesteps.bf16"])
    assert torch.equal(table.deltas, ARRAYS[f"{name}.deltas.bf16"])


def test_training_shift_and_weight_equal_the_golden_ones_bitwise():
    shift = SHIFTS["train_shift"]
    assert torch.equal(1000 * shift_sigma(ARRAYS["train.shift.u"], shift), ARRAYS["train.shift.timestep"])
    assert torch.equal(loss_weight(ARRAYS["train.weight.timestep_grid"], shift), ARRAYS["train.weight.values"])
    assert weight_constants(shift) == (ARRAYS["train.weight.y_min_f64"].item(), ARRAYS["train.weight.norm_const_f64"].item())


def test_the_grid_ends_at_zero_and_the_deltas_sum_to_minus_one():
    for steps in (1, 2, 7, 16):
        assert sigma_grid(steps)[-1] == 0
        torch.testing.assert_close(step_table(steps).deltas.sum(), torch.tensor(-1.0))


def test_bad_schedules_are_refused_with_what_is_wrong():
    with pytest.raises(ValueError, match="num_steps"):
        sigma_grid(0)
    with pytest.raises(ValueError, match="shift"):
        sigma_grid(4, shift=0.0)
    with pytest.raises(ValueError, match="Available: float32, bf16"):
        step_table(2, tables="fp8")


def test_drawn_timesteps_have_the_shifted_uniform_distribution():
    t = draw_timesteps((20_000,), torch.Generator().manual_seed(0))
    sigma = t / 1000
    uniform = sigma / (5 - 4 * sigma)  # the inverse of the shift
    assert t.min() >= 0 and t.max() < 1000
    torch.testing.assert_close(uniform.mean(), torch.tensor(0.5), atol=0.01, rtol=0)  # 0.01 = 5 standard errors
    torch.testing.assert_close(uniform.var(), torch.tensor(1 / 12), atol=0.005, rtol=0)
    assert torch.equal(t, draw_timesteps((20_000,), torch.Generator().manual_seed(0)))


def test_following_the_target_velocity_to_sigma_zero_gives_the_clean_sample():
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    t = torch.tensor([800.0, 500.0, 20.0])[:, None]
    recovered = add_noise(clean, noise, t) - t / 1000 * velocity_target(clean, noise)
    torch.testing.assert_close(recovered, clean)

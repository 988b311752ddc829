"""Euler as a table agrees with closed forms, and a prefix stays where it is."""

import pytest
import torch

from edgewam.flow.prefix import delay_mask, prefix_timesteps, restore_prefix
from edgewam.flow.solver import euler_table, integrate


def test_euler_is_exact_for_a_constant_velocity():
    noise, velocity = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    for steps in (1, 2, 10):
        final = integrate(lambda x, t: velocity, noise, euler_table(steps))[-1]
        torch.testing.assert_close(final, noise - velocity)


def test_euler_converges_at_first_order_to_the_closed_form():
    # dx/dsigma = x from sigma 1 to 0 gives x0 / e
    errors = [abs(float(integrate(lambda x, t: x, torch.ones(1), euler_table(n))[-1]) - torch.e**-1) for n in (40, 80)]
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_the_network_sees_the_table_s_timesteps_in_order():
    seen = []
    integrate(lambda x, t: seen.append(float(t)) or x, torch.zeros(1), euler_table(2, tables="bf16"))
    assert seen == [1000.0, 832.0]  # 833.33 rounds to 832 in bfloat16


def test_restoring_with_an_empty_mask_is_bitwise_neutral():
    x = torch.tensor([[1.0, -0.0], [float("inf"), 2.0]])
    out = restore_prefix(x, torch.full_like(x, 9.0), torch.zeros(2))
    assert torch.equal(out, x) and torch.equal(out.signbit(), x.signbit())


def test_masked_rows_are_clean_and_restored():
    mask = delay_mask(4, 2)
    assert torch.equal(prefix_timesteps(torch.tensor(700.0), mask), torch.tensor([0.0, 0.0, 700.0, 700.0]))
    out = restore_prefix(torch.zeros(4, 1), torch.ones(4, 1), mask)
    assert out[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_delay_longer_than_the_chunk_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.4"):
        delay_mask(4, 5)

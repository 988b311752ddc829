"""Focused batches: contexts are drawn again by how far the teacher's draws lie apart there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.core.errors import EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.windows import num_valid_history
from edgewam.distill.focus import Focus, spread
from edgewam.distill.ode import OdeDistillation, prepare
from edgewam.distill.trajectories import TrajectoryPlan
from edgewam.flow.solver import euler_table, integrate
from edgewam.training.policy import train_policy
from tests.training import tiny

MORE_OFTEN = 1.02  # mean weight of what is drawn by weight, over that of all: mean square / squared mean, 1.06 here
FOCUSED = TrajectoryPlan(num_batches=12, focused=6, batch_size=16)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """(dataset, directory with teacher and latents)."""
    root = tmp_path_factory.mktemp("focus")
    dataset, vae = tiny.dataset_at(root / "dataset"), tiny.vae_at(root / "vae")
    loop = replace(tiny.LOOP, steps=20, warmup_steps=2)
    train_policy(tiny.policy_training(dataset, vae, root / "latents", loop=loop), root / "teacher")
    return dataset, root


def prepared(road: tuple[Dataset, Path], plan: TrajectoryPlan) -> tuple[object, ...]:
    dataset, root = road
    config = OdeDistillation(
        teacher=root / "teacher", dataset=dataset.path, latents=root / "latents", trajectories=plan, loop=tiny.LOOP
    )
    return prepare(config, root / f"focused_{plan.focused}")


def test_the_spread_of_one_draw_is_that_of_the_teacher_s_draws() -> None:
    """Exact flow of data with two equally likely values -a and a per context: the posterior mean has a closed form."""
    apart = torch.tensor([0.0, 1.0, 2.0])[:, None, None].expand(3, 400, 5)
    noise = torch.randn(3, 400, 5, generator=torch.Generator().manual_seed(0))
    table = euler_table(10, shift=5.0)

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sigma = timestep / 1000
        expected = apart * torch.tanh(apart * x * (1 - sigma) / sigma**2)
        return (x - expected) / sigma

    states = [state.numpy() for state in integrate(velocity, noise, table)]
    found = spread(states[0], states[1], states[-1], -float(table.velocity[0]))
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[1:] == pytest.approx([0.81, 3.9], rel=0.05)  # of 1 and 4: the last step stops short; 2000 draws


def test_a_draw_holds_one_history_length_and_follows_the_weights(road: tuple[Dataset, Path]) -> None:
    source = prepared(road, replace(FOCUSED, focused=0))[0].cache.source  # type: ignore[attr-defined]
    choices = [source.draw(16, np.random.default_rng(i)) for i in range(8)]
    weights = np.zeros(128, np.float32)
    weights[[3, 70, 71]] = [1.0, 1.0, 3.0]
    focus = Focus.of(source, choices, weights)
    counts = {3: 0, 70: 0, 71: 0}
    places = {(focus.windows[row], focus.offsets[row], focus.spacings[row]): row for row in counts}
    for seed in range(40):
        drawn = focus.draw(16, np.random.default_rng(seed))
        steps = source.cache.window_step[drawn.windows]
        assert len(set(num_valid_history(source.layout, steps, np.full(16, drawn.spacing)))) == 1
        for window, offset in zip(drawn.windows, drawn.offsets, strict=True):
            counts[places[window, offset, drawn.spacing]] += 1  # KeyError: a context without weight was drawn
    assert counts[71] > 2 * counts[70] > 0
    assert counts[3] > 0


def test_focused_batches_hold_contexts_of_the_others_where_draws_lie_apart_with_other_noise(road: tuple[Dataset, Path]) -> None:
    cache = prepared(road, FOCUSED)[0].cache  # type: ignore[attr-defined]
    first_step = -float(euler_table(16).velocity[0])
    apart = [spread(s[0], s[1], s[-1], first_step) for s in cache.states[:6]]
    seen: dict[tuple[int, int], list[float]] = {}
    for index in range(6):
        choice = cache.choice(index)
        for window, offset, found in zip(choice.windows, choice.offsets, apart[index], strict=True):
            seen.setdefault((window, offset), []).append(found)
    again = [cache.choice(index) for index in range(6, 12)]
    drawn = [np.mean(seen[place]) for choice in again for place in zip(choice.windows, choice.offsets, strict=True)]
    assert np.mean(drawn) > np.mean(apart) * MORE_OFTEN
    noises = cache.states[:, 0].reshape(12 * 16, -1)
    assert len(np.unique(noises[:, 0])) == len(noises)


@pytest.mark.parametrize(("changes", "message"), [
    ({"focused": 12}, "12 of 12 batches cannot be focused"),
    ({"focused": -1}, "-1 of 12 batches cannot be focused"),
    ({"captured": (0, 8, 16)}, "Add 1 to captured"),
])  # fmt: skip
def test_a_plan_that_cannot_focus_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(EdgewamError, match=message):
        replace(FOCUSED, **changes)  # type: ignore[arg-type]

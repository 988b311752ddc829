"""Distillation reproduces the released conditioning, trajectories, loss, gradients and student sampler."""

import numpy as np
import pytest
import torch

from edgewam.flow.schedule import StepTable, sigma_grid
from edgewam.flow.solver import euler, euler_table
from edgewam.models.aha_wam_loss import condition
from edgewam.models.aha_wam_stream import sample_chunk
from edgewam.models.flow_ode import (
    Prefix,
    draw_anchors,
    ode_loss,
    rollout_loss,
    sample_horizon,
    student_prediction,
    teacher_trajectory,
)
from tests.models import aha_wam_golden as golden

CLOSE = {"atol": golden.STAGE_ATOL, "rtol": 0}
SAMPLED = {"atol": golden.SAMPLER_ATOL, "rtol": 0}


@pytest.fixture(scope="module")
def stored():
    data = golden.arrays("distill_loss")
    batch, _ = golden.loss_batch("distill_loss")
    teacher = golden.model()
    steps = golden.indices("distill_loss", r"teacher\.state_at_step(\d+)")
    conditioning = condition(teacher, batch)
    trajectory = teacher_trajectory(teacher, conditioning, data["start_noise"], len(data["teacher.timesteps"]), tuple(steps))
    return data, batch, conditioning, trajectory


def test_conditioning_equals_the_golden_one(stored):
    data, _, conditioning, _ = stored
    torch.testing.assert_close(conditioning.proprio_tokens.unsqueeze(2), data["teacher.proprio_tokens"], **CLOSE)
    expected = golden.layers("distill_loss", "teacher", ("k_routed_per_chunk", "v_routed_per_chunk"))
    for mine, theirs in zip(conditioning.routed, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b.flatten(0, 1), **CLOSE)


def test_the_teacher_s_trajectory_equals_the_golden_one(stored):
    data, _, _, trajectory = stored
    for state, step in zip(trajectory.states, trajectory.steps, strict=True):
        torch.testing.assert_close(state, data[f"teacher.state_at_step{step}"], **SAMPLED)
    torch.testing.assert_close(trajectory.states[-1], data["teacher.final_actions"], **SAMPLED)
    assert torch.equal(trajectory.timesteps, data["teacher.timesteps"][list(trajectory.steps[:-1])])
    assert list(trajectory.steps[:-1]) == data["anchor_candidates_steps"].tolist()


def test_loss_and_gradients_equal_the_golden_ones_and_reach_only_the_executor(stored):
    data, batch, conditioning, trajectory = stored
    student, anchors = golden.model("checkpoint_ahawam_student_ode"), data["anchor_index_per_chunk"]
    noisy, flow = [], []
    student.executor.action_encoder.register_forward_hook(lambda _m, inputs, _o: noisy.append(inputs[0]))
    student.executor.head.register_forward_hook(lambda _m, _i, output: flow.append(output))
    guess = student_prediction(student, conditioning, trajectory, anchors)
    torch.testing.assert_close(noisy[0].reshape(guess.shape), data["student.noisy_actions"], **SAMPLED)
    torch.testing.assert_close(flow[0].reshape(guess.shape), data["student.flow_pred"], **SAMPLED)
    assert torch.equal(trajectory.timesteps[anchors], data["student.timestep_per_chunk"])
    torch.testing.assert_close(guess, data["student.pred_action"], **SAMPLED)
    loss = ode_loss(student, conditioning, trajectory, anchors, batch.action_is_pad)
    torch.testing.assert_close(loss, data["loss"][0], atol=0, rtol=1e-5)  # its input is a 16-step trajectory
    loss.backward()
    expected = golden.arrays("distill_loss_grads")
    reached = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert set(reached) == set(expected)
    for name, gradient in expected.items():
        atol = golden.GRADIENT_RTOL * float(gradient.abs().max())
        torch.testing.assert_close(reached[name], gradient, atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_a_rollout_is_judged_where_its_own_steps_end_and_learns_through_the_first_of_them(stored):
    _, batch, conditioning, trajectory = stored
    teacher, student = golden.model(), golden.model("checkpoint_ahawam_student_ode")
    with torch.no_grad():
        own = euler_table(trajectory.steps[-1], teacher.config.shift)
        same = rollout_loss(teacher, conditioning, trajectory, own, batch.action_is_pad)
    assert float(same) < golden.SAMPLER_ATOL**2

    table = euler_table(2, student.config.shift)
    inputs = []
    student.executor.action_encoder.register_forward_hook(lambda _m, x, _o: inputs.append(x[0]))
    loss = rollout_loss(student, conditioning, trajectory, table, batch.action_is_pad)
    with torch.no_grad():
        end = sample_horizon(student, conditioning, trajectory.states[0], table)[-1]
    valid = ~batch.action_is_pad
    by_hand = [((e - g) ** 2).mean(-1)[v].mean() for e, g, v in zip(end, trajectory.states[-1], valid, strict=True)]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    inputs[1].retain_grad()
    loss.backward()
    assert inputs[1].grad.abs().max() > 0  # the second step's input hangs on the first step


def test_huber_is_the_root_mean_square_of_a_chunk_far_above_it_and_half_the_mean_square_far_below(stored):
    _, batch, conditioning, trajectory = stored
    student = golden.model("checkpoint_ahawam_student_ode")
    table = euler_table(2, student.config.shift)
    pad = torch.zeros_like(batch.action_is_pad)  # whole chunks only: one that is cut short would weigh more than its actions
    pad[0, student.config.chunk_size :] = True  # one chunk is left of the first sample

    def loss(huber: float | None = None) -> float:
        with torch.no_grad():
            return float(rollout_loss(student, conditioning, trajectory, table, pad, huber))

    with torch.no_grad():
        end = sample_horizon(student, conditioning, trajectory.states[0], table)[-1]
    size = student.config.chunk_size
    error, valid = (end - trajectory.states[-1]).square().mean(-1), ~pad
    by_hand = [
        [float(e[v].mean()) for e, v in zip(row.split(size), kept.split(size), strict=True) if v.any()]
        for row, kept in zip(error, valid, strict=True)
    ]
    assert len(by_hand[0]) == 1
    root = np.mean([np.mean(np.sqrt(chunks)) for chunks in by_hand])
    assert loss(1e-6) == pytest.approx(root, rel=1e-4)
    large = 1e2 * np.sqrt(np.max(np.concatenate(by_hand)))
    half = np.mean([np.mean(chunks) for chunks in by_hand]) / 2
    assert loss(large) * large == pytest.approx(half, rel=1e-3)
    with torch.no_grad():
        jumps = [ode_loss(student, conditioning, trajectory, stored[0]["anchor_index_per_chunk"], pad, h) for h in (None, large)]
    assert float(jumps[1]) * large == pytest.approx(float(jumps[0]) / 2, rel=1e-2)  # huber is far above these only on the whole


@pytest.mark.parametrize("steps", golden.indices("student_sampler_batch", r"steps(\d+)\."))
def test_the_student_s_sampler_is_euler_on_part_of_the_teacher_s_grid(stored, steps):
    expected, conditioning = golden.arrays("student_sampler_batch"), stored[2]
    student, shift = golden.model("checkpoint_ahawam_student_ode"), golden.config().shift
    (grid_size,) = golden.indices("student_sampler_batch", rf"steps{steps}\.step_indices_on_(\d+)_grid")
    visited = expected[f"steps{steps}.step_indices_on_{grid_size}_grid"]
    assert len(visited) == steps + 1 and visited[0] == 0 and visited[-1] == grid_size
    sigma = sigma_grid(grid_size, shift)
    assert torch.equal(sigma, expected[f"sigma_grid_{grid_size + 1}"])
    assert torch.equal(1000 * sigma[:-1], expected[f"timestep_grid_{grid_size}"])
    table = euler(StepTable(timesteps=1000 * sigma[visited[:-1]], deltas=sigma[visited].diff()))
    if len(set(visited.diff().tolist())) == 1:  # equal strides: the ordinary sampler, which deployment uses
        plain = euler_table(steps, shift)
        torch.testing.assert_close(plain.timesteps, table.timesteps, atol=1e-3, rtol=0)  # last place of 1000
        torch.testing.assert_close(plain.velocity, table.velocity, atol=1e-6, rtol=0)
        table = plain
    with torch.no_grad():
        states = sample_horizon(student, conditioning, expected["start_noise"], table)
    torch.testing.assert_close(states[-1], expected[f"steps{steps}.final_actions"], **SAMPLED)


def test_anchors_are_uniform_and_decided_by_the_generator(stored):
    batch = stored[1]
    num_draws = -(-4000 // batch.proprio.shape[:2].numel())  # whatever the batch, the same standard error
    drawn = torch.stack([draw_anchors(batch, 6, torch.Generator().manual_seed(i)) for i in range(num_draws)])
    assert drawn.shape[1:] == batch.proprio.shape[:2]
    share = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    torch.testing.assert_close(share, torch.full((6,), 1 / 6), atol=0.03, rtol=0)  # five standard errors
    assert torch.equal(draw_anchors(batch, 6, torch.Generator().manual_seed(0)), drawn[0])


def test_captured_steps_must_end_at_the_teacher_s_last_step(stored):
    with pytest.raises(ValueError, match="end at 16"):
        teacher_trajectory(golden.model(), stored[2], stored[0]["start_noise"], 16, (0, 8))


@torch.no_grad()
def test_a_horizon_with_given_rows_is_that_of_chunks_sampled_alone(stored):
    data, batch, conditioning, _ = stored
    net, table = golden.model(), euler_table(3, 5.0)
    chunks, size = net.config.num_chunks, net.config.chunk_size
    rows = torch.arange(chunks).expand(len(batch.actions), chunks) % (size - 1)
    prefix = Prefix(batch.actions, rows)
    found = sample_horizon(net, conditioning, data["start_noise"], table, prefix)[-1]
    text = net.executor.text_key_values(conditioning.context)
    for index in range(chunks):
        part = slice(index * size, (index + 1) * size)
        words = net.executor.text_key_values(conditioning.proprio_tokens[:, index : index + 1])
        both = [(torch.cat([a, c], 1), torch.cat([b, d], 1)) for (a, b), (c, d) in zip(text, words, strict=True)]
        routed = [
            (k.unflatten(0, (-1, chunks))[:, index], v.unflatten(0, (-1, chunks))[:, index]) for k, v in conditioning.routed
        ]
        mask = prefix.mask(size)[:, index]
        alone = sample_chunk(net, data["start_noise"][:, part], table, index, routed, both, batch.actions[:, part], mask)[-1]
        torch.testing.assert_close(found[:, part], alone, **SAMPLED)
        assert torch.equal(found[:, part][mask], batch.actions[:, part][mask])


@torch.no_grad()
def test_a_teacher_is_its_own_perfect_student_with_given_rows_too_and_learns_nothing_from_them(stored):
    data, batch, conditioning, _ = stored
    net = golden.model()
    prefix = Prefix(batch.actions, torch.full(batch.proprio.shape[:2], 2))
    steps = 2
    trajectory = teacher_trajectory(net, conditioning, data["start_noise"], steps, (0, steps), prefix)
    table = euler_table(steps, net.config.shift)
    assert float(rollout_loss(net, conditioning, trajectory, table, batch.action_is_pad, prefix=prefix)) < golden.SAMPLER_ATOL**2
    without = rollout_loss(net, conditioning, trajectory, table, batch.action_is_pad)
    assert float(without) > 1e-3, "a student that is given nothing must answer otherwise"
    anchors = torch.zeros(batch.proprio.shape[:2], dtype=torch.int64)
    guess = student_prediction(net, conditioning, trajectory, anchors, prefix)
    mask = prefix.mask(net.config.chunk_size).flatten(1)
    assert torch.equal(guess[mask], batch.actions[mask])
    everything = Prefix(batch.actions, torch.full(batch.proprio.shape[:2], net.config.chunk_size))
    assert ode_loss(net, conditioning, trajectory, anchors, batch.action_is_pad, prefix=everything) == 0

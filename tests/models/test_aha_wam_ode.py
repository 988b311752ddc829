"""Distillation reproduces the released conditioning, trajectories, loss, gradients and student sampler."""

import pytest
import torch

from edgewam.flow.solver import euler_table
from edgewam.models.aha_wam_ode import condition, draw_anchors, ode_loss, sample_horizon, student_prediction, teacher_trajectory
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
    guess = student_prediction(student, conditioning, trajectory, anchors)
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


@pytest.mark.parametrize("steps", golden.indices("student_sampler_batch", r"steps(\d+)\."))
def test_the_student_s_sampler_is_plain_euler(stored, steps):
    expected, conditioning = golden.arrays("student_sampler_batch"), stored[2]
    student = golden.model("checkpoint_ahawam_student_ode")
    with torch.no_grad():
        states = sample_horizon(student, conditioning, expected["start_noise"], euler_table(steps, golden.config().shift))
    torch.testing.assert_close(states[-1], expected[f"steps{steps}.final_actions"], **SAMPLED)


def test_anchors_are_uniform_and_decided_by_the_generator(stored):
    batch = stored[1]
    drawn = torch.stack([draw_anchors(batch, 6, torch.Generator().manual_seed(i)) for i in range(500)])
    assert drawn.shape[1:] == batch.proprio.shape[:2]
    share = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    torch.testing.assert_close(share, torch.full((6,), 1 / 6), atol=0.03, rtol=0)  # five standard errors
    assert torch.equal(draw_anchors(batch, 6, torch.Generator().manual_seed(0)), drawn[0])


def test_captured_steps_must_end_at_the_teacher_s_last_step(stored):
    with pytest.raises(ValueError, match="end at 16"):
        teacher_trajectory(golden.model(), stored[2], stored[0]["start_noise"], 16, (0, 8))

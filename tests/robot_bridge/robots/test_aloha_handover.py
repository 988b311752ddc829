"""The expert that hands a cube over succeeds, moves smoothly, stays within limits; multimodal, it has more than one way."""

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.robots import aloha_demos, aloha_handover, aloha_kinematics, aloha_scene
from edgewam.robot_bridge.robots.aloha_sim import SPEC
from edgewam.robot_bridge.robots.aloha_tasks.transfer_cube import TASK

STYLES = ("plain", "multimodal")


def test_forward_kinematics_is_the_model_s(sim):
    mujoco = pytest.importorskip("mujoco")
    data = mujoco.MjData(sim._model)
    rng = np.random.default_rng(0)
    for side, first in (("left", 0), ("right", 8)):
        joints = rng.uniform(-0.6, 0.6, (8, 6)) * (1, 1, 1, 0, 1, 1)
        points, pitches, rolls = aloha_kinematics.forward(side, joints)
        for row, point, pitch, roll in zip(joints, points, pitches, rolls, strict=True):
            data.qpos[first : first + 6] = row
            mujoco.mj_kinematics(sim._model, data)
            hand = data.body(f"vx300s_{side}/gripper_link")
            axes = hand.xmat.reshape(3, 3)
            np.testing.assert_allclose(hand.xpos + 0.135 * axes[:, 0], point, atol=1e-12)
            np.testing.assert_allclose(-axes[2, 0], np.sin(pitch), atol=1e-12)
            np.testing.assert_allclose(axes[2, 1], np.sin(roll) * np.cos(pitch), atol=1e-12)
            yaw = aloha_kinematics.heading(side, point)
            np.testing.assert_allclose(aloha_kinematics.hand_axes(yaw, pitch, roll), axes, atol=1e-4)  # a base turned by 3.1416


def test_inverse_kinematics_undoes_forward():
    rng = np.random.default_rng(1)
    for side in ("left", "right"):
        joints = rng.uniform(-0.5, 0.5, (50, 6)) * (1, 1, 1, 0, 1, 1)
        np.testing.assert_allclose(aloha_kinematics.inverse(side, *aloha_kinematics.forward(side, joints)), joints, atol=1e-9)


def test_fingers_close_across_a_rod_wherever_it_points():
    for yaw, rod, pitch in np.random.default_rng(2).uniform((-3, -3, 0.5), (3, 3, 1.5), (50, 3)):
        roll = aloha_kinematics.roll_across(yaw, rod, pitch)
        closing = aloha_kinematics.hand_axes(yaw, pitch, roll)[:, 1]
        assert abs(closing @ (np.cos(rod), np.sin(rod), 0.0)) < 1e-12 and abs(roll) <= np.pi / 2


def test_a_point_out_of_reach_is_an_error():
    with pytest.raises(EdgewamError, match="left arm cannot reach"):
        aloha_kinematics.inverse("left", np.array([[0.6, 0.5, 0.2]]), np.zeros(1), np.zeros(1))


@pytest.mark.parametrize("style", STYLES)
def test_expert_succeeds_strictly_on_unseen_seeds(sim, style):
    episodes = [aloha_demos.rollout(sim, seed, style, noise_rad=0.0) for seed in range(900_000, 900_020)]
    assert sum(episode.strict_success for episode in episodes) >= 19


def test_expert_with_execution_noise_succeeds_mostly_and_keeps_clean_labels(sim):
    seeds = range(910_000, 910_020)
    noisy = [aloha_demos.rollout(sim, seed) for seed in seeds]
    assert sum(episode.strict_success for episode in noisy) >= 16  # 92 of 100 measured
    clean = aloha_demos.rollout(sim, seeds[0], noise_rad=0.0)
    np.testing.assert_array_equal(noisy[0].actions, clean.actions)
    np.testing.assert_array_equal(clean.actions, clean.commands)
    error = noisy[0].commands - noisy[0].actions
    assert 0 < np.abs(error[:, list(aloha_scene.ARMS)]).max() < 5 * aloha_demos.NOISE_RAD
    assert not error[:, list(aloha_scene.GRIPPERS)].any()


@pytest.mark.parametrize("style", STYLES)
def test_targets_respect_limits_and_velocities(style):
    start = aloha_scene.to_joints(aloha_scene.START_QPOS)
    for seed in range(100):
        targets = TASK.plan(TASK.sample(seed), np.random.default_rng(seed), style).targets
        assert targets.shape == (280, 14) and targets.dtype == np.float32
        assert (targets >= SPEC.lower - 1e-6).all() and (targets <= SPEC.upper + 1e-6).all()
        speed = np.abs(np.diff(targets, axis=0, prepend=start[None])) * SPEC.control_hz
        assert (speed < 0.85 * SPEC.max_velocity).all(), "the velocity limit must leave the expert room"
        assert not targets[:, [3, 10]].any(), "forearm rolls are locked"


def test_targets_vary_smoothly_over_the_cube_range():
    """No wrist flips: a quadratic in the cube position explains every joint at the grasp to a hundredth of a radian."""
    grid = np.stack(np.meshgrid(np.linspace(0.0, 0.2, 9), np.linspace(0.4, 0.6, 9)), -1).reshape(-1, 2)
    choices = aloha_handover.choose(np.random.default_rng(0), "plain")
    plans = np.array([aloha_handover.targets(np.array([*xy, 0.05, 1, 0, 0, 0]), choices) for xy in grid])
    x, y = (grid - grid.mean(0)).T
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
    grasp = plans[:, choices.grasp].astype(np.float64)
    residual = grasp - basis @ np.linalg.lstsq(basis, grasp, rcond=None)[0]
    assert np.abs(residual).max() < 0.02  # an expert with wrist flips has 0.7
    neighbours = np.abs(np.diff(plans.reshape(9, 9, 280, 14), axis=1)).max()
    assert neighbours < 0.15, "cubes 2.5 cm apart must have neighbouring targets at every tick"


def test_multimodal_expert_solves_one_scene_in_different_ways(sim):
    episodes = [aloha_demos.rollout(sim, 5, "multimodal", noise_rad=0.0, choice_seed=choice) for choice in range(6)]
    for episode in episodes:
        np.testing.assert_array_equal(episode.poses[0], episodes[0].poses[0])
        assert episode.strict_success
    differences = [np.abs(a.actions - b.actions).max() for i, a in enumerate(episodes) for b in episodes[:i]]
    assert min(differences) > 0.2
    choices = [aloha_handover.choose(np.random.default_rng(i), "multimodal") for i in range(60)]
    assert {round(c.grasp_roll / 0.35) for c in choices} == {-1, 0, 1}
    assert {c.left_start == 0 for c in choices} == {True, False}


def test_plain_expert_jitters_the_meeting_point_by_millimetres_only():
    meets = np.array([aloha_handover.choose(np.random.default_rng(i), "plain").meet for i in range(200)])
    assert (meets.std(0) > 0.002).all() and (np.abs(meets - (0.0, 0.5, 0.25)) <= 0.0101).all()


def test_unknown_style_names_the_known_ones(sim):
    with pytest.raises(EdgewamError, match="plain, multimodal"):
        aloha_demos.rollout(sim, 0, "fancy")


def test_an_episode_is_reproducible_and_ends_in_a_hold(sim):
    first, again = (aloha_demos.rollout(sim, 77) for _ in range(2))
    for field in ("states", "actions", "commands", "poses", "rewards", "strict"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert first.states.dtype == first.actions.dtype == np.float32 and first.images == {}
    tail = first.actions[aloha_handover.MOTION_TICKS :]
    np.testing.assert_array_equal(tail, np.broadcast_to(tail[0], (aloha_handover.HOLD_TICKS, 14)))

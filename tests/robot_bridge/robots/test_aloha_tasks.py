"""What is special about the tasks: what a seed varies, what does not count, and when a peg is in."""

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.robot_bridge.robots import aloha_demos, aloha_handover, aloha_kinematics, aloha_scene, aloha_sim
from edgewam.robot_bridge.robots.aloha_render import AlohaRenderer, drawn_values
from edgewam.robot_bridge.robots.aloha_tasks import insertion, transfer_cube, transfer_cube_random

pytest.importorskip("mujoco", reason="needs edgewam[sim]")
RANDOM = transfer_cube_random.TASK
LEVEL = (1.0, 0.0, 0.0, 0.0)


@pytest.fixture
def world(sims):
    return sims("transfer_cube_random")


def test_a_seed_varies_everything_that_the_task_declares(world):
    fields = {name: [] for name in (*RANDOM.drawn_fields, "geom_friction", "body_mass", "body_inertia")}
    poses = []
    for seed in range(40):
        world.reset(seed)
        poses.append(world.poses())
        for name, values in fields.items():
            values.append(getattr(world._model, name).copy())
    for name, values in fields.items():
        relative = np.ptp(values, axis=0) / (np.abs(values).mean(0) + 1e-9)
        assert relative.max() > 0.1, name
    poses = np.array(poses)
    spots = poses.reshape(-1, 3, 7)[:, :, :2]
    for place, (low, high) in enumerate(transfer_cube_random.AREAS):
        assert (spots[:, place] > low).all() and (spots[:, place] < high).all()
        assert np.ptp(spots[:, place], axis=0) == pytest.approx(np.subtract(high, low), rel=0.25)
    yaw = 2 * np.arctan2(poses[:, 6::7], poses[:, 3::7])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.hypot(*(spots[:, one] - spots[:, other]).T) > transfer_cube_random.CLEAR_M).all()
    assert np.ptp(yaw, axis=0) == pytest.approx(2 * np.array(transfer_cube_random.YAWS), rel=0.15)
    assert (spots[:, 1, 1] - spots[:, 0, 1] > transfer_cube_random.CELL_M).all(), "each cube in a latent cell of its own"
    cube, second, block = (world._model.geom(name).id for name in (*transfer_cube_random.CUBES, "block"))
    for colours in fields["geom_rgba"]:
        assert colours[cube, 0] > 1.5 * max(colours[cube, 1:3]), "the words say red"
        np.testing.assert_array_equal(colours[cube], colours[second])
        assert colours[block, 0] < 1.3 * max(colours[block, 1:3])


@pytest.mark.parametrize("name", transfer_cube_random.CUBES)
def test_the_friction_that_a_seed_draws_is_the_one_that_acts(name, world):
    """MuJoCo takes the larger one of two surfaces unless one has priority."""
    for seed in range(3):
        world.reset(seed)
        for _ in range(10):
            world.step(aloha_scene.to_joints(aloha_scene.START_QPOS))
        cube = world._model.geom(name)
        at_cube = [c.friction[0] for c in world._data.contact if cube.id in (c.geom1, c.geom2)]
        assert at_cube and set(at_cube) == {cube.friction[0]} != {1.0}


def test_variation_starts_from_the_nominal_model_each_time(world):
    world.reset(5)
    state = world.physics_state()
    for seed in (6, 7, 5):
        world.reset(seed)
    np.testing.assert_array_equal(world.physics_state(), state)


def test_the_unvaried_world_looks_like_transfer_cube(sim, world):
    """Same cameras although theirs are fixed here and aimed at a body there; what is new is hidden below the floor."""
    cube = np.array([0.1, 0.5, 0.02, *LEVEL])
    sim.reset_to(cube)
    world.reset_to(np.concatenate([cube, [0.0, 0.5, -2.0, *LEVEL], [0.0, 0.6, -2.0, *LEVEL]]))
    size = world.physics_state().size - drawn_values(RANDOM, world._model).size
    unvaried = np.concatenate([world.physics_state()[:size], drawn_values(RANDOM, RANDOM.load_model())])
    plain, varied = AlohaRenderer(transfer_cube.TASK), AlohaRenderer(RANDOM)
    try:
        expected, images = plain.render(sim.physics_state()), varied.render(unvaried)
        with pytest.raises(ContractError, match="'transfer_cube_random'"):
            varied.render(sim.physics_state())
    finally:
        plain.close()
        varied.close()
    for name, image in expected.items():
        difference = np.abs(images[name].astype(int) - image)
        assert difference.mean() < 0.3, name  # a few edge pixels: the direction is a rounded quaternion


def test_handing_the_block_over_earns_nothing(world):
    """The expert is told that the block is a cube."""
    touched = []
    low, high = transfer_cube_random.AREAS[0][0], transfer_cube_random.AREAS[1][1]
    reachable = [seed for seed in range(60) if np.all((RANDOM.sample(seed)[14:16] > low) & (RANDOM.sample(seed)[14:16] < high))]
    for seed in reachable[:3]:
        world.reset(seed)
        poses = world.poses()
        swapped = np.concatenate([poses[14:], poses[:14]])
        plan = RANDOM.plan(swapped, np.random.default_rng(seed), "plain")
        results = [world.step(target) for target in plan.targets]
        assert not any(r.reward or r.strict_success for r in results)
        touched.append(np.abs(world.poses()[14:16] - poses[14:16]).max() > 0.05)
    assert any(touched), "nothing would be proved if the block had never been moved"


def test_the_expert_turns_its_hand_to_the_nearer_faces_of_the_cube(world):
    poses = RANDOM.sample(4)
    poses[3], poses[6] = np.cos(0.35), np.sin(0.35)  # further than a seed turns one
    poses[7:14] = poses[:7]  # whichever it takes, here it is the same
    plans = [RANDOM.plan(poses, np.random.default_rng(choice), "multimodal").targets for choice in range(20)]
    rolls = np.array([plan[np.argmax(np.abs(plan[:110, 12])), 12] for plan in plans])
    yaw = 2 * np.arctan2(poses[6], poses[3])
    hand = aloha_kinematics.heading("right", poses[:3])
    across = min((aloha_kinematics.roll_across(hand, yaw + turn, 1.2) for turn in (0.0, np.pi / 2)), key=abs)
    slack = 0.5 * (0.35 + 4 * 0.03)  # how far askew a grip may be
    assert np.abs(rolls - across).max() < slack and np.ptp(rolls) > 0.5 * slack


def test_the_choice_between_the_cubes_is_made_at_the_hover_and_within_a_chunk():
    poses = RANDOM.sample(3)
    swapped = np.concatenate([poses[7:14], poses[:7], poses[14:]])
    one, other = (RANDOM.plan(p, np.random.default_rng(0), "plain").targets for p in (poses, swapped))
    hover = aloha_handover.choose(np.random.default_rng(0), "plain").grasp + transfer_cube_random.LATER - aloha_handover.STROKE
    np.testing.assert_array_equal(one[:hover], other[:hover])
    assert np.abs(one[hover + 16] - other[hover + 16]).max() > 0.1, "a chunk later the hand is on its way to one of them"


def test_either_cube_counts_the_expert_takes_both_and_what_lies_between_them_is_nothing(world):
    taken = set()
    for choice in range(6):
        episode = aloha_demos.rollout(world, 77, "multimodal", 0.0, choice_seed=choice)
        assert episode.strict_success and episode.rewards.max() == 4
        taken.add(int(np.argmax(episode.poses[-1, [2, 9]])))
    assert taken == {0, 1}
    world.reset(77)
    between = world.poses().copy()
    between[:7] = 0.5 * (between[:7] + between[7:14])
    between[3:7] = LEVEL
    results = [world.step(target) for target in RANDOM.plan(between, np.random.default_rng(0), "plain").targets]
    assert not any(result.strict_success for result in results)


@pytest.mark.parametrize(
    ("peg", "is_in"),
    [
        ((0.1, 0.5, 0.3), True),
        ((0.1008, 0.508, 0.3), True),
        ((0.1012, 0.5, 0.3), False),  # not down to the pin
        ((0.1, 0.54, 0.3), False),  # beside the socket
        ((0.1, 0.5, 0.09), False),  # the socket is up, the peg is not
    ],
)
def test_a_peg_is_in_when_it_is_down_to_the_pin_and_up_in_the_air(sims, peg, is_in):
    simulator = sims("insertion")
    simulator.reset_to(np.array([*peg, *LEVEL, 0.0, 0.5, 0.3, *LEVEL]))
    assert simulator._judge(simulator._data)[1] == is_in
    simulator.reset_to(np.array([*(peg - np.array([0.0, 0.0, 0.25])), *LEVEL, 0.0, 0.5, 0.05, *LEVEL]))
    assert not simulator._judge(simulator._data)[1], "on the table it does not count"


def test_a_turned_socket_counts_in_its_own_frame(sims):
    simulator = sims("insertion")
    turned = (np.cos(np.pi / 4), 0.0, 0.0, np.sin(np.pi / 4))
    simulator.reset_to(np.array([0.0, 0.6, 0.3, *turned, 0.0, 0.5, 0.3, *turned]))
    assert simulator._judge(simulator._data)[1]


def test_insertion_is_strict_only_after_half_a_second_inside(sims):
    episode = aloha_demos.rollout(sims("insertion"), 930_001, noise_rad=0.0)
    first_four, first_strict = int(np.argmax(episode.rewards == 4)), int(np.argmax(episode.strict))
    assert episode.strict_success and first_strict >= first_four + aloha_sim.STRICT_TICKS - 2
    inside = episode.poses[first_strict - aloha_sim.STRICT_TICKS + 1 : first_strict + 1]
    assert (inside[:, [2, 9]] > insertion.STRICT_HEIGHT_M).all()
    assert (np.abs(inside[:, 0] - inside[:, 7]) < 0.102).all()


def test_either_hand_may_be_first_and_help_pushing():
    choices = [insertion.choose(np.random.default_rng(i), "multimodal") for i in range(60)]
    assert {c.left_grasp < c.right_grasp for c in choices} == {True, False}
    assert {c.pushed_by_right for c in choices} == {0.75, 1.0}

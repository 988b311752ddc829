"""What every robot promises to the bridge; a new file in robot_bridge/robots/ is tested here without a change.

A robot outside of edgewam is tested by its dotted name: EDGEWAM_ROBOT=robots.my_arm pytest tests/contracts/test_robot.py.
That moves a real robot: every joint by REACH, at SPEED of its limit, and back.
"""

import os
import time

import numpy as np
import pytest

from edgewam.core import plugins
from edgewam.core.errors import ContractError, MissingExtraError
from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.robot import CameraImage, Robot, RobotSpec, Simulator

NAMES = plugins.names("robot")
DOTTED = ["examples.my_arm", "tests.robot_bridge.robots.lerobot_arm"]
REACH = 0.05  # rad, and of a gripper's stroke: visible in any encoder, harmless anywhere but at a limit
SPEED = 0.1
STILL = 0.01  # rad: encoder noise and the sag of a held arm
FOLLOWS = 0.03  # rad: how far from its target a position-controlled arm may come to rest
SETTLE_S = 0.3
if "EDGEWAM_ROBOT" in os.environ:
    NAMES, DOTTED = [], [os.environ["EDGEWAM_ROBOT"]]


@pytest.fixture(params=[*NAMES, *DOTTED])
def module(request):
    return plugins.load("robot", request.param)


def opened(module, **options):
    try:
        return module.make(**options)
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture
def robot(module):
    robot = opened(module)
    yield robot
    robot.close()
    robot.close()  # twice is allowed


@pytest.fixture
def simulator(module):
    if not hasattr(module, "make_renderer"):
        pytest.skip("a real robot has no clock of ours")
    simulator = opened(module, render=False)
    assert isinstance(simulator, Simulator)
    simulator.reset(0)
    assert simulator.observe().images == {}
    yield simulator
    simulator.close()


@pytest.fixture
def moving(module, simulator):
    """A simulator that goes where it is told."""
    if getattr(module, "IS_OPEN_LOOP", False):
        pytest.skip("a recording goes its own way")
    return simulator


@pytest.fixture
def cameras(module):
    if not hasattr(module, "make_cameras"):
        pytest.skip("a simulator's cameras are drawn")
    cameras = module.make_cameras()
    yield cameras
    cameras.close()
    cameras.close()  # twice is allowed


@pytest.fixture
def real(module, cameras):
    robot = opened(module, render=False)
    robot.reset(0)
    yield robot
    robot.close()
    robot.close()


def nearby_target(robot: Robot) -> np.ndarray:
    """A legal command 0.2 rad from where the robot is, in free space for any sane start pose."""
    return np.clip(robot.observe().state + 0.2, robot.spec.lower, robot.spec.upper)


@pytest.mark.skipif("EDGEWAM_ROBOT" in os.environ, reason="another robot is tested")
def test_there_are_robots():
    assert {"aloha_sim", "replay"} <= set(NAMES)


def test_a_robot_has_cameras_of_one_kind(module):
    assert hasattr(module, "make_renderer") != hasattr(module, "make_cameras")


def test_spec_is_complete_and_importing_it_needs_no_extra(module):
    spec = module.SPEC
    assert isinstance(spec, RobotSpec) and spec.name == module.__name__.rsplit(".", 1)[1]
    assert len(set(spec.joint_names)) == spec.num_joints == len(spec.lower)
    assert np.isfinite([spec.lower, spec.upper, spec.max_velocity]).all()
    assert spec.prompts and spec.lease_ticks >= 1 and spec.camera_shapes
    # a tick's worth of motion must be small beside the range, or the velocity limit limits nothing
    assert (spec.max_velocity / spec.control_hz < 0.25 * (spec.upper - spec.lower)).all()
    with pytest.raises(ValueError, match="read-only"):
        spec.upper[0] = 9.0


def test_robot_keeps_the_protocol_and_observes_what_its_spec_says(module, robot):
    assert isinstance(robot, Robot)
    cameras = {} if hasattr(module, "make_cameras") else robot.spec.camera_shapes  # a real robot's live elsewhere
    robot.observe().check(robot.spec.num_joints, cameras)


def test_a_separate_renderer_draws_the_spec_s_cameras(module, simulator):
    renderer = module.make_renderer()
    images = renderer.render(simulator.physics_state())
    renderer.close()
    assert {name: image.shape for name, image in images.items()} == dict(simulator.spec.camera_shapes)


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (lambda good: np.full_like(good, np.nan), "not finite"),
        (lambda good: np.where(np.arange(len(good)) == 3, np.inf, good), "not finite"),
        (lambda good: good[:-1], "shape"),
        (lambda good: good[None], "shape"),
        (lambda good: "home", "numbers"),
    ],
)
def test_malformed_command_is_refused_and_changes_nothing(simulator, make_bad, message):
    good = nearby_target(simulator)

    def states(bad):
        simulator.reset(0)
        simulator.command(good)
        seen = []
        for _ in range(simulator.spec.lease_ticks + 5):  # past the lease: a refused command must not renew it either
            if bad is not None:
                with pytest.raises(ContractError, match=message):
                    simulator.command(bad)
            simulator.advance()
            seen.append(simulator.physics_state())
        return np.array(seen)

    np.testing.assert_array_equal(states(make_bad(good)), states(None))


def test_commands_outside_the_limits_act_as_the_limits(moving):
    spec = moving.spec

    def states(command):
        moving.reset(0)
        for _ in range(5):
            moving.step(command)
        return moving.physics_state()

    np.testing.assert_array_equal(states(spec.upper + 1.0), states(spec.upper))
    np.testing.assert_array_equal(states(spec.lower - 1.0), states(spec.lower))
    assert not np.array_equal(states(spec.upper), states(spec.lower))


def test_command_lease_expires_to_hold(moving):
    target, lease = nearby_target(moving), moving.spec.lease_ticks

    def path(renew):
        moving.reset(0)
        states, joints = [], []
        moving.command(target)
        for _ in range(lease + 100):
            if renew:
                moving.command(target)
            moving.advance()
            states.append(moving.physics_state())
            joints.append(moving.observe().state)
        return np.array(states), np.array(joints)

    (renewed, _), (expired, joints) = path(renew=True), path(renew=False)
    np.testing.assert_array_equal(expired[:lease], renewed[:lease])  # in force for the whole lease
    assert (expired[lease] != renewed[lease]).any(), "and not one tick longer"
    assert np.abs(joints[lease - 1] - joints[0]).max() > 0.01, "the command must have moved something"
    assert np.ptp(joints[lease + 25 :], axis=0).max() < 0.01, "then it is still"


def test_stop_ends_motion_and_the_next_command_resumes_it(moving):
    target = nearby_target(moving)
    moving.step(target)
    moving.stop()
    held = []
    for _ in range(75):
        moving.advance()
        held.append(moving.observe().state)
    assert np.abs(held[-1] - target).max() > 0.05, "stopped on the way"
    assert np.ptp(held[25:], axis=0).max() < 0.01
    for _ in range(50):
        moving.step(target)
    assert np.abs(moving.observe().state - held[-1]).max() > 0.05


def test_seed_fixes_the_scene_and_ticks_count_from_reset(module, simulator):
    first = simulator.physics_state()
    simulator.reset(1)
    other = simulator.physics_state()
    simulator.step(nearby_target(simulator))
    assert simulator.observe().tick == 1
    simulator.reset(0)
    assert simulator.observe().tick == 0
    np.testing.assert_array_equal(simulator.physics_state(), first)
    if not getattr(module, "IS_OPEN_LOOP", False):
        assert not np.array_equal(other, first)


def move(robot, target, seconds=10.0):
    """Command a real robot towards a target slowly, at its control rate, for a time at most; gives the last command."""
    spec = robot.spec
    command, step = robot.observe().state.astype(np.float64), SPEED * spec.max_velocity / spec.control_hz
    for _ in range(round(seconds * spec.control_hz)):
        command = command + np.clip(target - command, -step, step)
        robot.command(command)
        time.sleep(1 / spec.control_hz)
        if np.array_equal(command, target):
            break
    return command


def reachable(robot):
    """REACH from where the robot is, towards the middle of each joint's range."""
    spec, state = robot.spec, robot.observe().state.astype(np.float64)
    return state + np.where(state < (spec.lower + spec.upper) / 2, REACH, -REACH)


def test_a_real_robot_goes_where_it_is_told_and_back(real):
    start, target = real.observe().state.astype(np.float64), reachable(real)
    for goal in (target, start):
        move(real, goal)
        time.sleep(SETTLE_S)
        np.testing.assert_allclose(real.observe().state, goal, atol=FOLLOWS)


def test_a_real_robot_that_is_stopped_stays_where_it_is(real):
    start, target = real.observe().state.astype(np.float64), reachable(real)
    travel_s = (REACH / (SPEED * real.spec.max_velocity)).min()
    move(real, target, seconds=travel_s / 2)
    real.stop()
    time.sleep(SETTLE_S)
    seen = []
    for _ in range(10):
        seen.append(real.observe().state)
        time.sleep(0.02)
    assert np.ptp(seen, axis=0).max() < STILL
    assert np.abs(seen[-1] - target).max() > STILL, "stopped on the way"
    move(real, start)


@pytest.mark.parametrize("bad", [np.nan, "home", [0.0]])
def test_a_real_robot_refuses_a_malformed_command_and_stands(real, bad):
    before = real.observe().state
    with pytest.raises(ContractError, match=r"not finite|numbers|shape"):
        real.command(np.full(real.spec.num_joints, bad) if bad is np.nan else bad)
    time.sleep(SETTLE_S / 3)
    np.testing.assert_allclose(real.observe().state, before, atol=STILL)


def test_a_real_robot_s_cameras_show_what_the_spec_says_and_when(module, cameras):
    begin_ns, newest, stamps = now_ns(), {}, {name: [] for name in module.SPEC.camera_shapes}
    while now_ns() < begin_ns + 2e9 and min(len(set(seen)) for seen in stamps.values()) < 3:
        for name, shot in cameras.grab().items():
            assert isinstance(shot, CameraImage)
            assert shot.t_ns <= now_ns(), "a capture time on CLOCK_MONOTONIC lies in the past"
            newest[name] = shot.image
            stamps[name].append(shot.t_ns)
        time.sleep(0.002)
    assert {name: image.shape for name, image in newest.items()} == dict(module.SPEC.camera_shapes)
    for name, image in newest.items():
        assert image.dtype == np.uint8 and image.max() > 8, f"{name} is black"
        assert stamps[name] == sorted(stamps[name]) and len(set(stamps[name])) >= 3, "each image has a time of its own"

"""What every robot plugin promises to the bridge; a new file in robot_bridge/robots/ is tested here without a change."""

import numpy as np
import pytest

from edgewam.core import plugins
from edgewam.core.errors import ContractError, MissingExtraError
from edgewam.robot_bridge.robot import Robot, RobotSpec, Simulator

NAMES = plugins.names("robot")


@pytest.fixture(params=NAMES)
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


def nearby_target(robot: Robot) -> np.ndarray:
    """A legal command 0.2 rad from where the robot is, in free space for any sane start pose."""
    return np.clip(robot.observe().state + 0.2, robot.spec.lower, robot.spec.upper)


def test_there_is_a_robot():
    assert "aloha_sim" in NAMES


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


def test_robot_keeps_the_protocol_and_observes_what_its_spec_says(robot):
    assert isinstance(robot, Robot)
    robot.observe().check(robot.spec.num_joints, robot.spec.camera_shapes)


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


def test_commands_outside_the_limits_act_as_the_limits(simulator):
    spec = simulator.spec

    def states(command):
        simulator.reset(0)
        for _ in range(5):
            simulator.step(command)
        return simulator.physics_state()

    np.testing.assert_array_equal(states(spec.upper + 1.0), states(spec.upper))
    np.testing.assert_array_equal(states(spec.lower - 1.0), states(spec.lower))
    assert not np.array_equal(states(spec.upper), states(spec.lower))


def test_command_lease_expires_to_hold(simulator):
    target, lease = nearby_target(simulator), simulator.spec.lease_ticks

    def path(renew):
        simulator.reset(0)
        states, joints = [], []
        simulator.command(target)
        for _ in range(lease + 100):
            if renew:
                simulator.command(target)
            simulator.advance()
            states.append(simulator.physics_state())
            joints.append(simulator.observe().state)
        return np.array(states), np.array(joints)

    (renewed, _), (expired, joints) = path(renew=True), path(renew=False)
    np.testing.assert_array_equal(expired[:lease], renewed[:lease])  # in force for the whole lease
    assert (expired[lease] != renewed[lease]).any(), "and not one tick longer"
    assert np.abs(joints[lease - 1] - joints[0]).max() > 0.01, "the command must have moved something"
    assert np.ptp(joints[lease + 25 :], axis=0).max() < 0.01, "then it is still"


def test_stop_ends_motion_and_the_next_command_resumes_it(simulator):
    target = nearby_target(simulator)
    simulator.step(target)
    simulator.stop()
    held = []
    for _ in range(75):
        simulator.advance()
        held.append(simulator.observe().state)
    assert np.abs(held[-1] - target).max() > 0.05, "stopped on the way"
    assert np.ptp(held[25:], axis=0).max() < 0.01
    for _ in range(50):
        simulator.step(target)
    assert np.abs(simulator.observe().state - held[-1]).max() > 0.05


def test_seed_fixes_the_scene_and_ticks_count_from_reset(simulator):
    first = simulator.physics_state()
    simulator.reset(1)
    other = simulator.physics_state()
    simulator.step(nearby_target(simulator))
    assert simulator.observe().tick == 1
    simulator.reset(0)
    assert simulator.observe().tick == 0
    np.testing.assert_array_equal(simulator.physics_state(), first)
    assert not np.array_equal(other, first)

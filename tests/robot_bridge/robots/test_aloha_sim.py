"""The simulator's own facts: limits of the XML, strict success, cameras, a renderer that needs only the state."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from edgewam.core import plugins
from edgewam.core.errors import ContractError, EdgewamError, MissingExtraError
from edgewam.robot_bridge.robots import aloha_demos, aloha_scene, aloha_sim, mujoco_gl
from edgewam.robot_bridge.robots.aloha_tasks import transfer_cube

pytest.importorskip("mujoco", reason="needs edgewam[sim]")
SPEC = aloha_sim.SPEC


@pytest.fixture(scope="module")
def renderer():
    renderer = aloha_sim.make_renderer()
    yield renderer
    renderer.close()


@pytest.mark.parametrize("task", plugins.names("task"))
def test_limits_and_rate_are_those_of_the_xml(sims, task):
    sim = sims(task)
    ctrlrange = np.delete(sim._model.actuator_ctrlrange, [6, 7, 14, 15], axis=0)
    arms = list(aloha_scene.ARMS)
    np.testing.assert_array_equal(ctrlrange, np.stack([SPEC.lower[arms], SPEC.upper[arms]], -1))
    assert sim._model.opt.timestep * aloha_scene.SUBSTEPS == pytest.approx(1 / SPEC.control_hz)


def test_joints_and_controls_are_inverse_maps():
    command = np.linspace(0.1, 0.9, 14)
    np.testing.assert_allclose(aloha_scene.to_joints(aloha_scene.to_ctrl(command)), command, atol=1e-12)


def test_strict_success_comes_25_ticks_after_the_right_hand_let_go_and_never_while_both_hold(sim):
    episode = aloha_demos.rollout(sim, 900_001, noise_rad=0.0)
    first_four = int(np.argmax(episode.rewards == 4))
    first_strict = int(np.argmax(episode.strict))
    assert episode.strict.any() and first_strict > first_four + aloha_sim.STRICT_TICKS
    released = 100 + int(np.argmax(episode.actions[100:, 13] > 0.2))
    assert first_strict >= released + aloha_sim.STRICT_TICKS - 5
    assert (episode.poses[first_strict - aloha_sim.STRICT_TICKS + 2 : first_strict, 2] > transfer_cube.STRICT_HEIGHT_M).all()


def test_an_expired_lease_holds_the_arm_where_it_is_and_the_gripper_at_its_command():
    env = aloha_sim.make(render=False, lease_ticks=1)
    target = aloha_scene.to_joints(aloha_scene.START_QPOS)
    target[[0, 6]] = 0.8, 1.0  # left waist and gripper
    env.command(target)
    for _ in range(60):
        env.advance()
    assert 0.1 < env.joints()[0] < 0.7, "one tick's way, not the whole"
    assert env.joints()[6] > 0.9, "a gripper that relaxed would drop its load"


def test_doing_nothing_earns_nothing(sim):
    sim.reset(4)
    results = [sim.step(aloha_scene.to_joints(aloha_scene.START_QPOS)) for _ in range(40)]
    assert not any(r.reward or r.success or r.strict_success for r in results)
    assert sim.poses()[2] == pytest.approx(0.02, abs=1e-3), "the cube has settled on the table"


def test_cameras_have_their_shapes_and_show_the_scene(sim, renderer):
    sim.reset_to(np.array([0.1, 0.5, 0.02, 1, 0, 0, 0]))
    images = renderer.render(sim.physics_state())
    assert {name: image.shape for name, image in images.items()} == dict(SPEC.camera_shapes)
    for image in images.values():
        assert image.dtype == np.uint8 and image.std() > 20


def _red_centre(image):
    """(row, column) of the cube, the only red thing."""
    red = image[..., 0].astype(int) > 2 * image[..., 1].astype(int) + 40
    assert red.any()
    return np.argwhere(red).mean(0)


def test_the_cube_moves_in_the_head_camera_as_on_the_table(sim, renderer):
    """The head camera looks from behind: +x is right, +y (away from the arms' line) is up."""

    def seen(x, y):
        sim.reset_to(np.array([x, y, 0.02, 1, 0, 0, 0]))
        return _red_centre(renderer.render(sim.physics_state())["cam_high"])

    row, column = seen(0.0, 0.5)
    assert seen(0.1, 0.5)[1] > column + 5 and abs(seen(0.1, 0.5)[0] - row) < 2
    assert seen(0.0, 0.6)[0] < row - 5 and abs(seen(0.0, 0.6)[1] - column) < 2


def test_wrist_cameras_follow_their_own_arm(sim, renderer):
    sim.reset(0)
    before = renderer.render(sim.physics_state())
    target = aloha_scene.to_joints(aloha_scene.START_QPOS)
    target[7] += 0.4  # right waist
    for _ in range(25):
        sim.step(target)
    after = renderer.render(sim.physics_state())

    def change(name):
        return np.abs(after[name].astype(int) - before[name]).mean()

    assert change("cam_right_wrist") > 3 * change("cam_left_wrist")  # which sees the other arm move


def test_a_renderer_draws_the_same_from_the_state_alone(renderer):
    own = aloha_sim.make()
    try:
        own.reset(9)
        for _ in range(4):
            own.step(np.linspace(-0.2, 0.6, 14))
        images = own.observe().images
        elsewhere = renderer.render(np.frombuffer(own.physics_state().tobytes()))
    finally:
        own.close()
    for name, image in images.items():
        np.testing.assert_array_equal(image, elsewhere[name])


def test_images_are_taken_at_25_hz_and_held_between(renderer):
    own = aloha_sim.make(renderer=renderer)
    own.reset(9)
    frames = []
    for _ in range(6):
        observation = own.observe()
        frames.append((observation.images["cam_right_wrist"], observation.t_capture_ns))
        own.step(np.linspace(-0.2, 0.6, 14))
    for even in (0, 2, 4):
        assert frames[even + 1][0] is frames[even][0] and frames[even + 1][1] == frames[even][1]
    assert (frames[2][0] != frames[0][0]).any() and frames[2][1] > frames[0][1]


def test_an_image_looked_at_late_still_shows_its_own_tick(renderer):
    """Drawing is lazy; an odd tick must not leak into the picture of the even one."""
    eager, lazy = aloha_sim.make(renderer=renderer), aloha_sim.make(renderer=renderer)
    target = np.linspace(-0.2, 0.6, 14)
    for env in (eager, lazy):
        env.step(target)
        env.step(target)
    early = eager.observe().images["cam_high"]
    lazy.step(target)
    np.testing.assert_array_equal(lazy.observe().images["cam_high"], early)


def test_a_rendered_episode_holds_one_frame_for_two_ticks(renderer):
    episode = aloha_demos.rollout(aloha_sim.make(renderer=renderer), 1)
    for name, shape in SPEC.camera_shapes.items():
        assert episode.images[name].shape == (140, *shape) and episode.images[name].dtype == np.uint8
        assert episode.images_at(7)[name] is not None
        np.testing.assert_array_equal(episode.images_at(7)[name], episode.images[name][3])


def test_render_false_gives_no_images(sim):
    assert sim.observe().images == {}


def test_a_closed_renderer_and_a_foreign_state_are_refused(sim, renderer):
    with pytest.raises(ContractError, match="physics state"):
        renderer.render(np.zeros(5))
    closed = aloha_sim.make_renderer()
    closed.close()
    closed.close()
    with pytest.raises(ContractError, match="closed"):
        closed.render(sim.physics_state())


def test_missing_assets_name_the_pip_commands(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps gym-aloha"):
        aloha_scene.assets_dir()


def test_without_graphics_physics_runs_and_rendering_names_the_apt_command(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(mujoco_gl, "_loads", lambda library: False)
    blind = aloha_sim.make()
    blind.step(np.zeros(14))
    with pytest.raises(EdgewamError, match="apt-get install -y libegl1"):
        blind.observe()


def test_the_simulator_needs_neither_dm_control_nor_the_gym_package_s_code():
    code = (
        "import sys, numpy as np; from edgewam.robot_bridge.robots import aloha_sim; assert 'mujoco' not in sys.modules;"
        "aloha_sim.make(render=False).step(np.zeros(14)); print(sorted({'dm_control', 'gym_aloha', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_at_a_multiple_of_the_rate_the_physics_are_the_same_and_times_stay_times():
    slow, fast = aloha_sim.make(render=False), aloha_sim.make(render=False, control_hz=100)
    assert (fast.spec.control_hz, fast.spec.lease_ticks, fast.spec.camera_every) == (100, 10, 4)
    assert fast.spec.episode_ticks == 2 * slow.spec.episode_ticks and fast.spec.camera_hz == slow.spec.camera_hz
    target = aloha_scene.to_joints(aloha_scene.START_QPOS)
    target[[0, 6, 9]] += 0.2, 0.5, -0.1
    for robot in (slow, fast):
        robot.reset(3)
    for _ in range(20):
        slow.step(target)
        fast.step(target)
        fast.step(target)
        np.testing.assert_array_equal(fast.physics_state(), slow.physics_state())
    for robot, lease in ((slow, 5), (fast, 10)):  # until the lease is over, and one tick more
        robot.command(target + 0.1 * (target < 0.5))
        for _ in range(lease):
            robot.advance()
    np.testing.assert_array_equal(fast.physics_state(), slow.physics_state())
    slow.advance()
    fast.advance()
    fast.advance()
    np.testing.assert_array_equal(fast.physics_state(), slow.physics_state())


@pytest.mark.parametrize("control_hz", [25, 75, 150, 500])
def test_a_rate_that_cuts_a_step_of_the_physics_is_refused(control_hz):
    with pytest.raises(EdgewamError, match="50"):
        aloha_sim.make(render=False, control_hz=control_hz)


def test_strict_success_takes_half_a_second_at_any_rate():
    episode_ticks = []
    for control_hz, times in ((50, 1), (100, 2)):
        sim = aloha_sim.make(render=False, control_hz=control_hz)
        plan = sim.task.plan(sim.task.sample(900_001), np.random.default_rng([900_001, 1]), "plain").targets
        sim.reset(900_001)
        ticks = 0
        for row in np.repeat(plan, times, 0):
            ticks += 1
            if sim.step(row).strict_success:
                break
        episode_ticks.append(ticks / times)
    assert abs(episode_ticks[0] - episode_ticks[1]) <= 1

"""The replay robot plays what was recorded, by time, whatever is commanded, and says how commands and recording differ."""

import dataclasses
import subprocess
import sys
import tracemalloc
import types
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.data.export_episode import export_episode, main
from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings, run_episode
from edgewam.robot_bridge.policy import ReplayPolicy
from edgewam.robot_bridge.processes.driver_simulator import SimulatorDriver
from edgewam.robot_bridge.records.wires import Wires
from edgewam.robot_bridge.robot import with_task
from edgewam.robot_bridge.robots import aloha_sim, episode_file, replay
from edgewam.robot_bridge.robots.episode_file import Episode, decode, encode
from tests.data.synthetic import dataset_of, episode

JPEG = 8  # grey levels: JPEG of quality 95 on the smooth synthetic pictures, mean over a picture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data") / "demos", [episode(23, 0), episode(41, 1)])


@pytest.fixture
def file(dataset, tmp_path):
    path = tmp_path / "episode.npz"
    assert main([str(dataset.path), str(path), "--episode", "1"]) == 0
    return path


def test_it_plays_the_states_and_pictures_of_a_lerobot_episode(dataset, file):
    robot, spec = replay.make(task=str(file)), replay.describe(str(file))
    assert (spec.prompts, spec.control_hz, spec.camera_hz) == ((dataset.task(1),), dataset.fps, dataset.camera_hz)
    assert spec.episode_ticks == 41 and spec.joint_names == tuple(dataset.features["observation.state"]["names"])
    hold = robot.observe().state.astype(np.float64)
    for tick in range(41):
        seen = robot.observe()
        seen.check(spec.num_joints, spec.camera_shapes)
        assert seen.tick == tick
        np.testing.assert_array_equal(seen.state, dataset.states(1)[tick])
        if tick % 10 == 0:
            for camera, image in seen.images.items():
                truth = dataset.frames(1, camera, [dataset.camera_frame(tick)])[0]
                assert np.abs(image.astype(int) - truth).mean() < JPEG, (camera, tick)
        robot.step(hold)
    np.testing.assert_array_equal(robot.observe().state, dataset.states(1)[40])  # and stays at its end


def test_playing_the_recorded_actions_differs_by_nothing(file):
    actions = Episode.load(file).actions
    robot = replay.make(task=str(file), render=False)
    run_episode(robot, ReplayPolicy(lambda seed: actions), 0, "", LockstepSettings(max_ticks=len(actions)))
    outcome = robot.outcome()
    assert outcome["compared_ticks"] == len(actions) and outcome["silent_ticks"] == 0
    assert max(outcome["action_max"].values()) == 0


def test_a_command_that_is_off_by_a_tenth_shows_as_a_tenth(file):
    robot, actions = replay.make(task=str(file), render=False), Episode.load(file).actions
    for action in actions[:20]:
        robot.step(np.clip(action, robot.spec.lower, robot.spec.upper - 0.2) + np.eye(14)[3] * 0.1)
    outcome = robot.outcome()
    name = robot.spec.joint_names[3]
    assert outcome["action_rms"][name] == outcome["action_max"][name] == pytest.approx(0.1, abs=1e-6)
    assert sum(value > 1e-6 for value in outcome["action_max"].values()) == 1


def test_ticks_without_a_command_in_force_are_counted_and_not_compared():
    robot = replay.make()
    robot.advance()
    robot.command(robot.observe().state)
    for _ in range(robot.spec.lease_ticks + 3):
        robot.advance()
    assert robot.outcome()["compared_ticks"] == robot.spec.lease_ticks
    assert robot.outcome()["silent_ticks"] == 1 + 3
    robot.reset(0)
    assert robot.outcome() == {"compared_ticks": 0, "silent_ticks": 0}


def test_after_the_end_nothing_is_compared_any_more():
    robot = replay.make(render=False)
    for _ in range(replay.SPEC.episode_ticks + 10):
        robot.step(robot.observe().state)
    assert robot.outcome()["compared_ticks"] == replay.SPEC.episode_ticks


def test_the_report_of_a_run_has_the_comparison_of_every_episode():
    config = {"control_hz": 50.0, "driver_lead_s": 0.004, "seed": 0, "episode_ticks": 200, "lease_ticks": 5, "orphan_s": 2.0}
    wires = Wires(replay.SPEC.num_joints, replay.SPEC.camera_shapes)
    driver = SimulatorDriver(config, types.SimpleNamespace(wires=wires, epoch_ns=now_ns()), replay.make(render=False))
    command = wires["command"].blank()
    for tick in range(201):  # the last one begins the next episode
        command["tick"], command["target"] = tick, replay.example().actions[min(tick, 199)] + 0.1
        wires["command"].write(command)
        driver._apply_command()
        driver._advance()
    (episode,) = driver._results({})["episodes"]
    assert episode["ticks"] == episode["compared_ticks"] == 200
    assert list(episode["action_rms"].values()) == pytest.approx([0.1] * 14, abs=1e-5)
    wires.close()


def test_the_task_of_a_run_is_the_episode_file(file):
    spec, options = with_task("replay", str(file))
    assert options == {"task": str(file)} and spec.episode_ticks == 41
    assert with_task("replay", None) == (replay.SPEC, {})


def test_limits_come_from_the_robot_that_the_dataset_names_else_from_the_motion(dataset):
    known = replace(dataset.index, info={**dataset.index.info, "robot_type": "aloha_sim"})
    np.testing.assert_array_equal(export_episode(replace(dataset, index=known), 0).upper, aloha_sim.SPEC.upper)
    made = export_episode(dataset, 0)
    assert (made.lower < np.minimum(made.states, made.actions).min(0)).all()
    assert (np.abs(np.diff(made.actions, axis=0)).max(0) * dataset.fps < made.max_velocity).all()


def test_a_saved_episode_is_read_back_whole(tmp_path):
    one = replay.example()
    one.save(tmp_path / "any.name")
    other = Episode.load(tmp_path / "any.name")
    for field in ("robot", "prompt", "control_hz", "camera_hz", "joint_names", "pictures"):
        assert getattr(one, field) == getattr(other, field)
    for field in ("states", "actions", "lower", "upper", "max_velocity"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert decode(other.pictures["cam_high"][3]).shape == (128, 160, 3)


def test_an_episode_without_limits_gets_those_of_its_motion(tmp_path):
    path = tmp_path / "episode.npz"
    replay.example().save(path)
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files if name not in ("lower", "upper", "max_velocity")}
    np.savez(path, **arrays)
    found = Episode.load(path)
    assert (found.lower < found.states.min(0)).all() and (found.upper > found.states.max(0)).all()


def broken(name, value):
    def write(path):
        replay.example().save(path)
        with np.load(path) as data:
            arrays = {key: data[key] for key in data.files}
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value(arrays[name])
        np.savez(path, **arrays)

    return write


def wide_picture(path):
    """One picture of a few kilobytes that would unpack to hundreds of megabytes, did anybody try."""
    episode = replay.example()
    files = encode([np.zeros((1, 5000, 3), np.uint8)])
    dataclasses.replace(episode, pictures={"cam_high": files * (len(episode) // 2)}).save(path)


def member(data):
    """Writes an archive whose only array is these bytes."""

    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("states.npy", data)

    return write


def array(header):
    return member(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


PETABYTE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1125899906842624,), }"


def test_an_archive_that_unpacks_to_more_than_any_episode_is_refused_before_that(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "episode.npz", states=np.zeros((4 << 20,), np.uint8))
    monkeypatch.setattr(episode_file, "MAX_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="unpacks to more"):
            Episode.load(tmp_path / "episode.npz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "export_episode"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no archive"), "export_episode"),
        (broken("actions", None), "lacks 'actions'"),
        (broken("actions", lambda a: a[:-1]), "must both be"),
        (broken("states", lambda a: a * np.nan), "not finite"),
        (broken("pictures/cam_high", lambda a: a[:-1]), "do not match"),
        (broken("pictures/cam_high", lambda a: a * 0), "no sound episode"),
        (broken("camera_hz", lambda a: np.array(30.0)), "camera frame must fall"),
        (broken("upper", lambda a: a - 99), "no sound episode"),
        (broken("robot", lambda a: np.array([{"a": 1}], object)), "allow_pickle"),
        (broken("joint_names", lambda a: np.array("one")), "no sound episode"),
        (broken("control_hz", lambda a: np.array([50.0, 50.0])), "no sound episode"),
        (broken("camera_hz", lambda a: np.array(0.0)), "no sound episode"),
        (broken("camera_hz", lambda a: np.array(np.nan)), "no sound episode"),
        (broken("picture_ends/cam_high", lambda a: np.array(7)), "no sound episode"),
        (broken("picture_ends/cam_high", lambda a: a.astype(float)), "no sound episode"),
        (broken("states", lambda a: np.array("x")), "no sound episode"),
        (wide_picture, "at most 4096 a side"),
        (array(PETABYTE), "export_episode"),
        (array(PETABYTE[:-3]), "export_episode"),
        (member(b"no array"), "no sound episode"),
    ],
)
def test_a_broken_episode_file_is_refused_with_the_reason(tmp_path, write, message):
    path = tmp_path / "episode.npz"
    write(path)
    with pytest.raises(ArtifactError, match=message):
        Episode.load(path)


def test_export_says_what_is_wrong_in_one_sentence(dataset, tmp_path):
    with pytest.raises(ContractError, match=r"episodes 0\.\.1"):
        export_episode(dataset, 7)
    command = [sys.executable, "-m", "edgewam.data.export_episode", str(tmp_path / "none"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "out.npz").exists()

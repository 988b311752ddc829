"""A flight recording played by the robot `replay`: the states, commands and pixels of its control ticks."""

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError
from edgewam.robot_bridge.robots import recorded_episode, replay
from edgewam.robot_bridge.robots.episode_file import decode
from edgewam.robot_bridge.robots.recorded_episode import load_recorded
from tests.robot_bridge.recorded import CAMERAS, NUM_JOINTS

RUN = {
    "camera_every": 2,
    "lower": [-9.0] * NUM_JOINTS,
    "upper": [9.0] * NUM_JOINTS,
    "max_velocity": [5.0] * NUM_JOINTS,
}


def recorded(bridge, path, ticks, frames, episode=0):
    recorder = bridge.recorder(path, **RUN)
    for tick in range(max(ticks) + 1):
        if tick in frames:
            bridge.frame(tick // 2, tick=tick, episode=episode)
        if tick in ticks:
            bridge.tick(tick=tick, episode=episode)
        recorder.poll()
    recorder.close()
    return path


def test_every_tick_is_played_with_its_state_command_and_pixels(bridge, tmp_path):
    path = recorded(bridge, tmp_path / "run.mcap", range(10), range(0, 10, 2))
    robot = replay.make(task=str(path))
    assert robot.spec.prompts == ("reach",) and robot.spec.camera_hz == 25 and robot.spec.episode_ticks == 10
    assert dict(robot.spec.camera_shapes) == CAMERAS
    for tick in range(10):
        seen = robot.observe()
        np.testing.assert_array_equal(seen.state, bridge.sent["tick"][tick]["state"].astype(np.float32))
        for name, image in seen.images.items():
            np.testing.assert_array_equal(image, bridge.sent["frame"][tick // 2][name])
        robot.step(bridge.sent["tick"][tick]["command"])
    assert robot.outcome()["compared_ticks"] == 10
    assert max(robot.outcome()["action_max"].values()) < 1e-6


def test_a_missed_tick_repeats_the_one_before_and_a_missed_frame_too(bridge, tmp_path):
    path = recorded(bridge, tmp_path / "run.mcap", [0, 1, 2, 3, 6, 7], [0, 2, 6])
    episode = load_recorded(path)
    states = [row["state"].astype(np.float32) for row in bridge.sent["tick"]]
    for tick, row in enumerate([0, 1, 2, 3, 3, 3, 4, 5]):
        np.testing.assert_array_equal(episode.states[tick], states[row])
    shown = [decode(file) for file in episode.pictures["cam_wrist"]]
    for period, frame in enumerate([0, 1, 1, 2]):
        np.testing.assert_array_equal(shown[period], bridge.sent["frame"][frame]["cam_wrist"])


def test_it_begins_with_the_first_tick_that_has_a_picture(bridge, tmp_path):
    path = recorded(bridge, tmp_path / "run.mcap", range(1, 9), [4, 6, 8])
    episode = load_recorded(path)
    np.testing.assert_array_equal(episode.states[0], bridge.sent["tick"][3]["state"].astype(np.float32))  # tick 4
    assert len(episode) == 5 and len(episode.pictures["cam_high"]) == 3


def test_a_recording_without_that_episode_is_refused(bridge, tmp_path):
    path = recorded(bridge, tmp_path / "run.mcap", range(4), [0, 2], episode=3)
    with pytest.raises(ArtifactError, match="holds no episode 0"):
        load_recorded(path)
    assert len(load_recorded(path, 3)) == 4


def test_an_episode_of_gaps_or_one_that_is_too_large_is_refused(bridge, tmp_path, monkeypatch):
    path = recorded(bridge, tmp_path / "run.mcap", range(4), [0, 2])
    monkeypatch.setattr(recorded_episode, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match="Give a shorter one"):
        load_recorded(path)
    monkeypatch.undo()
    recorder = bridge.recorder(tmp_path / "gap.mcap", **RUN)
    bridge.frame(9, tick=0)
    for tick in (0, 1 << 60):
        bridge.tick(tick=tick)
        recorder.poll()
    recorder.close()
    with pytest.raises(ArtifactError, match="too many are missing"):
        load_recorded(tmp_path / "gap.mcap")


def test_limits_that_no_robot_can_have_are_refused(bridge, tmp_path):
    recorder = bridge.recorder(tmp_path / "run.mcap", **{**RUN, "upper": [-99.0] * NUM_JOINTS})
    bridge.frame(1, tick=0)
    bridge.tick()
    recorder.poll()
    recorder.close()
    with pytest.raises(ArtifactError, match="cannot be played"):
        load_recorded(tmp_path / "run.mcap")


def test_a_recording_without_limits_is_refused(bridge, tmp_path):
    bridge.recorder(tmp_path / "run.mcap").close()
    with pytest.raises(ArtifactError, match="does not say lower, upper, max_velocity of every joint"):
        load_recorded(tmp_path / "run.mcap")

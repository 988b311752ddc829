"""Frames of cameras that fail: the last good image stays with its own time, the camera is marked, and frames go on."""

from __future__ import annotations

import numpy as np
import pytest

from edgewam.robot_bridge.processes.camera_frames import FrameWriter, what_is_wrong
from edgewam.robot_bridge.records.wires import Wires
from edgewam.robot_bridge.robot import CameraImage

SHAPE = (4, 6, 3)
NAMES = ["high", "low"]


def picture(value, t_ns=1_000):
    return CameraImage(np.full(SHAPE, value, np.uint8), t_ns)


@pytest.fixture
def wires():
    made = Wires(2, dict.fromkeys(NAMES, SHAPE))
    yield made
    made.close()


@pytest.fixture
def writer(wires):
    return FrameWriter(wires, NAMES)


def published(writer, wires):
    moment = wires["state"].blank()
    moment["tick"], moment["episode"], moment["t_ns"], moment["state"] = 7, 2, 5_000, [0.25, 0.5]
    writer.publish(moment, 99)
    frame, stamps = wires["frame"].read()[1], wires["cameras"].read()[1]
    for name in ("number", "t_camera_ns", "is_lost"):
        np.testing.assert_array_equal(frame[name], stamps[name])
    return frame


def test_a_frame_has_each_camera_s_own_time_and_the_robot_s_moment(writer, wires):
    writer.take({"high": picture(50, 1_000), "low": picture(60, 2_000)})
    frame = published(writer, wires)
    assert frame["t_camera_ns"].tolist() == [1_000, 2_000] and frame["is_lost"].tolist() == [0, 0]
    assert (frame["high"] == 50).all() and (frame["low"] == 60).all()
    assert (int(frame["tick"]), int(frame["episode"]), int(frame["t_ns"]), int(frame["render_ns"])) == (7, 2, 5_000, 99)
    assert frame["number"] == 1 and frame["t_frame_ns"] > 0
    assert published(writer, wires)["number"] == 2


def test_a_camera_with_nothing_new_keeps_image_and_time_and_is_not_lost(writer, wires):
    writer.take({"high": picture(50), "low": picture(60)})
    writer.take({"high": picture(51, 3_000)})
    frame = published(writer, wires)
    assert frame["t_camera_ns"].tolist() == [3_000, 1_000] and not frame["is_lost"].any() and (frame["low"] == 60).all()


@pytest.mark.parametrize(
    "bad",
    [
        CameraImage(np.zeros(SHAPE, np.uint8), 2_000),
        CameraImage(np.full(SHAPE, 8, np.uint8), 2_000),
        CameraImage(np.full((6, 4, 3), 90, np.uint8), 2_000),
        CameraImage(np.full(SHAPE, 90, np.float32), 2_000),
        CameraImage(np.full(SHAPE, 90, np.uint8), 1 << 62),
        CameraImage(np.full(SHAPE, 90, np.uint8), -(1 << 70)),
        CameraImage(np.full(SHAPE, 90, np.uint8), float("nan")),
        None,
        "a picture",
    ],
)
def test_a_bad_image_is_replaced_by_the_last_good_one_and_counted(writer, wires, bad):
    writer.take({"high": picture(50), "low": picture(60)})
    writer.take({"high": picture(51, 3_000), "low": bad})
    frame = published(writer, wires)
    assert frame["is_lost"].tolist() == [0, 1] and frame["t_camera_ns"].tolist() == [3_000, 1_000]
    assert (frame["low"] == 60).all() and writer.lost == {"high": 0, "low": 1} and "low" in writer.reasons
    writer.take({"low": picture(70, 4_000)})
    frame = published(writer, wires)
    assert not frame["is_lost"].any() and (frame["low"] == 70).all() and writer.reasons == {}


def test_when_all_fail_together_all_are_lost(writer, wires):
    writer.take({"high": picture(50), "low": picture(60)})
    writer.fail("OSError: unplugged")
    assert published(writer, wires)["is_lost"].all() and writer.lost == {"high": 1, "low": 1}


def test_a_camera_that_never_gave_an_image_is_missing(writer):
    writer.take({"high": picture(50), "low": picture(0)})
    assert writer.missing == ["low"] and writer.reasons == {"low": "is black"}


def test_a_successor_s_numbers_go_on(writer, wires):
    writer.take({"high": picture(50), "low": picture(60)})
    published(writer, wires)
    successor = FrameWriter(wires, NAMES)
    successor.take({"high": picture(50), "low": picture(60)})
    assert published(successor, wires)["number"] == 2


def test_an_image_that_changes_after_it_was_given_does_not_change_the_frame(writer, wires):
    shared = picture(50)
    writer.take({"high": shared, "low": picture(60)})
    shared.image[:] = 0
    assert (published(writer, wires)["high"] == 50).all()


def test_the_reason_says_what_was_given_and_what_is_needed():
    assert what_is_wrong(picture(50), SHAPE) is None
    assert what_is_wrong(CameraImage(np.zeros((2, 2), np.uint8), 1), SHAPE) == "gave uint8 [2, 2] instead of uint8 [4, 6, 3]"

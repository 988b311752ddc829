"""The parts of the ros2 door without a network: bytes on the wire, what is believed of a message, ticks, options."""

import io
import random
import struct
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image as Pillow

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.doors import ros2
from edgewam.robot_bridge.doors.dds import cdr, readings
from edgewam.robot_bridge.doors.dds.command_loop import CommandLoop
from edgewam.robot_bridge.doors.dds.inputs import NEVER_NS, Inputs
from edgewam.robot_bridge.doors.dds.message_types import message_types
from edgewam.robot_bridge.doors.dds.network import MAX_DOMAIN, Node, Route, take_one, take_round
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.door import DoorOptions
from edgewam.robot_bridge.serving.handler import DoorError
from tests.robot_bridge import fakes
from tests.robot_bridge.doors import ros2_messages as ros
from tests.robot_bridge.doors.engines import NotedEngine, session

NAMES = fakes.SPEC.joint_names
SHAPE = (4, 6, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
GROWTH_BYTES = 4 << 20  # the allocator's own unrest; ten thousand samples are 2 MB


class HandCdr:
    """CDR as the OMG wrote it down (little-endian, version 1), by hand: numbers aligned to their size, lengths before data."""

    def __init__(self):
        self.body = b""

    def number(self, form, value):
        """One aligned number."""
        self.body += b"\0" * (-len(self.body) % struct.calcsize(form)) + struct.pack("<" + form, value)

    def text(self, value):
        """Length with the terminator, bytes, terminator."""
        self.number("I", len(value) + 1)
        self.body += value.encode() + b"\0"

    def numbers(self, values):
        """A sequence of doubles."""
        self.number("I", len(values))
        for value in values:
            self.number("d", value)

    def header(self, seconds, nanoseconds, frame):
        """std_msgs/Header."""
        self.number("i", seconds)
        self.number("I", nanoseconds)
        self.text(frame)

    def done(self):
        """With the encapsulation header CDR_LE."""
        return b"\x00\x01\x00\x00" + self.body


@pytest.mark.parametrize("frame", ["", "base", "x" * 7])
def test_a_joint_state_is_the_bytes_that_cdr_asks_for(frame):
    types = message_types()
    names, position, velocity = ["waist", "a", "left_gripper"], [0.1, -2.0, 1e-9], [1.0, 2.0, 3.0]
    message = types.JointState(
        header=types.Header(stamp=types.Time(sec=-5, nanosec=999_999_999), frame_id=frame),
        name=names, position=position, velocity=velocity, effort=[],
    )  # fmt: skip
    hand = HandCdr()
    hand.header(-5, 999_999_999, frame)
    hand.number("I", 3)
    for name in names:
        hand.text(name)
    for values in (position, velocity, []):
        hand.numbers(values)
    assert unpadded(message.serialize()) == hand.done()


def test_a_trajectory_is_the_bytes_that_cdr_asks_for():
    types = message_types()
    after = types.Duration(sec=0, nanosec=20_000_000)
    points = [
        types.JointTrajectoryPoint(positions=[0.5, 1.5], velocities=[], accelerations=[], effort=[], time_from_start=after)
    ] * 2
    header = types.Header(stamp=types.Time(sec=1, nanosec=2), frame_id="")
    hand = HandCdr()
    hand.header(1, 2, "")
    hand.number("I", 1)
    hand.text("elbow")
    hand.number("I", 2)
    for _ in points:
        for values in ([0.5, 1.5], [], [], []):
            hand.numbers(values)
        hand.number("i", 0)
        hand.number("I", 20_000_000)
    message = types.JointTrajectory(header=header, joint_names=["elbow"], points=points)
    assert unpadded(message.serialize()) == hand.done()


def unpadded(data):
    """A sample without the bytes that only fill its last word; how many, its header says."""
    extra = data[3] & 3
    return data[:3] + b"\0" + data[4 : len(data) - extra]


def test_types_have_the_names_of_rmw():
    types = message_types()
    for name, package in (("JointState", "sensor_msgs"), ("Image", "sensor_msgs"), ("JointTrajectory", "trajectory_msgs")):
        assert getattr(types, name).__idl_typename__ == f"{package}::msg::dds_::{name}_"


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
@pytest.mark.parametrize("padding", [0, 2])
def test_an_image_comes_out_of_its_bytes_with_its_colours(encoding, padding):
    found = cdr.image(ros.image_message(PIXELS, encoding, padding).serialize())
    np.testing.assert_array_equal(readings.image_of(found, SHAPE), PIXELS)


def test_a_big_endian_image_is_understood():
    data = struct.pack(">iII4xIII", 1, 2, 1, 4, 6, 5) + b"rgb8\0" + b"\0\0\0" + struct.pack(">II", 18, 72) + PIXELS.tobytes()
    np.testing.assert_array_equal(readings.image_of(cdr.image(b"\0\0\0\0" + data), SHAPE), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_decoded_when_its_size_is_right(kind):
    flat = np.full(SHAPE, 130, np.uint8)
    message = ros.CompressedImage(format=kind.lower(), data=encoded(flat, kind))
    found = readings.picture_of(cdr.compressed_image(message.serialize()), SHAPE)
    np.testing.assert_allclose(found, flat, atol=0 if kind == "PNG" else 2)  # JPEG rounds a flat colour by a step or two


def encoded(pixels, kind):
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "mono8"}, {"encoding": ""}, {"height": 5}, {"width": 7}, {"height": 2**32 - 1}, {"step": 17}, {"step": 0},
        {"step": 36, "data": bytes(4 * 36)}, {"data": PIXELS.tobytes()[:-1]}, {"data": b""}, {"data": PIXELS.tobytes() * 2},
    ],
)  # fmt: skip
def test_an_image_of_any_other_make_is_refused(change):
    fields = {"height": 4, "width": 6, "encoding": "rgb8", "step": 18, "data": PIXELS.tobytes(), **change}
    with pytest.raises(DoorError) as caught:
        readings.image_of(SimpleNamespace(**fields), SHAPE)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xd8\xff", encoded(PIXELS, "GIF"), encoded(PIXELS, "PNG")[:60], encoded(PIXELS[:3], "PNG"),
        encoded(PIXELS[:, :, 0], "PNG"), encoded(np.zeros((2000, 2000, 3), np.uint8), "PNG")[:140], bytes(1000),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000) + b"\x08\x02\0\0\0" + bytes(4),
    ],
)  # fmt: skip
def test_a_picture_that_is_no_camera_image_is_refused_before_it_is_decoded(data):
    begin_s = time.process_time()
    with pytest.raises(DoorError) as caught:
        readings.picture_of(SimpleNamespace(format="jpeg", data=data), SHAPE)
    assert caught.value.code in ("bad_request", "too_large") and time.process_time() - begin_s < 1


def test_joints_are_put_in_the_robots_order():
    message = ros.JointState(name=["gripper", "elbow"], position=[0.25, -0.5])
    np.testing.assert_array_equal(readings.joints_of(message, NAMES), np.array([-0.5, 0.25], np.float32))


@pytest.mark.parametrize(
    ("names", "position"),
    [
        ([], []), (["elbow"], [0.0]), (["elbow", "gripper"], [0.0]), (["elbow", "elbow"], [0.0, 0.0]),
        (["elbow", "wrist"], [0.0, 0.0]), (["elbow", "gripper", "wrist"], [0.0] * 3), (["elbow", "gripper"], [np.nan, 0.0]),
        (["elbow", "gripper"], [0.0, -np.inf]), (["elbow", "gripper"], [1e308, 0.0]),
    ],
)  # fmt: skip
def test_a_joint_state_with_other_joints_or_no_numbers_is_refused(names, position):
    with pytest.raises(DoorError):
        readings.joints_of(ros.JointState(name=names, position=position), NAMES)


def test_two_publishers_of_one_topic_are_never_mixed():
    inputs = Inputs(silent_ns=100)
    inputs.admit("state", "first", 1000)
    inputs.admit("camera", "second", 1000)
    with pytest.raises(DoorError, match="Two publishers"):
        inputs.admit("state", "second", 1099)
    inputs.admit("state", "first", 1050)
    inputs.admit("state", "second", 1151)
    with pytest.raises(DoorError):
        inputs.admit("state", "first", 1152)


def test_a_camera_that_never_spoke_is_as_old_as_can_be():
    inputs = Inputs(silent_ns=1)
    assert inputs.snapshot().camera_age_ns(5, {"cam_high": SHAPE}) == NEVER_NS
    inputs.set_image("cam_high", PIXELS, 2)
    assert inputs.snapshot().camera_age_ns(5, {"cam_high": SHAPE}) == 3
    assert inputs.snapshot().camera_age_ns(5, {}) == 0


class Wire:
    """A reader that gets given bytes and decodes them as the DDS library does."""

    def __init__(self, kind):
        self.kind, self.data = kind, b""

    def take(self, count, condition=None):
        """One sample, or an error of the decoder."""
        message = self.kind.deserialize(self.data)
        message.sample_info = SimpleNamespace(valid_data=True, publication_handle=1)
        return [message]


def fuzz(num_samples, seed):
    rng, types, inputs = random.Random(seed), message_types(), Inputs(silent_ns=1)
    stops = []
    samples = {
        "joints": (types.JointState, ros.JointState(name=list(NAMES), position=[0.1, 0.2], velocity=[0.0, 0.0])),
        "image": (types.Image, ros.image_message(PIXELS)),
        "png": (types.CompressedImage, ros.CompressedImage(data=encoded(PIXELS, "PNG"))),
        "jpeg": (types.CompressedImage, ros.CompressedImage(data=encoded(PIXELS, "JPEG"))),
        "stop": (types.Bool, ros.Bool(data=True)),
    }
    take = {
        "joints": lambda m, t: inputs.set_state(readings.joints_of(m, NAMES), t),
        "image": lambda m, t: inputs.set_image("image", readings.image_of(m, SHAPE), t),
        "png": lambda m, t: inputs.set_image("png", readings.picture_of(m, SHAPE), t),
        "jpeg": lambda m, t: inputs.set_image("jpeg", readings.picture_of(m, SHAPE), t),
        "stop": lambda m, t: stops.append(m.data),
    }
    routes = {name: Route(name, Wire(kind), None, take[name], is_shared=False) for name, (kind, _) in samples.items()}
    settled = psutil.Process().memory_info().rss
    for number in range(num_samples):
        name = rng.choice(list(samples))
        routes[name].reader.data = mutated(rng, samples[name][1].serialize())
        assert take_one(routes[name], inputs)
        snapshot = inputs.snapshot()
        assert snapshot.state is None or (np.isfinite(snapshot.state.value).all() and snapshot.state.value.shape == (2,))
        assert all(image.value.shape == SHAPE and image.value.dtype == np.uint8 for image in snapshot.images.values())
        if number == num_samples // 4:
            settled = psutil.Process().memory_info().rss
    assert sum(inputs.refused.values()) > num_samples / 3
    assert psutil.Process().memory_info().rss - settled < GROWTH_BYTES


def test_a_control_loop_that_died_ends_the_door_with_an_error(monkeypatch):
    monkeypatch.setattr(ros2, "STATUS_S", 0.01)
    drive, ended = object.__new__(ros2._Drive), []
    drive.node = SimpleNamespace(listen=lambda: None)
    drive._loop = SimpleNamespace(run=lambda source, quit_event: None)
    drive._source = SimpleNamespace(begin=lambda: None, close=lambda: ended.append("source"))
    drive._listen = drive._say = lambda: None
    with pytest.raises(EdgewamError, match="control loop ended by itself"):
        drive.run(DoorOptions(), Address())
    assert ended == ["source"]


def test_who_floods_one_topic_silences_no_other():
    class Endless:
        """A reader that is never empty, until a test would hang."""

        left = 1000

        def take(self, number, condition):
            self.left -= 1
            return [SimpleNamespace(sample_info=SimpleNamespace(valid_data=True, publication_handle=1))] if self.left else []

    heard = []
    routes = [Route(name, Endless(), None, lambda message, t_ns, name=name: heard.append(name), True) for name in ("a", "stop")]
    take_round(routes, Inputs(silent_ns=1))
    assert 0 < heard.count("a") == heard.count("stop") < 100


def mutated(rng, data):
    """Flipped, cut, doubled, or plain noise behind a valid encapsulation header."""
    data = bytearray(data)
    match rng.randrange(4):
        case 0:
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 1:
            del data[rng.randrange(4, len(data)) :]
        case 2:
            start = rng.randrange(4, len(data))
            data[start:start] = data[start : start + rng.randint(1, 16)]
        case 3:
            data = bytearray(b"\x00\x01\x00\x00" + rng.randbytes(rng.randint(0, 120)))
    return bytes(data)


def test_five_hundred_damaged_samples():
    fuzz(500, seed=1)


@pytest.mark.soak
def test_ten_thousand_damaged_samples():
    fuzz(10_000, seed=2)


class Nothing:
    """A source without chunks."""

    is_stopped = False

    @property
    def alive_ns(self):
        """Always just now."""
        return time.monotonic_ns()

    def newest(self):
        """Never any."""


def test_late_ticks_are_skipped_and_counted_and_never_sent_in_a_burst():
    sent, inputs, quit_event = [], Inputs(silent_ns=1), threading.Event()

    def on_decision(tick, decision):
        sent.append((tick, time.monotonic(), decision.mode))
        if len(sent) == 3:
            time.sleep(0.11)  # five and a half periods
        if len(sent) == 8:
            quit_event.set()

    loop = CommandLoop(ros2.config_of(fakes.SPEC), inputs, fakes.SPEC.camera_shapes, on_decision, lambda: None)
    loop.run(Nothing(), quit_event)
    ticks, times, modes = zip(*sent, strict=True)
    assert loop.counts.skipped >= 5 and loop.counts.ticks == len(sent)
    assert ticks[3] - ticks[2] >= 6 and list(ticks) == sorted(set(ticks))
    begin_s = times[0] - ticks[0] / 50
    assert all(at >= begin_s + tick / 50 - 0.011 for tick, at in zip(ticks, times, strict=True)), "none before its time"
    assert set(modes) == {Mode.INIT}, "without a state nothing is commanded"


def test_options_are_named_and_checked():
    metadata = session(NotedEngine()).metadata
    settings = ros2.settings_of({}, metadata)
    assert (settings.domain, settings.is_armed, settings.is_loopback) == (42, False, True)
    for extra in ({"colour": "red"}, {"domain": "x"}, {"network": "world"}, {"arm": "maybe"}):
        with pytest.raises(EdgewamError):
            ros2.settings_of(extra, metadata)
    with pytest.raises(EdgewamError, match="0 to 232"):
        Node(MAX_DOMAIN + 1, Inputs(1), max_image_bytes=1)


def test_what_dds_cannot_promise_is_refused():
    assert "ros2" in plugins.names("door")
    handler = session(NotedEngine())
    with pytest.raises(EdgewamError, match="neither --token-file nor --bind"):
        ros2.serve(handler, Address(), DoorOptions(token="x" * 40, extra={"robot": fakes.ROBOT}))
    with pytest.raises(EdgewamError, match="neither --token-file nor --bind"):
        ros2.serve(handler, Address(host="10.0.0.1"), DoorOptions(extra={"robot": fakes.ROBOT}))
    with pytest.raises(EdgewamError, match="robot 'aloha_sim' has 14"):
        ros2.serve(handler, Address(), DoorOptions(extra={"robot": "aloha_sim"}))
    assert "without authentication" in ros2.exposure(Address(), None)

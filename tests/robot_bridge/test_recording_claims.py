"""A recording of somebody else's: what it claims is checked before it costs memory, and what is wrong is said in a sentence."""

from __future__ import annotations

import base64
import io
import json
import struct
import tracemalloc
import types

import numpy as np
import pytest
import zstandard
from PIL import Image

from edgewam.core.errors import ArtifactError
from edgewam.robot_bridge.recorder import claims, reader, replay
from edgewam.robot_bridge.recorder.flight_recorder import head
from edgewam.robot_bridge.recorder.messages import encode_image, message_layouts
from edgewam.robot_bridge.recorder.part import Part
from edgewam.robot_bridge.recorder.reader import Recording
from tests.cli.command import here
from tests.robot_bridge.recorded import CAMERAS, NUM_JOINTS

RATES = {"max_velocity": [1.0] * NUM_JOINTS, "max_acceleration": None}
LIMITS = {"lower": [-1.0] * NUM_JOINTS, "upper": [1.0] * NUM_JOINTS, **RATES}


@pytest.fixture
def path(bridge, tmp_path):
    """A sound recording of one tick and one frame."""
    recorder = bridge.recorder(tmp_path / "run.mcap", **LIMITS)
    bridge.frame(1)
    bridge.tick()
    recorder.poll()
    recorder.close()
    return tmp_path / "run.mcap"


@pytest.mark.parametrize(("claimed", "compression"), [(1000, "zstd"), (1 << 40, "zstd"), (1 << 40, ""), (1000, "lz4")])
def test_a_chunk_is_not_unpacked_when_it_holds_or_claims_more_than_any_of_ours(claimed, compression, monkeypatch):
    monkeypatch.setattr(claims, "MAX_CHUNK", 1 << 20)
    data = zstandard.compress(bytes(64 << 20)) if compression else b""
    chunk = types.SimpleNamespace(compression=compression, data=data, uncompressed_size=claimed, uncompressed_crc=0)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bytes|compressed with"):
            claims.inside(chunk)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_with_such_a_chunk_is_read_up_to_it(path, monkeypatch):
    assert {name for name, _ in Recording(path).entries()} == {"tick", "frame"}
    monkeypatch.setattr(claims, "MAX_CHUNK", 1000)
    recording = Recording(path)
    assert list(recording.entries()) == [] and recording.torn == [path]


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, 0])
def test_a_length_in_a_chunk_that_no_file_has_ends_the_part_as_torn(path, length, monkeypatch):
    breakup, data = claims.require("mcap.stream_reader", extra="telemetry"), struct.pack("<BQ", 5, length)  # a message
    chunk = types.SimpleNamespace(compression="", data=data, uncompressed_size=len(data), uncompressed_crc=0)
    monkeypatch.setattr(reader, "inside", lambda other: breakup.breakup_chunk(chunk))
    recording = Recording(path)
    assert list(recording.entries()) == [] and recording.torn == [path]


def message(data):
    return json.dumps({"data": base64.b64encode(data).decode()}).encode()


def encoded(kind, size):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_is_not_unpacked_when_it_is_not_of_its_camera_s_size():
    assert claims.picture(message(encoded("PNG", (32, 24))), (24, 32, 3)).shape == (24, 32, 3)
    bomb = encode_image(np.zeros((2000, 2000, 3), np.uint8), "cam_high", 0)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="2000x2000"):
            claims.picture(bomb, (24, 32, 3))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        message(encoded("BMP", (32, 24))),
        message(encoded("PNG", (32, 24))[:45]),
        message(b""),
        b"{}",
        b"[" * 100_000,
        b'{"data": 1}',
    ],
)
def test_what_is_no_png_is_refused_in_a_sentence(data):
    with pytest.raises(ArtifactError, match="picture"):
        claims.picture(data, (24, 32, 3))


BAD_RUNS = [
    {"num_joints": 10**9},
    {"num_joints": True},
    {"camera_shapes": {"cam_high": [10**6, 10**6, 3]}},
    {"camera_shapes": {f"cam_{n}": [8, 8, 3] for n in range(1000)}},
    {"camera_shapes": [1]},
    {"config": None},
    {"hardware": []},
    *(
        {"config": change}
        for change in (
            {"prompt": 3}, {"robot": None}, {"seed": -1}, {"seed": 0.5}, {"policy_args": []}, {"control_hz": 0},
            {"ticks_per_row": 0}, {"camera_every": 0}, {"control_hz": float("nan")}, {"joint_names": ["a"]},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("change", BAD_RUNS)
def test_a_description_of_no_possible_run_is_refused(path, change, monkeypatch):
    sound = Recording._head

    def changed(self, file):
        run = sound(self, file)
        config = change.get("config")
        return {**run, **change, "config": {**run["config"], **config} if config else change.get("config", run["config"])}

    monkeypatch.setattr(Recording, "_head", changed)
    with pytest.raises(ArtifactError, match="describes no run"):
        Recording(path)


def test_counting_needs_the_limits_that_commands_are_checked_by(bridge, tmp_path):
    bridge.recorder(tmp_path / "x.mcap", lower=[0.0, "x", 1.0], **RATES).close()
    done = here("replay", tmp_path / "x.mcap")
    assert done.code == 1 and "does not say lower, upper of every joint" in done.err


@pytest.mark.parametrize(
    ("topic", "data"),
    [
        ("/tick", b"[]"), ("/tick", b"{"), ("/tick", b'{"number": 1e999}'), ("/state", b'{"tick": ' + b"9" * 40 + b"}"),
        ("/chunk", b'{"actions": [[1, 2]]}'), ("/chunk", b'{"actions": ' + b"[" * 5000),
        ("/state", b'{"state": ["x"]}'), ("/recorder", b"{"),
    ],
)  # fmt: skip
def test_a_message_that_is_none_of_ours_is_said_in_a_sentence(bridge, tmp_path, topic, data):
    config = bridge.config(tmp_path / "x.mcap", **LIMITS)
    part = Part(tmp_path / "x.mcap", {**head(config), "part": 1}, message_layouts(NUM_JOINTS, CAMERAS), CAMERAS)
    part.add(topic, 0, data)
    part.finish({})
    with pytest.raises(ArtifactError, match="damaged or not edgewam's"):
        list(Recording(tmp_path / "x.mcap").entries())
    done = here("replay", tmp_path / "x.mcap")
    assert done.code == 1 and "Traceback" not in done.err


def test_the_frames_that_are_kept_are_bounded_in_bytes(bridge, tmp_path, monkeypatch):
    recorder = bridge.recorder(tmp_path / "run.mcap", **LIMITS)
    for number in range(1, 9):
        bridge.frame(number)
        recorder.poll()
    recorder.close()
    recording = Recording(tmp_path / "run.mcap")
    frames = [item for name, item in recording.entries() if name == "frame"]
    monkeypatch.setattr(replay, "BYTES_KEPT", 3 * max(frame.num_bytes for frame in frames))
    player = replay._Player(recording, None, 0.0)
    for frame in [*frames, frames[-1]]:
        player.see_frame(frame)
    assert list(player._frames) == [6, 7, 8] and player._num_bytes == sum(frame.num_bytes for frame in frames[-3:])


def test_a_prompt_cannot_command_the_terminal_and_an_endless_joint_is_no_error(bridge, tmp_path):
    endless = {**LIMITS, "upper": [float("inf")] * NUM_JOINTS}
    recorder = bridge.recorder(tmp_path / "run.mcap", prompt="\x1b]0;owned\x07[/bold]reach", **endless)
    bridge.tick()
    recorder.poll()
    recorder.close()
    done = here("replay", tmp_path / "run.mcap", "--json").ok()
    assert "\x1b" not in done.err and "\x07" not in done.err and "[/bold]reach" in done.err
    assert done.json["run"]["config"]["upper"] == ["Infinity"] * NUM_JOINTS

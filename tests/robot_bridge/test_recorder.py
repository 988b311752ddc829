"""The flight recorder: what comes back is what was published, every loss is counted, and no death costs more than a second."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.processes.spawn import Child
from edgewam.robot_bridge.recorder import flight_recorder
from edgewam.robot_bridge.recorder.messages import Frame
from edgewam.robot_bridge.recorder.part import open_new
from edgewam.robot_bridge.recorder.png import encode_png
from edgewam.robot_bridge.recorder.reader import Recording, last_status
from edgewam.robot_bridge.recorder.tally import Tally, missing
from edgewam.robot_bridge.records.wires import LOG_ROWS
from tests.robot_bridge.recorded import CAMERAS
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


def play(bridge, recorder, first, count):
    """A little of everything, polled as often as the process does."""
    for step in range(first, first + count):
        bridge.state(step)
        bridge.tick()
        if step % 2 == 0:
            bridge.frame(step // 2 + 1, step)
            bridge.chunk(step // 2 + 1, frame_number=step // 2 + 1)
        if step % 8 == 0:
            bridge.context(step // 8, step)
        recorder.poll()


def stored(path):
    """Everything in a recording, by stream, and the recording."""
    recording = Recording(path)
    found = {}
    for name, item in recording.entries():
        found.setdefault(name, []).append(item)
    return found, recording


def assert_same(stored_value, sent, left_out=()):
    for name in stored_value.dtype.names:
        if name not in left_out:
            np.testing.assert_array_equal(stored_value[name], sent[name], err_msg=name)


def test_every_stream_comes_back_bit_for_bit_and_nothing_is_lost(bridge, tmp_path):
    path = tmp_path / "run.mcap"
    recorder = bridge.recorder(path)
    play(bridge, recorder, 0, 40)
    done = recorder.close()
    found, recording = stored(path)
    assert done["lost"] == 0 and done["fault"] is None and done["bytes"] == path.stat().st_size
    assert recording.torn == [] and recording.status == {k: v for k, v in done.items() if k not in ("file", "parts", "bytes")}
    for name in ("state", "chunk", "context"):
        assert len(found[name]) == len(bridge.sent[name]) == done["streams"][name]["kept"]
        for got, sent in zip(found[name], bridge.sent[name], strict=True):
            assert_same(got, sent)
    assert [int(row["number"]) for row in found["tick"]] == list(range(40))
    for got, sent in zip(found["tick"], bridge.sent["tick"], strict=True):
        assert_same(got, sent, left_out=("number",))
    for got, sent in zip(found["frame"], bridge.sent["frame"], strict=True):
        assert isinstance(got, Frame)
        assert_same(got.header, sent)
        images = got.images()
        assert set(images) == set(CAMERAS)
        for name, image in images.items():
            assert image.dtype == np.uint8 and (image == sent[name]).all()
    np.testing.assert_array_equal(recording.ticks()["command"], np.stack([row["command"] for row in bridge.sent["tick"]]))
    assert recording.run["config"]["prompt"] == "reach" and recording.run["config"]["seed"] == 7
    assert abs(recording.run["clock"]["wall_ns"] - time.time_ns()) < 600 * 10**9 and recording.run["versions"]["numpy"]


def test_numbers_that_json_does_not_know_come_back(bridge, tmp_path):
    recorder = bridge.recorder(tmp_path / "run.mcap")
    bridge.tick(state=[np.nan, np.inf, -np.inf], command=[5e-324, -0.0, 1.7976931348623157e308])
    bridge.chunk(1, np.array([[np.nan, 1e-45, 0.1]], np.float32), rows=1)
    recorder.poll()
    recorder.close()
    found, _ = stored(tmp_path / "run.mcap")
    assert found["tick"][0]["state"].tobytes() == bridge.sent["tick"][0]["state"].tobytes()
    assert found["tick"][0]["command"].tobytes() == bridge.sent["tick"][0]["command"].tobytes()
    np.testing.assert_array_equal(found["chunk"][0]["actions"], bridge.sent["chunk"][0]["actions"])


def test_a_viewer_of_mcap_files_finds_an_index_and_foxglove_images(bridge, tmp_path):
    from mcap.reader import make_reader

    path = tmp_path / "run.mcap"
    recorder = bridge.recorder(path)
    play(bridge, recorder, 0, 4)
    recorder.close()
    with open(path, "rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert {channel.topic for channel in summary.channels.values()} == {
            "/tick", "/state", "/frame", "/chunk", "/context", "/recorder", *(f"/camera/{name}" for name in CAMERAS),
        }  # fmt: skip
        schema, channel, message = next(iter(reader.iter_messages(topics=["/camera/cam_high"])))
        image = json.loads(message.data)
        assert schema.name == "foxglove.CompressedImage" and channel.message_encoding == "json"
        assert image["format"] == "png" and image["frame_id"] == "cam_high"
        fields = json.loads(next(s for s in summary.schemas.values() if s.name == "edgewam.Tick").data)["properties"]
        assert fields["command"] == {"type": "array", "items": {"type": "number"}} and fields["tick"] == {"type": "integer"}


def test_what_came_and_went_between_two_polls_is_counted_by_its_number(bridge, tmp_path):
    path = tmp_path / "run.mcap"
    recorder = bridge.recorder(path)
    play(bridge, recorder, 0, 2)
    for number in (2, 3, 4):
        bridge.frame(number)
    for number in (2, 3):
        bridge.chunk(number)
    bridge.context(5, 40)
    for _ in range(LOG_ROWS + 9):  # the ring keeps one row less than it holds
        bridge.tick()
    recorder.poll()
    done = recorder.close()
    lost = {name: stream["lost"] for name, stream in done["streams"].items()}
    assert lost == {"frame": 2, "chunk": 1, "context": 4, "tick": 10, "state": 0} and done["lost"] == 17
    found, recording = stored(path)
    assert [int(row["number"]) for row in found["tick"]] == [0, 1, *range(12, LOG_ROWS + 11)]
    assert recording.status["streams"] == done["streams"]


def test_an_existing_recording_or_a_part_of_one_is_never_touched(bridge, tmp_path):
    path = tmp_path / "run.mcap"
    path.write_bytes(b"precious")
    with pytest.raises(EdgewamError, match=r"run\.mcap' exists"):
        bridge.recorder(path)
    assert path.read_bytes() == b"precious"
    path.rename(tmp_path / "run-2.mcap")
    with pytest.raises(EdgewamError, match=r"run-2\.mcap' exists"):
        bridge.recorder(path)
    with pytest.raises(EdgewamError, match="does not exist"):
        bridge.recorder(tmp_path / "nowhere" / "run.mcap")
    assert [p.name for p in tmp_path.iterdir()] == ["run-2.mcap"]


class SmallDisk:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, path, room):
        self._file, self._room = open_new(path), room
        self.raw = self._file.raw

    def write(self, data):
        if len(data) > self._room:
            self._file.write(data[: self._room])
            self._file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(data)
        return self._file.write(data)

    def flush(self):
        self._file.flush()

    def tell(self):
        return self._file.tell()

    def close(self):
        self._file.close()


def test_a_full_disk_stops_the_recording_and_every_later_item_is_counted(bridge, tmp_path, monkeypatch):
    monkeypatch.setattr(flight_recorder, "FLUSH_NS", 0)  # every poll
    path = tmp_path / "run.mcap"
    recorder = bridge.recorder(path, opener=lambda p: SmallDisk(p, 60_000))
    play(bridge, recorder, 0, 60)
    assert recorder.fault is not None and recorder.fault.endswith("No space left on device")
    done = recorder.close()
    found, recording = stored(path)
    assert recording.torn == [path]
    for name, stream in done["streams"].items():
        assert stream["kept"] == len(found[name]) > 0 and stream["kept"] + stream["lost"] == len(bridge.sent[name]), name
    assert done["fault"] == recorder.fault and done["lost"] > 40


def test_a_disk_that_is_full_from_the_start_is_an_error_before_anything_moves(bridge, tmp_path):
    with pytest.raises(EdgewamError, match="No space left on device"):
        bridge.recorder(tmp_path / "run.mcap", opener=lambda p: Path("/dev/full").open("wb"))  # noqa: SIM115


def test_a_long_recording_goes_on_in_a_new_file_without_a_gap(bridge, tmp_path, monkeypatch):
    monkeypatch.setattr(flight_recorder, "PART_NS", 0)
    path = tmp_path / "run.mcap"
    recorder = bridge.recorder(path)
    play(bridge, recorder, 0, 5)
    done = recorder.close()
    found, recording = stored(path)
    with pytest.raises(ArtifactError, match="is part 2 of a recording"):
        Recording(tmp_path / "run-2.mcap")
    assert len(recording.parts) == done["parts"] == 6 and recording.torn == [] and done["lost"] == 0
    assert [int(row["number"]) for row in found["tick"]] == list(range(5)) and len(found["frame"]) == 3
    assert done["bytes"] == sum(part.stat().st_size for part in recording.parts)


def test_a_successor_goes_on_from_the_newest_counts_that_reached_a_file(bridge, tmp_path, monkeypatch):
    """The second process died before it had flushed anything; the third knows of the first."""
    path = tmp_path / "run.mcap"
    monkeypatch.setattr(flight_recorder, "FLUSH_NS", 0)
    first = bridge.recorder(path)
    play(bridge, first, 0, 10)
    monkeypatch.undo()
    second = bridge.recorder(path, generation=1)
    play(bridge, second, 10, 4)
    for dead in (first, second):
        dead._part.abandon()
    third = bridge.recorder(path, generation=2)
    play(bridge, third, 14, 4)
    done = third.close()
    found, recording = stored(path)
    assert [part.name for part in recording.torn] == ["run.mcap", "run-2.mcap"] and done["parts"] == 3
    assert [int(row["number"]) for row in found["tick"]] == list(range(18)), "the ring still held what had died"
    assert done["streams"]["frame"] == {"kept": 7, "lost": 2, "last": 9}


def test_what_a_recorder_took_with_it_that_died_before_its_first_flush_is_lost(bridge, tmp_path):
    first = bridge.recorder(tmp_path / "run.mcap")
    play(bridge, first, 0, 10)
    first._part.abandon()
    bridge.frame(6)
    second = bridge.recorder(tmp_path / "run.mcap", generation=1)
    second.poll()
    streams = second.close()["streams"]
    assert streams["frame"] == {"kept": 1, "lost": 5, "last": 6}
    assert streams["tick"] == {"kept": 10, "lost": 0, "last": 9}, "the ring still held them"


def test_a_joint_without_a_limit_can_be_recorded(bridge, tmp_path):
    bridge.recorder(tmp_path / "run.mcap", upper=[float("inf")] * 3).close()
    assert Recording(tmp_path / "run.mcap").run["config"]["upper"] == [float("inf")] * 3


def test_any_torn_tail_is_read_up_to_the_last_whole_piece(bridge, tmp_path, monkeypatch):
    monkeypatch.setattr(flight_recorder, "FLUSH_NS", 0)
    path, cut = tmp_path / "run.mcap", tmp_path / "cut.mcap"
    recorder = bridge.recorder(path)
    play(bridge, recorder, 0, 12)
    recorder.close()
    whole = path.read_bytes()
    found, _ = stored(path)
    before = 0
    for end in range(4_000, len(whole), 1_777):
        cut.write_bytes(whole[:end])
        part, recording = stored(cut)
        ticks = [int(row["number"]) for row in part.get("tick", [])]
        assert recording.torn == [cut] and ticks == list(range(len(ticks))) and len(ticks) >= before
        for got, full in zip(part.get("frame", []), found["frame"], strict=False):
            assert all((got.images()[name] == full.images()[name]).all() for name in CAMERAS)
        if ticks:
            assert last_status(cut)["streams"]["tick"]["kept"] == len(ticks)
        before = len(ticks)
    assert before == 12
    cut.write_bytes(whole[: len(whole) // 2] + bytes(4_096))  # what a power cut leaves
    assert stored(cut)[1].torn == [cut]
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    cut.write_bytes(flipped)
    part, recording = stored(cut)
    assert recording.torn == [cut] and 0 < len(part["tick"]) < 12


@pytest.mark.parametrize("content", [b"", b"not an MCAP file at all", b"\x89MCAP0\r\n"])
def test_a_file_that_is_no_recording_is_refused(content, tmp_path):
    path = tmp_path / "x.mcap"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"no MCAP file|no recording of edgewam"):
        Recording(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        Recording(tmp_path / "y.mcap")


def run_process(bridge, path, generation):
    return Child(bridge.config(path, generation), bridge.wires.fds.values(), {})


def test_a_killed_recorder_costs_a_second_and_its_successor_counts_the_gap(bridge, tmp_path):
    """The real process, killed with SIGKILL in the middle: both parts together account for every item."""
    path = tmp_path / "run.mcap"

    def status():
        newest = bridge.wires["status_recorder"].read()
        return newest[1] if newest else None

    step = 0

    def publish(seconds):
        nonlocal step
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            bridge.state(step)
            bridge.tick()
            if step % 2 == 0:
                bridge.frame(step // 2 + 1, step)
                bridge.chunk(step // 2 + 1)
            step += 1
            time.sleep(0.02)

    first = run_process(bridge, path, 0)
    wait_for(lambda: status() is not None or first.exit_code is not None)
    assert first.exit_code is None, first.failure()
    publish(1.6)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(10)
    killed_at = step
    publish(0.3)
    old = int(status()["heartbeat_ns"])
    second = run_process(bridge, path, 1)
    wait_for(lambda: int(status()["heartbeat_ns"]) > old or second.exit_code is not None)
    publish(0.4)
    control = bridge.wires["control"].blank()
    control["quit"] = 1
    bridge.wires["control"].write(control)
    publish(0.3)  # io brakes for a while
    assert second.wait(20), "it leaves when io is silent"
    done = second.results()
    first.close()
    second.close()

    assert [p.name for p in sorted(tmp_path.iterdir())] == ["run-2.mcap", "run.mcap"] and done["parts"] == 2
    found, recording = stored(path)
    assert recording.torn == [path] and done["fault"] is None
    in_first = last_status(path)["streams"]["tick"]["last"] + 1
    assert killed_at - in_first <= 100, "a second at 50 Hz, with room for a slow machine"
    # the ring still held the rows that died with the first process
    assert [int(row["number"]) for row in found["tick"]] == list(range(step)) and done["streams"]["tick"]["lost"] == 0
    for name in ("frame", "chunk"):
        stream = done["streams"][name]
        numbers = [int(item.header["number"] if name == "frame" else item["id"]) for item in found[name]]
        assert len(numbers) == len(set(numbers)) == stream["kept"] > 5
        assert stream["last"] == numbers[-1] == (step + 1) // 2
        assert stream["lost"] > 0 and stream["kept"] + stream["lost"] == numbers[-1] - numbers[0] + 1, name
    assert found["tick"][-1]["mode"] == Mode.RUN


def test_the_recorder_imports_neither_torch_nor_a_robot(tmp_path):
    code = (
        "import sys, edgewam.robot_bridge.processes.recorder_process, mcap.writer, zstandard\n"
        "assert not {'torch', 'mujoco', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (128, 160, 3)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "black", "view"])
def test_pictures_are_lossless_whatever_they_show(shape, kind):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2 * shape[0], 2 * shape[1], 3), dtype=np.uint8)
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None].repeat(3, 2).astype(np.uint8)
    image = {"noise": noise[::2, ::2].copy(), "smooth": smooth, "black": np.zeros(shape, np.uint8), "view": noise[::2, ::-2]}[
        kind
    ]
    with Image.open(io.BytesIO(encode_png(image))) as picture:
        picture.verify()  # the checksums
    with Image.open(io.BytesIO(encode_png(image))) as picture:
        assert picture.mode == "RGB" and (np.asarray(picture) == image).all()


def test_a_gap_in_the_numbers_is_a_loss_and_a_new_generation_is_none():
    second = 1 << 32
    assert missing(-1, 40) == 0 and missing(5, 6) == 0 and missing(5, 9) == 3 and missing(7, 2) == 0
    assert missing(40, second + 1) == 0 and missing(40, second + 4) == 3 and missing(second + 4, second + 6) == 1
    tally = Tally()
    for number, is_kept in ((1, True), (2, True), (5, True), (6, False)):
        tally.see(number, is_kept)
    assert (tally.kept, tally.lost, tally.last) == (3, 3, 6)
    tally.fail()
    assert (tally.kept, tally.lost) == (0, 6)
    assert Tally.continued({"kept": 2, "lost": 1, "last": 9}).to_json() == {"kept": 2, "lost": 1, "last": 9}

"""Takes everything that a run publishes and writes it down, counting what it could not take or could not write.

It only reads the run's records, so it makes nobody wait.  When the disk is full, recording stops for good; the counting goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from edgewam.core.artifacts import hardware, read_manifest, versions
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.recorder.messages import (
    FORMAT,
    IMAGE_TOPIC,
    STATUS_TOPIC,
    encode,
    encode_context,
    encode_image,
    message_layouts,
)
from edgewam.robot_bridge.recorder.part import Part, open_new, part_path
from edgewam.robot_bridge.recorder.reader import check_unused, last_status
from edgewam.robot_bridge.recorder.tally import Tally
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.records.wires import Wires

FLUSH_NS = 4 * NS // 5  # a kill costs less than a second
FLUSH_BYTES = 16 << 20
PART_NS = 300 * NS  # a file's index lies in memory until it is closed, about 1 kB a second: a new file keeps that small
# Records of which only the newest value exists.  Read in this order and written in the other one: what a chunk was computed
# from was published before it, so it also stands before it in the file.
NEWEST = ("chunk", "context", "frame", "state")
_NUMBER = {"state": "tick", "frame": "number", "chunk": "id", "context": "number"}


class FlightRecorder:
    """Call `poll` about 200 times a second, and `close` in the end.

    config: a child's configuration; `record` is the path of the first part, `generation` above 0 goes on in a further one.

    Raises:
        EdgewamError: the file exists, or cannot be made.
    """

    def __init__(self, config: Mapping[str, Any], wires: Wires, opener: Callable[[Path], IO[bytes]] = open_new) -> None:
        self._config, self._wires, self._opener = config, wires, opener
        self._path = Path(config["record"])
        self._cameras = list(config["wires"]["camera_shapes"])
        self._layouts = message_layouts(int(config["wires"]["num_joints"]), config["wires"]["camera_shapes"])
        self._versions = dict.fromkeys(NEWEST, 0)
        self.tallies = {name: Tally() for name in self._layouts}
        self.fault: str | None = None
        self._number = self._bytes = 0
        self._part: Part | None = None
        if is_restart := int(config["generation"]) > 0:
            self._continue()
        else:
            check_unused(self._path)
        self._head = head(config)
        self._begin_part()
        if self.fault and not is_restart:
            raise EdgewamError(f"Cannot record: {self.fault}. Give another path.")

    @property
    def lost(self) -> int:
        """Items that are in no file.  Not of the states: a driver that catches up skips some, and ticks hold what io saw."""
        return sum(tally.lost for name, tally in self.tallies.items() if name != "state")

    def _continue(self) -> None:
        """After a predecessor's death: its counts, up to what reached a file (one that died at once left none in its own)."""
        while part_path(self._path, self._number + 1).exists():
            self._number += 1
        parts = (part_path(self._path, number) for number in range(self._number, 0, -1))
        newest_first = (status["streams"] for part in parts if (status := last_status(part)))
        streams: dict[str, Any] = next(newest_first, {})
        self.tallies.update({name: Tally.continued(data) for name, data in streams.items() if name in self.tallies})
        for name in NEWEST:
            # where no counts were left, all that came before is lost: numbers begin at 1
            self.tallies[name].last = max(0, self.tallies[name].last)
            newest = self._wires[name].read()  # what it has recorded already is not recorded again
            if newest is not None and int(newest[1][_NUMBER[name]]) == self.tallies[name].last:
                self._versions[name] = newest[0]

    def _begin_part(self) -> None:
        self._number += 1
        path = part_path(self._path, self._number)
        self._part_began_ns = self._flushed_ns = now_ns()
        try:
            self._part = Part(path, {**self._head, "part": self._number}, self._layouts, self._cameras, self._opener)
        except OSError as error:
            self._fail(path, error)

    def _fail(self, path: Path, error: OSError) -> None:
        self.fault = f"{path}: {error.strerror or error}"
        if self._part is not None:
            self._part.abandon()
        self._part = None
        for tally in self.tallies.values():
            tally.fail()

    def poll(self) -> None:
        """Take what is new; write and change files when it is time."""
        self._collect()
        if self._part is None:
            return
        time_ns = now_ns()
        if time_ns - self._flushed_ns >= FLUSH_NS or self._part.pending_bytes >= FLUSH_BYTES:
            self._flush()
        if self._part is not None and time_ns - self._part_began_ns >= PART_NS:
            self._end_part()
            if self.fault is None:
                self._begin_part()

    def _collect(self) -> None:
        values: list[tuple[str, Value]] = []
        for name in NEWEST:
            newer = self._wires[name].read(self._versions[name])
            if newer is not None:
                self._versions[name] = newer[0]
                values.append((name, newer[1]))
        for name, value in reversed(values):
            self._take(name, value)
        self._drain()

    def _take(self, name: str, value: Value) -> None:
        number = int(value[_NUMBER[name]])
        if self._part is not None:
            layout, topic = self._layouts[name], f"/{name}"
            if name == "frame":
                for index, camera in enumerate(self._cameras):
                    taken_ns = int(value["t_camera_ns"][index])
                    self._part.add(IMAGE_TOPIC + camera, taken_ns, encode_image(value[camera], camera, taken_ns), number)
                self._part.add(topic, int(value["t_frame_ns"]), encode(value, layout), number)
            elif name == "context":
                self._part.add(topic, int(value["t_capture_ns"]), encode_context(value, layout), number)
            else:
                stamp = "t_ns" if name == "state" else "t_sent_ns"
                self._part.add(topic, int(value[stamp]), encode(value, layout), number)
        self.tallies[name].see(number, self._part is not None)

    def _drain(self) -> None:
        """Log rows: io publishes how many it has written."""
        status, tally = self._wires["status_io"].read(), self.tallies["tick"]
        end = int(status[1]["count"]) if status else 0
        first = tally.last + 1
        if end <= first:
            return
        rows, lost = self._wires.log.read(first, end)
        tally.lost += lost
        tally.last += lost
        for row in rows:
            number = tally.last + 1
            if self._part is not None:
                self._part.add("/tick", int(row["sent_ns"]), encode(row, self._layouts["tick"], number=number), number)
            tally.see(number, self._part is not None)

    def _flush(self) -> None:
        assert self._part is not None
        try:
            self._part.add(STATUS_TOPIC, now_ns(), self._status_message())
            self._part.flush()
        except OSError as error:
            self._fail(self._part.path, error)
            return
        self._flushed_ns = now_ns()
        for tally in self.tallies.values():
            tally.save()

    def _end_part(self) -> None:
        self._flush()
        part = self._part
        if part is None:
            return
        try:
            part.finish(self._counts())
            self._bytes += part.path.stat().st_size
            self._part = None
        except OSError as error:
            self._fail(part.path, error)

    def _counts(self) -> dict[str, Any]:
        streams = {name: tally.to_json() for name, tally in self.tallies.items()}
        return {"streams": streams, "lost": self.lost, "fault": self.fault, "torn_reads": self._torn_reads}

    @property
    def _torn_reads(self) -> int:
        return sum(self._wires[name].torn for name in NEWEST)

    def _status_message(self) -> bytes:
        return json.dumps(self._counts()).encode()

    def close(self) -> dict[str, Any]:
        """End the file; returns the counts of all parts, what went wrong if anything did, and the bytes this process wrote."""
        self._collect()
        if self._part is not None:
            self._end_part()
        return {"file": str(self._path), "parts": self._number, "bytes": self._bytes, **self._counts()}


def head(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader must know of the run, as plain data; `clock` ties the monotonic clock to the calendar, for people only."""
    wires = config["wires"]
    return {
        "format": FORMAT,
        "num_joints": wires["num_joints"],
        "camera_shapes": wires["camera_shapes"],
        "bundle": _digest(config["policy_args"]),
        "config": {name: value for name, value in config.items() if name not in ("wires", "parent_pid")},
        "versions": versions(),
        "hardware": hardware(),
        "clock": {"monotonic_ns": now_ns(), "wall_ns": time.time_ns()},
    }


def _digest(policy_args: Mapping[str, Any]) -> str | None:
    """Of the bundle that the policy was opened from; None for policies that come from no bundle."""
    path = policy_args.get("bundle")
    if not isinstance(path, str) or not os.path.isdir(path):
        return None
    try:
        return read_manifest(path, kind="bundle", verify=False).digest
    except ArtifactError:
        return None  # the engine says what is wrong with it

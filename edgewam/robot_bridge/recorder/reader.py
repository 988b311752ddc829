"""Reads the parts of a recording in order.  A part whose writer was killed ends torn: it is read up to the last whole piece."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgewam.core.errors import ArtifactError, EdgewamError, require
from edgewam.robot_bridge.recorder.claims import MAX_CHUNK, check_run, inside
from edgewam.robot_bridge.recorder.messages import FORMAT, IMAGE_TOPIC, STATUS_TOPIC, Frame, decode, message_layouts
from edgewam.robot_bridge.recorder.part import END, HEAD, STATUS_CHANNEL, part_path
from edgewam.robot_bridge.records.shm_record import Value

_MALFORMED = (ValueError, TypeError, KeyError, ArithmeticError, RecursionError)  # what a message that is none of ours raises
_MAGIC_BYTES = 8
_RECORD_HEAD = struct.Struct("<BQ")  # opcode and length of an MCAP record
_CHUNK = 6  # opcode


class Recording:
    """A recording of one run.

    run: what the recorder knew at the start (see `recorder.head`).  parts: its files, in order.  torn: parts without a proper
    end, and status: the recorder's last counts; both are known when everything has been read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ArtifactError(f"'{path}' does not exist or is no file. Give the .mcap file that `edgewam run --record` wrote.")
        self.parts = [path]
        while (following := part_path(path, len(self.parts) + 1)).is_file():
            self.parts.append(following)
        self.torn: list[Path] = []
        self.status: dict[str, Any] = {}
        self.run = self._head(path)
        if self.run.get("format") != FORMAT:
            raise ArtifactError(
                f"'{path}' is no recording of edgewam, or of another version (format {self.run.get('format')}, not {FORMAT})."
            )
        if self.run.get("part") != 1:
            raise ArtifactError(
                f"'{path}' is part {self.run.get('part')} of a recording. Give its first part, the others are found."
            )
        check_run(path, self.run)
        self.camera_shapes: dict[str, list[int]] = self.run["camera_shapes"]
        self.num_joints = int(self.run["num_joints"])
        self.layouts = message_layouts(self.num_joints, self.camera_shapes)

    def _head(self, path: Path) -> dict[str, Any]:
        for record in _records(path, []):
            if getattr(record, "name", None) == HEAD:
                return self._plain(path, record.metadata)
        raise ArtifactError(f"'{path}' is no recording of edgewam, or ends before its description. Give another file.")

    def entries(self) -> Iterator[tuple[str, Any]]:
        """(stream, item) as they were written: "tick", "state", "chunk", "context" with a record [], "frame" with a `Frame`."""
        self.torn.clear()
        for path in self.parts:
            yield from self._part(path)

    def _part(self, path: Path) -> Iterator[tuple[str, Any]]:
        topics: dict[int, str] = {}
        images: dict[str, bytes] = {}
        for record in _records(path, self.torn):
            kind = type(record).__name__
            if kind == "Channel":
                topics[record.id] = record.topic
            elif kind == "Metadata" and record.name == END:
                self.status = self._plain(path, record.metadata)
            elif kind == "Message":
                topic = topics.get(record.channel_id, "")
                if topic == STATUS_TOPIC:
                    self.status = self._plain(path, {"": record.data})[""]
                elif topic.startswith(IMAGE_TOPIC):
                    images[topic.removeprefix(IMAGE_TOPIC)] = record.data
                elif (name := topic.removeprefix("/")) == "frame":
                    yield name, Frame(self._record(path, name, record.data), images, self.camera_shapes)
                    images = {}
                elif name in self.layouts:
                    yield name, self._record(path, name, record.data)

    def _record(self, path: Path, name: str, data: bytes) -> Value:
        try:
            return decode(data, self.layouts[name])
        except _MALFORMED as error:
            raise ArtifactError(f"'{path}' holds a {name} that is none ({error}). It is damaged or not edgewam's.") from error

    def _plain(self, path: Path, texts: Mapping[str, str | bytes]) -> dict[str, Any]:
        try:
            return {name: json.loads(text) for name, text in texts.items()}
        except _MALFORMED as error:
            raise ArtifactError(f"'{path}' is damaged or not edgewam's: what should be JSON is none ({error}).") from error

    def ticks(self) -> Value:
        """All log rows [n] with their `number`, in memory."""
        rows = [value for name, value in self.entries() if name == "tick"]
        return np.stack(rows) if rows else np.zeros(0, self.layouts["tick"])


def _records(path: Path, torn: list[Path]) -> Iterator[Any]:
    """Every record of a file, also those inside of chunks; a damaged or missing tail ends it and is noted in `torn`."""
    stream_reader, exceptions = (require(f"mcap.{name}", extra="telemetry") for name in ("stream_reader", "exceptions"))
    with open(path, "rb") as file:
        reader = stream_reader.StreamReader(file, emit_chunks=True, record_size_limit=MAX_CHUNK)
        try:
            for record in reader.records:
                if type(record).__name__ == "Chunk":
                    yield from inside(record)
                else:
                    yield record
        except exceptions.InvalidMagic as error:
            raise ArtifactError(f"'{path}' is no MCAP file. Give the .mcap file that `edgewam run --record` wrote.") from error
        except _damage():
            torn.append(path)


def _damage() -> tuple[type[Exception], ...]:
    """What is raised for bytes that are no record."""
    exceptions, zstandard = require("mcap.exceptions", extra="telemetry"), require("zstandard", extra="telemetry")
    # the last two: a length that no file has
    return exceptions.McapError, zstandard.ZstdError, struct.error, ValueError, OverflowError, MemoryError


def last_status(path: Path) -> dict[str, Any]:
    """The newest counts in a part, found without reading it all; empty when it died before it had any."""
    records, data_stream = (require(f"mcap.{name}", extra="telemetry") for name in ("records", "data_stream"))
    with open(path, "rb") as file:
        for offset in reversed(_chunk_places(file)):
            file.seek(offset)
            try:
                found = inside(records.Chunk.read(data_stream.ReadDataStream(file)))
            except _damage():  # the one before it may be whole
                continue
            counts = [record.data for record in found if getattr(record, "channel_id", 0) == STATUS_CHANNEL]
            if counts:
                return dict(json.loads(counts[-1]))
    return {}


def _chunk_places(file: IO[bytes]) -> list[int]:
    """Offset of the content of every whole chunk."""
    size, offset, found = os.fstat(file.fileno()).st_size, _MAGIC_BYTES, []
    while offset + _RECORD_HEAD.size <= size:
        file.seek(offset)
        code, length = _RECORD_HEAD.unpack(file.read(_RECORD_HEAD.size))
        offset += _RECORD_HEAD.size
        if offset + length > size:
            break
        if code == _CHUNK:
            found.append(offset)
        offset += length
    return found


def check_unused(path: Path) -> None:
    """Refuse a name that a recording, or a later part of one, already has.

    Raises:
        EdgewamError: it does, or the folder does not exist.
    """
    if not path.parent.is_dir():
        raise EdgewamError(f"Cannot record: the folder '{path.parent}' does not exist. Make it first.")
    for taken in (path, part_path(path, 2)):
        if taken.exists():
            raise EdgewamError(f"Cannot record: '{taken}' exists, and recordings are never overwritten. Give another name.")

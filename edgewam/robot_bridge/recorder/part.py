"""One MCAP file of a recording, written so that whatever kills the writer leaves it readable up to the last flush.

A flush closes the chunk in progress and hands everything to the kernel; power loss may cost more.  No existing file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from edgewam.core.errors import require
from edgewam.robot_bridge.recorder.messages import IMAGE_TOPIC, STATUS_TOPIC, image_schema, json_schema
from edgewam.robot_bridge.records.shm_record import Layout

HEAD, END = "edgewam.run", "edgewam.end"  # names of the metadata records
STATUS_CHANNEL = 1  # the same in every file, so that the counts are found without reading from the start
_CHUNK_BYTES = 64 << 20  # chunks end where we flush, so that a frame and its images never fall into two of them
_MAX_TIME = (1 << 64) - 1


def open_new(path: Path) -> IO[bytes]:
    """A new file; FileExistsError when there is one of that name."""
    return open(path, "xb")


class Part:
    """An open file.  Every method may raise OSError: then the file is at its end, and only `abandon` may follow."""

    def __init__(
        self,
        path: Path,
        head: Mapping[str, Any],
        message_layouts: Mapping[str, Layout],
        cameras: Iterable[str],
        opener: Callable[[Path], IO[bytes]] = open_new,
    ) -> None:
        writer = require("mcap.writer", extra="telemetry")
        self.path = path
        self._file = opener(path)
        # images are base64 in JSON: compression takes that third away again
        self._writer = writer.Writer(self._file, chunk_size=_CHUNK_BYTES, compression=writer.CompressionType.ZSTD)
        self._pending = 0
        self._channels: dict[str, int] = {}
        try:
            self._start(head, message_layouts, cameras)
        except OSError:
            self.abandon()
            path.unlink(missing_ok=True)  # it was made here and holds nothing
            raise

    def _start(self, head: Mapping[str, Any], message_layouts: Mapping[str, Layout], cameras: Iterable[str]) -> None:
        self._writer.start(profile="", library="edgewam")
        self._writer.add_metadata(HEAD, _strings(head))
        self._register(STATUS_TOPIC, "edgewam.Recorder", json.dumps({"title": "edgewam.Recorder", "type": "object"}).encode())
        assert self._channels[STATUS_TOPIC] == STATUS_CHANNEL
        for name, layout in message_layouts.items():
            title = f"edgewam.{name.capitalize()}"
            self._register(f"/{name}", title, json_schema(title, layout))
        image = self._writer.register_schema("foxglove.CompressedImage", "jsonschema", image_schema())
        for camera in cameras:
            topic = IMAGE_TOPIC + camera
            self._channels[topic] = self._writer.register_channel(topic, "json", image)
        self.flush()

    def _register(self, topic: str, title: str, schema: bytes) -> None:
        self._channels[topic] = self._writer.register_channel(
            topic, "json", self._writer.register_schema(title, "jsonschema", schema)
        )

    @property
    def pending_bytes(self) -> int:
        """Payload that was added since the last flush."""
        return self._pending

    def add(self, topic: str, t_ns: int, data: bytes, number: int = 0) -> None:
        """One message; `number` is kept modulo 2^32."""
        time_ns = min(max(t_ns, 0), _MAX_TIME)
        self._writer.add_message(self._channels[topic], time_ns, data, time_ns, number & 0xFFFFFFFF)
        self._pending += len(data)

    def flush(self) -> None:
        """Everything added so far is the kernel's."""
        self._writer.flush()
        self._file.flush()
        self._pending = 0

    def finish(self, end: Mapping[str, Any]) -> None:
        """Add the closing counts and the index, and close."""
        self._writer.flush()
        self._writer.add_metadata(END, _strings(end))
        self._writer.finish()
        self._file.close()

    def abandon(self) -> None:
        """Close what cannot be written any more, without another try to write its buffer."""
        raw = getattr(self._file, "raw", self._file)
        raw.close()


def _strings(data: Mapping[str, Any]) -> dict[str, str]:
    """MCAP metadata holds strings only: everything is JSON text, as Python writes it (a joint's limit may be Infinity)."""
    return {name: json.dumps(value) for name, value in data.items()}


def part_path(path: Path, number: int) -> Path:
    """name.mcap, name-2.mcap, name-3.mcap, ..."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")

"""The bridge's records as messages of a recording and back: JSON with a schema, images as lossless PNG.

Numbers come back bit for bit: JSON holds the shortest text of the 64-bit number, and a 32-bit one fits into it.  What JSON has
no number for is a string: "NaN", "Infinity", "-Infinity".  Images are `foxglove.CompressedImage`, which MCAP viewers show.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.recorder.claims import picture
from edgewam.robot_bridge.recorder.png import encode_png
from edgewam.robot_bridge.records.shm_record import Layout, Value
from edgewam.robot_bridge.records.wires import layouts, log_layout

FORMAT = 1  # of the messages; a reader refuses others
STREAMS = ("tick", "state", "frame", "chunk", "context")  # topic /<name>
IMAGE_TOPIC = "/camera/"
STATUS_TOPIC = "/recorder"
_IMAGE_SCHEMA = {
    "title": "foxglove.CompressedImage",
    "type": "object",
    "properties": {
        "timestamp": {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}},
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
}


def message_layouts(num_joints: int, camera_shapes: Mapping[str, Iterable[int]]) -> dict[str, Layout]:
    """Stream -> dtype of its messages: the records without their large parts, a log row with its `number`."""
    records = layouts(num_joints, camera_shapes)
    left_out = {"data", *camera_shapes}
    found = {name: _without(records[name], left_out) for name in STREAMS if name != "tick"}
    tick = log_layout(num_joints)
    found["tick"] = np.dtype([("number", "<i8"), *_fields(tick)])
    return found


def _without(layout: Layout, left_out: set[str]) -> Layout:
    return np.dtype([(name, kind) for name, kind in _fields(layout) if name not in left_out])


def _fields(layout: Layout) -> list[tuple[str, Any]]:
    return [(name, layout[name]) for name in layout.names or ()]


def json_schema(title: str, layout: Layout) -> bytes:
    """The JSON schema of a message."""
    properties = {name: _schema_of(kind) for name, kind in _fields(layout)}
    if title == "edgewam.Context":
        properties["crc32"] = {"type": "integer"}
    return json.dumps({"title": title, "type": "object", "properties": properties}).encode()


def image_schema() -> bytes:
    """The JSON schema of an image, as Foxglove publishes it (without its prose)."""
    return json.dumps(_IMAGE_SCHEMA).encode()


def _schema_of(kind: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": {"f": "number", "S": "string"}.get(kind.base.kind, "integer")}
    for _ in kind.shape:
        schema = {"type": "array", "items": schema}
    return schema


def encode(value: Value, layout: Layout, **extra: int) -> bytes:
    """A record [] as a message; of a chunk only the rows it has, of a frame everything but the images."""
    plain: dict[str, Any] = dict(extra)
    for name in layout.names or ():
        if name not in extra:
            item = value[name].tolist()
            plain[name] = item.decode("ascii", "replace") if isinstance(item, bytes) else item
    if "actions" in plain:
        plain["actions"] = plain["actions"][: max(0, plain["rows"])]
    try:
        return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(spelled(plain), allow_nan=False, separators=(",", ":")).encode()


def encode_context(value: Value, layout: Layout) -> bytes:
    """A planner's context without its bytes, of which the CRC32 is kept."""
    return encode(value, layout, crc32=zlib.crc32(value["data"][: max(0, int(value["length"]))].tobytes()))


def spelled(item: Any) -> Any:
    """Plain data in which the numbers that JSON does not know are text."""
    if isinstance(item, dict):
        return {name: spelled(part) for name, part in item.items()}
    if isinstance(item, list):
        return [spelled(part) for part in item]
    if isinstance(item, float) and not np.isfinite(item):
        return "NaN" if np.isnan(item) else "Infinity" if item > 0 else "-Infinity"
    return item


def decode(data: bytes, layout: Layout) -> Value:
    """The record [] of a message; fields that it lacks are zero.  ValueError and the like when it is none."""
    plain = json.loads(data)
    if not isinstance(plain, dict):
        raise ValueError("no JSON object")
    value: Value = np.zeros((), layout)
    for name, kind in _fields(layout):
        if name not in plain:
            continue
        item = plain[name]
        if name == "actions":
            rows = np.array(_numbers(item), np.float32).reshape(-1, kind.shape[1])
            value[name][: len(rows)] = rows
        elif kind.base.kind == "f":
            value[name] = _numbers(item)
        else:
            value[name] = item.encode("ascii") if isinstance(item, str) else item
    return value


def _numbers(item: Any) -> Any:
    return [_numbers(part) for part in item] if isinstance(item, list) else float(item)


def encode_image(image: npt.NDArray[np.uint8], camera: str, t_ns: int) -> bytes:
    """An image uint8 [H, W, 3] that a camera took at `t_ns`."""
    stamp = {"sec": t_ns // 1_000_000_000, "nsec": t_ns % 1_000_000_000}
    start = json.dumps({"timestamp": stamp, "frame_id": camera, "format": "png"}).encode()
    # base64 needs no escapes, and looking for them takes longer than making it
    return start[:-1] + b', "data": "' + base64.b64encode(encode_png(image)) + b'"}'


@dataclass(frozen=True)
class Frame:
    """Images that were published together: `header` without the images, which are decoded when asked for."""

    header: Value
    messages: Mapping[str, bytes]
    shapes: Mapping[str, Sequence[int]]

    @property
    def num_bytes(self) -> int:
        """Of its messages."""
        return sum(map(len, self.messages.values()))

    def images(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Camera name -> uint8 [H, W, 3] RGB, the very pixels that the policy saw; ArtifactError for other pictures."""
        return {name: picture(data, self.shapes[name]) for name, data in self.messages.items() if name in self.shapes}

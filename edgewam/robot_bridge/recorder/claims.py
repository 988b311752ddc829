"""What a recording may claim of itself before it is believed: somebody else's file must not fill the memory of who looks at it.

A few kilobytes of zstd or PNG unpack to gigabytes, and a description may name any number of joints; a recorder of ours does
neither.  What the records mean is `reader`'s business.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgewam.core.errors import ArtifactError, require
from edgewam.robot_bridge.serving.checks import MAX_SIDE

MAX_CHUNK = 1 << 28  # bytes, unpacked; the recorder closes a chunk at a sixteenth of that
MAX_JOINTS, MAX_CAMERAS = 64, 16  # the log has 64 bits for clamped joints
MAX_HZ = 10_000.0
LIMITS = ("lower", "upper", "max_velocity", "max_acceleration")
_EXTRA = "telemetry"


def inside(chunk: Any) -> Iterable[Any]:
    """The records in an MCAP chunk; ValueError when it is damaged, or holds more than a recorder writes into one."""
    if chunk.compression not in ("zstd", ""):
        raise ValueError(f"compressed with '{chunk.compression}'")
    # the frame's own word is what the decompressor allocates; -1: it has none, and the chunk's word is the limit
    own = require("zstandard", extra=_EXTRA).frame_content_size(chunk.data) if chunk.compression else 0
    if max(chunk.uncompressed_size, own) > MAX_CHUNK:
        raise ValueError(f"a chunk of {max(chunk.uncompressed_size, own)} bytes")
    records: Iterable[Any] = require("mcap.stream_reader", extra=_EXTRA).breakup_chunk(chunk, validate_crc=True)
    return records


def check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Refuse a description of a run that nothing can be read with.

    Raises:
        ArtifactError: sizes or settings that no run has.
    """
    joints, shapes, config = run.get("num_joints"), run.get("camera_shapes"), run.get("config")
    if not isinstance(config, dict) or not isinstance(shapes, dict):
        raise _unsound(path)
    names, rate = config.get("joint_names"), config.get("control_hz")
    is_sound = (
        _is_count(joints, 1, MAX_JOINTS)
        and len(shapes) <= MAX_CAMERAS
        and all(map(_is_shape, shapes.values()))
        and all(isinstance(config.get(name), str) for name in ("prompt", "robot"))
        and all(isinstance(item, dict) for item in (config.get("policy_args"), run.get("hardware"), run.get("versions")))
        and isinstance(rate, int | float)
        and 0 < rate <= MAX_HZ
        and _is_count(config.get("seed"), 0, 1 << 62)
        and _is_count(config.get("ticks_per_row", 1), 1, MAX_HZ)
        and _is_count(config.get("camera_every", 1), 1, MAX_HZ)
        and (names is None or (isinstance(names, list) and len(names) == joints and all(isinstance(n, str) for n in names)))
    )
    if not is_sound:
        raise _unsound(path)


def check_limits(path: Path, run: Mapping[str, Any], needed: Iterable[str] = LIMITS) -> None:
    """Refuse a description without a number per joint for each of the limits that are needed.

    Raises:
        ArtifactError: names them.
    """
    config, joints = run["config"], run["num_joints"]
    bad = [name for name in needed if name not in config or not _is_limit(config[name], joints, name == "max_acceleration")]
    if bad:
        raise ArtifactError(f"'{path}' does not say {', '.join(bad)} of every joint. Give another recording.")


def _is_limit(value: Any, joints: int, may_be_none: bool) -> bool:
    is_list = isinstance(value, list) and len(value) == joints and all(type(item) in (int, float) for item in value)
    return is_list or (may_be_none and value is None)


def picture_file(message: bytes) -> bytes:
    """The PNG file in a `foxglove.CompressedImage`; ArtifactError when there is none."""
    try:
        return base64.b64decode(json.loads(message)["data"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"An image message holds no picture ({type(error).__name__}). The file is damaged.") from error


def picture(message: bytes, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB of an image message, decoded once its size is found to be `shape`; ArtifactError otherwise."""
    height, width, _ = shape
    try:
        with Image.open(io.BytesIO(picture_file(message)), formats=("PNG",)) as found:
            if found.size != (width, height):
                raise ArtifactError(
                    f"A picture is {found.size[1]}x{found.size[0]}, its camera {height}x{width}: no recording of ours."
                )
            return np.asarray(found.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArtifactError(f"A picture cannot be decoded ({type(error).__name__}). The file is damaged.") from error


def _is_count(value: Any, least: int, most: float) -> bool:
    return type(value) is int and least <= value <= most


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and value[2] == 3 and all(_is_count(side, 1, MAX_SIDE) for side in value)


def _unsound(path: Path) -> ArtifactError:
    return ArtifactError(
        f"'{path}' describes no run that could be (joints, cameras, rates, names). It is damaged or not edgewam's."
    )

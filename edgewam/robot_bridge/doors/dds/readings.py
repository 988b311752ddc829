"""ROS messages as readings of the robot: joints by name, images of exactly the configured shape, or a refusal that says why.

Messages are read by attribute only; nothing here needs DDS.  Their stamps are another machine's clock and are not believed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from edgewam.robot_bridge.serving import checks
from edgewam.robot_bridge.serving.handler import DoorError, Floats

ENCODINGS = ("rgb8", "bgr8")
FORMATS = ("JPEG", "PNG")
MAX_STEP_RATIO = 2  # rows may be padded, to less than twice their length
MAX_TABLES = 64 << 10  # bytes: what a file holds beside its pixels; no camera "compresses" to more than those
Picture = npt.NDArray[np.uint8]


def joints_of(message: Any, joint_names: Sequence[str]) -> Floats:
    """A JointState as float32 [D] in the robot's own order of joints.

    Raises:
        DoorError: `bad_request` when a joint is missing, unknown or named twice, or a position is missing or no finite pose.
    """
    names, positions = message.name, message.position
    if len(names) != len(positions) or len(names) != len(joint_names):
        raise DoorError("bad_request", f"{len(names)} names and {len(positions)} positions; needed {len(joint_names)} of both.")
    if set(names) != set(joint_names):
        missing = sorted(set(joint_names) - set(names))
        raise DoorError("bad_request", f"Joint names differ from the robot's. Missing: {', '.join(missing)}.")
    by_name = dict(zip(names, positions, strict=True))
    return checks.state_of(np.array([by_name[name] for name in joint_names], np.float64), len(joint_names))


def image_of(message: Any, shape: Sequence[int]) -> Picture:
    """An Image as uint8 [H, W, 3] RGB.

    Raises:
        DoorError: `bad_request` when its size, encoding, step or data length is not what the robot's description says.
    """
    height, width, depth = shape
    if message.encoding not in ENCODINGS:
        raise DoorError(
            "bad_request", f"Encoding {checks.shown(message.encoding)} is not supported; use {' or '.join(ENCODINGS)}."
        )
    if (message.height, message.width) != (height, width):
        raise DoorError("bad_request", f"The image is {message.height}x{message.width}; needed {height}x{width}.")
    step, row = message.step, width * depth
    if not row <= step < MAX_STEP_RATIO * row or len(message.data) != height * step:
        raise DoorError("bad_request", f"Step {step} and {len(message.data)} bytes do not make {height} rows of {row} bytes.")
    pixels = np.frombuffer(bytes(message.data), np.uint8).reshape(height, step)[:, :row].reshape(height, width, depth)
    return pixels if message.encoding == "rgb8" else pixels[:, :, ::-1]


def picture_of(message: Any, shape: Sequence[int]) -> Picture:
    """A CompressedImage (JPEG or PNG) as uint8 [H, W, 3] RGB.  Its size is read and compared before it is decoded.

    Raises:
        DoorError: `bad_request` for another format, size or mode, or damaged data; `too_large`.
    """
    height, width, depth = shape
    data = bytes(message.data)
    checks.check_size(len(data), height * width * depth + MAX_TABLES)
    try:
        with Pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.size != (width, height) or picture.mode != "RGB":
                raise DoorError(
                    "bad_request",
                    f"The picture is {picture.size[1]}x{picture.size[0]} {picture.mode}; needed {height}x{width} RGB.",
                )
            return np.asarray(picture, np.uint8)
    except DoorError:
        raise
    except Exception as error:  # a decoder of foreign bytes raises many kinds, and warns of bombs
        raise DoorError("bad_request", f"The picture cannot be decoded as JPEG or PNG ({type(error).__name__}).") from None

"""What a door refuses before it believes a byte: sizes before allocation, a short list of dtypes, exact shapes, finite numbers.

Every refusal is a DoorError that says what is needed.  Nothing here knows a protocol (facts/robot.md section 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.robot_bridge.serving.handler import DoorError, Floats, Look

MAX_FRAME_BYTES = 8 << 20  # three 480x640 images are 2.8 MB
DTYPES = {name: np.dtype(name) for name in ("|u1", "<f4", "<f8", "<i4", "<i8", "|b1")}
MAX_DIMS, MAX_SIDE = 4, 4096
MAX_DEPTH, MAX_ITEMS = 4, 64  # {"images": {"cam_high": array}} has depth 2 and a handful of items
MAX_KEY_CHARACTERS, MAX_PROMPT_CHARACTERS = 64, 1024
MAX_STATE = 1e3  # radians or metres: anything larger is a broken sensor, not a pose
MAX_TICK = 1 << 40  # 700 years at 50 Hz
_SHOWN = 60  # characters of what a client sent that go back in a message


def check_size(num_bytes: int, limit: int = MAX_FRAME_BYTES) -> None:
    """Refuse a frame by its announced length, before it is read.

    Raises:
        DoorError: `too_large`.
    """
    if num_bytes > limit:
        raise DoorError("too_large", f"A frame of {num_bytes} bytes; at most {limit} are accepted.")


def array_of(dtype: Any, shape: Any, data: Any) -> npt.NDArray[Any]:
    """An array that views `data`, once dtype, shape and length were found to belong together.

    Raises:
        DoorError: `bad_request`.
    """
    name = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if not isinstance(name, str) or name not in DTYPES:
        raise DoorError("bad_request", f"Arrays of dtype {shown(name)} are not accepted; use one of {', '.join(DTYPES)}.")
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMS:
        raise DoorError("bad_request", f"An array shape must be a list of at most {MAX_DIMS} sizes.")
    if not all(type(side) is int and 0 <= side <= MAX_SIDE for side in shape):
        raise DoorError("bad_request", f"Array sizes must be integers from 0 to {MAX_SIDE}.")
    kind = DTYPES[name]
    size = math.prod(shape) * kind.itemsize
    if not isinstance(data, bytes | bytearray | memoryview) or len(data) != size:
        length = len(data) if isinstance(data, bytes | bytearray | memoryview) else "no"
        raise DoorError("bad_request", f"An array {name}{list(shape)} needs {size} bytes, got {length}.")
    return np.frombuffer(data, kind).reshape(shape)


def check_tree(value: Any, depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> None:
    """Refuse a decoded message that is too deep, too wide, or has keys that are not short strings.

    Raises:
        DoorError: `bad_request`.
    """
    if isinstance(value, dict | list | tuple):
        if depth == 0:
            raise DoorError("bad_request", f"The message is nested deeper than {MAX_DEPTH} levels.")
        if len(value) > max_items:
            raise DoorError("bad_request", f"More than {max_items} items in one map or list.")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or len(key) > MAX_KEY_CHARACTERS:
                raise DoorError("bad_request", f"Keys must be strings of at most {MAX_KEY_CHARACTERS} characters.")
            check_tree(item, depth - 1, max_items)
    elif isinstance(value, list | tuple):
        for item in value:
            check_tree(item, depth - 1, max_items)


def state_of(value: Any, state_dim: int) -> Floats:
    """A joint state float32 [state_dim] from an array or a list of numbers.

    Raises:
        DoorError: `bad_request`: wrong length or dtype, not finite, or far from any pose.
    """
    if isinstance(value, list | tuple) and len(value) == state_dim and all(type(x) in (int, float) for x in value):
        value = np.array([float(max(-1e300, min(1e300, x))) if x == x else math.nan for x in value])
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fi" or value.shape != (state_dim,):
        got = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DoorError("bad_request", f"The state must be float32[{state_dim}], got {got}.")
    is_good = (value >= -MAX_STATE) & (value <= MAX_STATE)  # neither for NaN
    if not is_good.all():
        bad = np.flatnonzero(~is_good).tolist()
        raise DoorError("bad_request", f"The state must be finite and within +-{MAX_STATE:g}; it is not at joints {bad}.")
    return np.ascontiguousarray(value, np.float32)


def images_of(value: Any, cameras: Mapping[str, Sequence[int]], allow_chw: bool = False) -> dict[str, npt.NDArray[np.uint8]]:
    """Camera name -> uint8 [H, W, 3] of exactly the configured shapes; further names are ignored.

    allow_chw: accept [3, H, W] too and turn it round, for protocols that say so.

    Raises:
        DoorError: `bad_request`, listing the cameras that are needed.
    """
    needed = ", ".join(f"{name} uint8{list(shape)}" for name, shape in cameras.items())
    if not isinstance(value, Mapping):
        raise DoorError("bad_request", f"Images must be a map from camera name to array. Needed: {needed}.")
    images = {}
    for name, shape in cameras.items():
        height, width, depth = shape
        image = value.get(name)
        if image is None:
            raise DoorError("bad_request", f"There is no image of camera '{name}'. Needed: {needed}.")
        is_array = isinstance(image, np.ndarray)
        if is_array and allow_chw and image.shape == (depth, height, width) and image.dtype == np.uint8:
            image = image.transpose(1, 2, 0)
        if not is_array or image.dtype != np.uint8 or image.shape != (height, width, depth):
            got = f"{image.dtype}{list(image.shape)}" if is_array else type(image).__name__
            raise DoorError("bad_request", f"Camera '{name}' must be uint8{list(shape)}, got {got}. Needed: {needed}.")
        images[name] = image
    return images


def prompt_of(value: Any) -> str:
    """An instruction.

    Raises:
        DoorError: `bad_request`: no text, too long, or unprintable.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PROMPT_CHARACTERS or not value.isprintable():
        raise DoorError("bad_request", f"A prompt must be 1 to {MAX_PROMPT_CHARACTERS} printable characters.")
    return value


def tick_of(value: Any) -> int:
    """A control tick of the episode.

    Raises:
        DoorError: `bad_request`: no integer, negative, or absurd.
    """
    if isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind == "i":
        value = value.item()
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not 0 <= value < MAX_TICK:
        raise DoorError("bad_request", f"A tick must be an integer from 0 to {MAX_TICK}, got {shown(value)}.")
    return value


def checked(look: Look, state_dim: int, cameras: Mapping[str, Sequence[int]]) -> Look:
    """The same look with every part checked; a door cannot forget it, because the session calls it.

    Raises:
        DoorError: `bad_request`.
    """
    return Look(
        images_of(look.images, cameras) if look.images else {},
        None if look.state is None else state_of(look.state, state_dim),
        None if look.prompt is None else prompt_of(look.prompt),
        None if look.tick is None else tick_of(look.tick),
    )


def shown(value: Any) -> str:
    """A short printable form of something a client sent."""
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."

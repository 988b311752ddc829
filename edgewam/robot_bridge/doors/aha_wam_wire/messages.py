"""Upstream's requests as looks of ours, and our answers as upstream's replies (facts/aha_wam.md section 5.2).

Upstream's robot client sends one image, "front"; its simulation client may send the three cameras by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgewam.core.records import CAMERAS
from edgewam.robot_bridge.serving import checks
from edgewam.robot_bridge.serving.handler import Answer, DoorError, Look

FRONT = "front"
KINDS = ("infer", "reset", "image", "action_request", "config")
Images = dict[str, npt.NDArray[np.uint8]]
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Request:
    """A request: one of KINDS, what it shows, and the client's own number for it (None: it gave none)."""

    kind: str
    look: Look
    request_id: int | str | None = None


def request_of(message: Any, cameras: Shapes, is_resizing: bool = False) -> Request:
    """A decoded message as a request.  Keys that mean nothing to a policy (velocity, effort, timestamp, step) are ignored.

    `step` is no tick: upstream's clients count requests with it, or commands that went out late.  `tick`, which they do not
    send, is: control ticks since the reset.  is_resizing: bring images to the camera's size as upstream's server does.

    Raises:
        DoorError: `bad_request`.
    """
    if not isinstance(message, dict):
        raise DoorError("bad_request", "A message must be a dict with a 'type'.")
    kind = kind_of(message)
    if kind is None:
        shown = checks.shown(message.get("type"))
        raise DoorError("bad_request", f"unknown request type: {shown}. Known: {', '.join(KINDS)}.")
    prompt, state, tick = message.get("instruction"), message.get("state"), message.get("tick")
    images = message.get("images")
    if kind in ("infer", "action_request") and (images is None or state is None):
        raise DoorError("bad_request", f"{kind} must contain images['{FRONT}'] or the cameras by name, and state.")
    if kind == "image" and images is None:
        raise DoorError("bad_request", f"image request must contain images['{FRONT}'] or the cameras by name.")
    look = Look(
        images={} if images is None or kind in ("reset", "config") else cameras_of(images, cameras, is_resizing),
        state=_flat(state) if kind in ("infer", "action_request") else None,
        prompt=None if prompt is None else checks.prompt_of(prompt),
        tick=None if tick is None else checks.tick_of(tick),
    )
    return Request(kind, look, request_id_of(message))


def kind_of(message: Any) -> str | None:
    """One of KINDS; None when it is something else, an array for example, which must not be compared."""
    kind = message.get("type") if isinstance(message, dict) else None
    return kind if isinstance(kind, str) and kind in KINDS else None


def request_id_of(message: Any) -> int | str | None:
    """The client's number or short name for a request, to be given back with its reply."""
    value = message.get("request_id") if isinstance(message, dict) else None
    return value if type(value) is int or (type(value) is str and len(value) <= checks.MAX_KEY_CHARACTERS) else None


def cameras_of(images: Any, cameras: Shapes, is_resizing: bool) -> Images:
    """The policy's cameras out of what a client sent: by name, or from the one image "front".

    "front" is the camera itself for a policy with one camera.  For a policy with three it must be the composed canvas, head
    above, wrists below side by side: upstream's server feeds it as it is, and cut apart it gives the same canvas again.

    Raises:
        DoorError: `bad_request`, naming what is needed.
    """
    if not isinstance(images, dict):
        raise DoorError("bad_request", "images must be a dict from camera name to a uint8 array [H, W, 3].")
    if all(name in images for name in cameras):
        found = {name: images[name] for name in cameras}
    elif FRONT not in images:
        raise DoorError("bad_request", f"images must hold '{FRONT}' or all of: {', '.join(cameras)}.")
    elif len(cameras) == 1:
        found = {name: images[FRONT] for name in cameras}
    else:
        return _cut(images[FRONT], cameras)
    if is_resizing:
        found = {name: _resized(image, cameras[name]) for name, image in found.items()}
    return checks.images_of(found, cameras)


def _cut(canvas: Any, cameras: Shapes) -> Images:
    size = canvas_size(cameras)
    needed = "" if size is None else f" '{FRONT}' as the composed canvas uint8[{size[0]}, {size[1]}, 3], or"
    if size is None or not isinstance(canvas, np.ndarray) or canvas.shape != (*size, 3) or canvas.dtype != np.uint8:
        raise DoorError("bad_request", f"This policy has {len(cameras)} cameras: send{needed} all of: {', '.join(cameras)}.")
    split, half = size[0] * 2 // 3, size[1] // 2
    head, left, right = CAMERAS
    return {head: canvas[:split], left: canvas[split:, :half], right: canvas[split:, half:]}


def canvas_size(cameras: Shapes) -> tuple[int, int] | None:
    """Height and width of the canvas whose three parts have exactly the sizes of these cameras; None when there is none."""
    if set(cameras) != set(CAMERAS):
        return None
    (height, width, _), wrists = cameras[CAMERAS[0]], {tuple(cameras[name][:2]) for name in CAMERAS[1:]}
    return (height * 3 // 2, width) if wrists == {(height / 2, width / 2)} else None


def _resized(image: Any, shape: Sequence[int]) -> Any:
    """PIL's bilinear filter, as upstream's server does; what is no image is left for the checks to refuse."""
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not is_image or 0 in image.shape or max(image.shape) > checks.MAX_SIDE or image.shape == tuple(shape):
        return image
    height, width, _ = shape
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR))


def _flat(state: Any) -> Any:
    """Upstream flattens the state, so [1, 14] is as good as [14]."""
    return state.reshape(-1) if isinstance(state, np.ndarray) else state


def chunk_reply(answer: Answer, latency_ms: float, max_actions: int) -> dict[str, Any]:
    """What both flows answer with; max_actions: at most so many rows, 0 for all."""
    actions = answer.actions[:max_actions] if max_actions else answer.actions
    chunk = np.ascontiguousarray(actions, np.float32)
    return {"ok": True, "type": "action_chunk", "action_chunk": chunk, "model_latency_ms": latency_ms}


def context_fields(answer: Answer, control_hz: float) -> dict[str, Any]:
    """What the asynchronous flow adds: which planner refresh is behind the chunk, its age, and how long it took (-1: unknown)."""
    return {
        "kv_version": answer.context_number,
        "kv_age_ms": answer.context_age_ticks * 1000.0 / control_hz,
        "video_prefill_ms": float(answer.timing.get("plan_ms", -1.0)),
    }


def error_reply(error: DoorError, is_fatal: bool = False) -> dict[str, Any]:
    """A refusal: code and sentence.  Fatal: the connection ends after it."""
    reply: dict[str, Any] = {"ok": False, "error": f"{error.code}: {error}"}
    return {**reply, "fatal": True, "fatal_reason": error.code} if is_fatal else reply

"""One episode of the bundle in its simulator, for the report: what its cameras saw, as a short film and as observations."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from edgewam.core.records import Observation
    from edgewam.runtime.bundle import Bundle

EVERY_TICKS = 2  # one picture of the film per so many control ticks
MAX_FILM_BYTES = 1_400_000  # before base64 adds a third, most reports stay far below
_QUALITIES = (70, 50, 30, 10)


@dataclass(frozen=True)
class Episode:
    """observations: one per chunk, as the policy was given them.  pictures: uint8 [H, W, 3], one per EVERY_TICKS."""

    seed: int
    prompt: str
    ticks: int
    control_hz: float
    strict_success: bool
    observations: list[Observation]
    pictures: list[npt.NDArray[np.uint8]]


def play(bundle: Bundle, robot: str, task: str | None, seed: int, max_ticks: int | None = None) -> Episode:
    """One lockstep episode without latency, as long as the task wants it unless `max_ticks` says less.

    Raises:
        EdgewamError: the simulator is not installed or cannot be drawn, or the bundle knows none of its prompts.
    """
    from edgewam.core import plugins
    from edgewam.core.errors import EdgewamError
    from edgewam.robot_bridge.robot import with_task

    spec, options = with_task(robot, task)
    prompt = next((prompt for prompt in spec.prompts if prompt in bundle.prompts), None)
    if prompt is None:
        raise EdgewamError(f"The bundle knows no prompt of '{task or robot}': {', '.join(spec.prompts)}. Choose another --task.")
    max_ticks = max_ticks or spec.episode_ticks
    simulator, policy = plugins.load("robot", robot).make(**options), bundle.open_policy()
    observations, pictures, done, tick = [], [], False, 0
    try:
        simulator.reset(seed)
        policy.reset(prompt, seed)
        while tick < max_ticks and not done:
            observation = simulator.observe()
            observations.append(observation)
            for target in policy.infer(observation).actions:
                if tick % EVERY_TICKS == 0:
                    pictures.append(picture(simulator.observe().images))
                done = simulator.step(target.astype(np.float64)).strict_success
                tick += 1
                if done or tick >= max_ticks:
                    break
    finally:
        simulator.close()
    return Episode(seed, prompt, tick, simulator.spec.control_hz, done, observations, pictures)


def picture(images: Any) -> npt.NDArray[np.uint8]:
    """The high camera on the left, the two wrist cameras above each other on the right, as tall together."""
    high, left, right = (np.asarray(images[name]) for name in ("cam_high", "cam_left_wrist", "cam_right_wrist"))
    half = high.shape[0] // 2
    wrists = [np.asarray(Image.fromarray(i).resize((round(i.shape[1] * half / i.shape[0]), half))) for i in (left, right)]
    return np.concatenate([high[: 2 * half], np.concatenate(wrists)], axis=1)


def film(pictures: Sequence[npt.NDArray[np.uint8]], milliseconds: int) -> bytes:
    """An endless animated WebP below MAX_FILM_BYTES, as good as fits.

    Raises:
        EdgewamError: even the lowest quality is too large.
    """
    from edgewam.core.errors import EdgewamError

    frames = [Image.fromarray(np.ascontiguousarray(p)) for p in pictures]
    for quality in _QUALITIES:
        out = io.BytesIO()
        frames[0].save(
            out, "WEBP", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, quality=quality, method=3
        )
        if out.tell() <= MAX_FILM_BYTES:
            return out.getvalue()
    raise EdgewamError(f"The film of {len(frames)} pictures is larger than {MAX_FILM_BYTES / 1e6:g} MB. Show fewer of them.")


def film_section(episode: Episode) -> dict[str, Any]:
    """The report's section: film and still picture as data URIs, and what is seen."""
    duration = round(1000 * EVERY_TICKS / episode.control_hz)
    moving = film(episode.pictures, duration)
    still = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(episode.pictures[len(episode.pictures) // 2])).save(still, "WEBP", quality=80)
    height, width = episode.pictures[0].shape[:2]
    return {
        "seed": episode.seed, "prompt": episode.prompt, "ticks": episode.ticks, "seconds": episode.ticks / episode.control_hz,
        "strict_success": episode.strict_success, "pictures": len(episode.pictures), "width": width, "height": height,
        "film_bytes": len(moving), "film": _uri(moving), "still": _uri(still.getvalue()),
    }  # fmt: skip


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()

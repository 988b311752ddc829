"""One recorded episode in one `.npz` file: what a robot saw, where it was and what it was told, control tick by control tick.

Plain arrays and encoded pictures, NumPy and Pillow only, so that anything can write one; `edgewam.data.export_episode` makes
them from LeRobot datasets.  It is no flight recording of the bridge (`recorder`), which holds timing and safety too.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgewam.core.errors import ArtifactError
from edgewam.robot_bridge.robot import RobotSpec, Vector
from edgewam.robot_bridge.serving.checks import MAX_SIDE

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

_QUALITY = 95  # JPEG: at most a few grey levels from the source, a tenth of its size
_RANGE_MARGIN = 0.1  # of the recorded range, on either side, where nobody gave limits
_SPEED_MARGIN = 1.5  # times the fastest recorded step
_LEAST_RANGE = 0.05  # rad: a joint that never moved in the recording still needs lower < upper
_LEAST_SPEED = 0.1  # rad/s
MAX_BYTES = 4 << 30  # of an episode, unpacked: five minutes of three 640x480 cameras at 25 Hz are 2 GB


@dataclass(frozen=True, eq=False)
class Episode:
    """states, actions: float32 [T, D], row t belongs to control tick t; rad, grippers 0..1.

    pictures: camera -> encoded JPEG or PNG files, one per camera period, picture k from tick k * (control_hz / camera_hz).
    lower, upper, max_velocity [D]: as in `RobotSpec`.
    """

    robot: str
    prompt: str
    control_hz: float
    camera_hz: float
    joint_names: tuple[str, ...]
    states: Floats
    actions: Floats
    pictures: Mapping[str, Sequence[bytes]]
    lower: Vector
    upper: Vector
    max_velocity: Vector

    def __len__(self) -> int:
        return len(self.states)

    @property
    def camera_every(self) -> int:
        """Control ticks from one picture to the next."""
        return int(self.control_hz // self.camera_hz)

    def spec(self, name: str) -> RobotSpec:
        """The robot that this episode can stand for; an attempt lasts as long as the recording."""
        return RobotSpec(
            name=name,
            joint_names=self.joint_names,
            lower=self.lower,
            upper=self.upper,
            max_velocity=self.max_velocity,
            control_hz=self.control_hz,
            camera_shapes={camera: decode(files[0]).shape for camera, files in self.pictures.items()},
            camera_hz=self.camera_hz,
            prompts=(self.prompt,),
            episode_ticks=len(self),
        )

    def images(self, tick: int) -> dict[str, Picture]:
        """Camera -> uint8 [H, W, 3] RGB as seen at a tick; after the end, the last ones."""
        number = tick // self.camera_every
        return {camera: decode(files[min(number, len(files) - 1)]) for camera, files in self.pictures.items()}

    def save(self, path: Path | str) -> None:
        """Write the file; its keys are documented in docs/robot.md."""
        arrays: dict[str, Any] = {}
        for name in ("robot", "prompt", "control_hz", "camera_hz", "joint_names", "states", "actions"):
            arrays[name] = np.array(getattr(self, name))
        for name in ("lower", "upper", "max_velocity"):
            arrays[name] = getattr(self, name)
        for camera, files in self.pictures.items():
            arrays[f"pictures/{camera}"] = np.frombuffer(b"".join(files), np.uint8)
            arrays[f"picture_ends/{camera}"] = np.cumsum([len(file) for file in files])
        with open(path, "wb") as file:  # np.savez would add a suffix to other names
            np.savez(file, **arrays)

    @staticmethod
    def load(path: Path | str) -> Episode:
        """Read and check a file.

        Raises:
            ArtifactError: no such file, or no complete episode; the message names what is missing or wrong.
        """
        try:
            with open(path, "rb") as file:
                with zipfile.ZipFile(file) as archive:
                    if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                        raise ValueError(f"it unpacks to more than {MAX_BYTES >> 30} GiB")
                file.seek(0)
                with np.load(file, allow_pickle=False) as data:
                    arrays = {name: data[name] for name in data.files}
        except Exception as error:  # zipfile and NumPy raise a dozen kinds for foreign bytes
            raise ArtifactError(
                f"Cannot read '{path}' as a recorded episode: {error}. "
                "Make one from a dataset with: python -m edgewam.data.export_episode DATASET OUT.npz"
            ) from error
        try:
            return _build(arrays)
        except KeyError as error:
            raise ArtifactError(f"'{path}' is no complete episode: it lacks {error}. See docs/robot.md for the keys.") from None
        except (AssertionError, AttributeError, ValueError, TypeError, IndexError, ArithmeticError, OSError) as error:
            raise ArtifactError(f"'{path}' is no sound episode: {error}. Export it again.") from error


def _build(arrays: dict[str, Any]) -> Episode:
    states, actions = arrays["states"].astype(np.float32), arrays["actions"].astype(np.float32)
    joint_names = tuple(str(name) for name in arrays["joint_names"])
    if states.ndim != 2 or states.shape != actions.shape or not len(states) or states.shape[1] != len(joint_names):
        raise ValueError(f"states {list(states.shape)} and actions {list(actions.shape)} must both be [T, {len(joint_names)}]")
    if not (np.isfinite(states).all() and np.isfinite(actions).all()):
        raise ValueError("states or actions are not finite")
    pictures = {}
    for name in arrays:
        if name.startswith("pictures/"):
            camera = name.removeprefix("pictures/")
            ends = arrays[f"picture_ends/{camera}"]
            blob = arrays[name].tobytes()
            if not len(ends) or (np.diff(ends, prepend=0) <= 0).any() or ends[-1] != len(blob):
                raise ValueError(f"the pictures of '{camera}' do not match their ends")
            pictures[camera] = [blob[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    if not pictures:
        raise ValueError("it has no pictures")
    control_hz = float(arrays["control_hz"])
    if {"lower", "upper", "max_velocity"} <= set(arrays):
        lower, upper, max_velocity = (arrays[name].astype(np.float64) for name in ("lower", "upper", "max_velocity"))
    else:
        lower, upper, max_velocity = limits_of(states, actions, control_hz)
    camera_hz, robot, prompt = float(arrays["camera_hz"]), str(arrays["robot"]), str(arrays["prompt"])
    episode = Episode(robot, prompt, control_hz, camera_hz, joint_names, states, actions, pictures, lower, upper, max_velocity)
    episode.spec("replay")  # whatever is wrong with the limits or the first pictures shows here
    return episode


def limits_of(states: Floats, actions: Floats, control_hz: float) -> tuple[Vector, Vector, Vector]:
    """lower, upper, max_velocity [D] of the recorded motion and a margin: enough to play it, no substitute for the robot's."""
    both = np.concatenate([states, actions]).astype(np.float64)
    low, high = both.min(0), both.max(0)
    margin = np.maximum(_RANGE_MARGIN * (high - low), _LEAST_RANGE)
    speed = np.abs(np.diff(actions.astype(np.float64), axis=0)).max(0, initial=0.0) * control_hz
    return low - margin, high + margin, np.maximum(_SPEED_MARGIN * speed, _LEAST_SPEED)


def encode(images: Iterable[Picture]) -> list[bytes]:
    """JPEG files of uint8 [H, W, 3] RGB images."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        files.append(buffer.getvalue())
    return files


def decode(file: bytes) -> Picture:
    """uint8 [H, W, 3] RGB of one JPEG or PNG file; ValueError, before it is unpacked, when it is larger than any camera's."""
    try:
        with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as picture:
            if max(picture.size) > MAX_SIDE:
                raise ValueError(f"a picture of {picture.size[1]}x{picture.size[0]}; at most {MAX_SIDE} a side are accepted")
            return np.asarray(picture.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error

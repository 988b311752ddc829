"""What one recorded episode holds and which features a dataset declares.  Checked here once, before anything reaches the disk.

Feature names and entries follow the LeRobot v3.0 dataset layout (facts/robot.md 2.1); nothing here knows parquet or mp4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError

STATE = "observation.state"
ACTION = "action"
ENVIRONMENT = "observation.environment_state"
IMAGE_PREFIX = "observation.images."
CODEC, ENCODER, PIX_FMT = "h264", "libx264", "yuv444p"

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Episode:
    """One demonstration of T control steps; row t of every array belongs to control step t.

    states, actions: float32 [T, D], radians, grippers 0..1; the action is the absolute target commanded at that step.
    images: camera name -> uint8 [T, H, W, 3] RGB.  environment_states: float32 [T, E] privileged simulator state, or None.
    """

    states: Floats
    actions: Floats
    images: Mapping[str, Images]
    task: str
    environment_states: Floats | None = None

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True)
class Schema:
    """The features of a dataset.  cameras: name -> (height, width); an empty `environment_names` leaves that feature out.

    camera_hz says how often the cameras really delivered: between two deliveries a frame repeats the one before it.
    """

    robot_type: str
    fps: int
    camera_hz: int
    cameras: Mapping[str, tuple[int, int]]
    joint_names: tuple[str, ...]
    environment_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.camera_hz <= 0 or self.fps % self.camera_hz:
            raise ContractError(f"fps ({self.fps}) must be a multiple of camera_hz ({self.camera_hz}).")
        if not self.cameras or not self.joint_names:
            raise ContractError("A dataset needs at least one camera and one joint.")

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return asdict(self) | {"cameras": {name: list(size) for name, size in self.cameras.items()}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Schema:
        """Inverse of `to_json`."""
        cameras = {name: (int(size[0]), int(size[1])) for name, size in data["cameras"].items()}
        lists = {name: tuple(data[name]) for name in ("joint_names", "environment_names")}
        return Schema(data["robot_type"], data["fps"], data["camera_hz"], cameras, **lists)

    @property
    def vectors(self) -> dict[str, tuple[str, ...]]:
        """Float vector features in column order -> the name of each dimension."""
        found = {STATE: self.joint_names, ACTION: self.joint_names}
        return found | ({ENVIRONMENT: self.environment_names} if self.environment_names else {})

    @property
    def hold(self) -> int:
        """Control steps that share one camera delivery."""
        return self.fps // self.camera_hz

    def features(self) -> dict[str, dict[str, Any]]:
        """The `features` entry of meta/info.json."""
        features: dict[str, dict[str, Any]] = {}
        for name, (height, width) in self.cameras.items():
            info = {
                "video.height": height,
                "video.width": width,
                "video.codec": CODEC,
                "video.pix_fmt": PIX_FMT,
                "video.is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            }
            names = ["height", "width", "channels"]
            features[IMAGE_PREFIX + name] = {"dtype": "video", "shape": [height, width, 3], "names": names, "info": info}
        for name, dimensions in self.vectors.items():
            features[name] = {"dtype": "float32", "shape": [len(dimensions)], "names": list(dimensions)}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index"):
            features[name] = {"dtype": "int64", "shape": [1], "names": None}
        return features

    def arrays(self, episode: Episode) -> dict[str, Floats | None]:
        """The episode's vectors by feature name, unchecked."""
        found: dict[str, Floats | None] = {STATE: episode.states, ACTION: episode.actions}
        return found | ({ENVIRONMENT: episode.environment_states} if self.environment_names else {})

    def check(self, episode: Episode, label: str) -> None:
        """Refuse an episode that would poison a dataset.

        Raises:
            ContractError: names `label` and the column: wrong shape or dtype, not finite, missing camera, empty task.
        """
        num_steps = len(episode)
        if num_steps == 0 or not episode.task.strip():
            raise ContractError(f"{label} is empty or has no task text. Record it again.")
        for name, array in self.arrays(episode).items():
            shape = (num_steps, len(self.vectors[name]))
            if array is None or array.shape != shape or array.dtype != np.float32:
                got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise ContractError(f"{label}, column '{name}': expected float32{list(shape)}, got {got}. Record it again.")
            bad = np.argwhere(~np.isfinite(array))
            if len(bad):
                step, dimension = (int(i) for i in bad[0])
                where = f"step {step}, dimension {dimension} ({self.vectors[name][dimension]})"
                raise ContractError(
                    f"{label}, column '{name}': {len(bad)} non-finite values, the first at {where}. Record it again."
                )
        for name, (height, width) in self.cameras.items():
            expected = (num_steps, height, width, 3)
            images = episode.images.get(name)
            if images is None or images.shape != expected or images.dtype != np.uint8:
                got = "nothing" if images is None else f"{images.dtype}{list(images.shape)}"
                column = IMAGE_PREFIX + name
                raise ContractError(f"{label}, column '{column}': expected uint8{list(expected)}, got {got}. Record it again.")

"""The TOML file by which a person describes a LeRobot robot to the bridge: joints, units, limits, rates, cameras.

LeRobot objects know names, but neither limits nor units; both must be given here, and nothing is guessed.  The format is
shown in examples/so101.toml.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.robot_bridge.robot import RobotSpec, Vector

_TOP = {"name", "control_hz", "camera_hz", "prompts", "lease_ticks", "robot", "joints", "cameras"}
_JOINT = {"name", "feature", "unit", "from", "to", "lower", "upper", "max_velocity", "max_acceleration", "is_gripper"}
_DEVICE = {"make", "options"}


@dataclass(frozen=True)
class Device:
    """make: dotted name of a LeRobot config class, or of a function that returns the device; options: its arguments."""

    make: str
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Description:
    """features [D]: LeRobot's name of each joint.  Ours = scale * LeRobot's + offset.

    is_gripper [D]: `stop` keeps its command.
    """

    spec: RobotSpec
    features: tuple[str, ...]
    scale: Vector
    offset: Vector
    is_gripper: tuple[bool, ...]
    robot: Device
    cameras: Mapping[str, Device]

    @staticmethod
    def load(path: Path | str) -> Description:
        """Read and check a description file.

        Raises:
            ContractError: unreadable, incomplete or contradictory; the message names the place and what belongs there.
        """
        try:
            data = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ContractError(f"Cannot read the robot description '{path}': {error}.") from error
        return _build(data, str(path))


def _build(data: dict[str, Any], path: str) -> Description:
    _known(data, _TOP, path)
    joints: list[dict[str, Any]] = _needed(data, "joints", path)
    if not joints:
        raise ContractError(f"{path}: there is no [[joints]] entry. Describe every joint that the robot is commanded by.")
    scale, offset = np.empty(len(joints)), np.empty(len(joints))
    for j, joint in enumerate(joints):
        _known(joint, _JOINT, f"{path}, joint {j + 1}")
        scale[j], offset[j] = _unit(joint, f"{path}, joint '{joint.get('name', j + 1)}'")

    def column(key: str) -> list[Any]:
        return [_needed(joint, key, f"{path}, joint '{joint.get('name', j + 1)}'") for j, joint in enumerate(joints)]

    limits: dict[str, Any] = {key: np.array(column(key), np.float64) for key in ("lower", "upper", "max_velocity")}
    if any("max_acceleration" in joint for joint in joints):
        limits["max_acceleration"] = np.array(column("max_acceleration"), np.float64)
    cameras: dict[str, dict[str, Any]] = _needed(data, "cameras", path)
    for name, camera in cameras.items():
        _known(camera, _DEVICE | {"shape"}, f"{path}, camera '{name}'")
    try:
        spec = RobotSpec(
            name=_needed(data, "name", path),
            joint_names=tuple(column("name")),
            control_hz=float(_needed(data, "control_hz", path)),
            camera_shapes={name: _shape(camera, f"{path}, camera '{name}'") for name, camera in cameras.items()},
            camera_hz=float(_needed(data, "camera_hz", path)),
            prompts=tuple(_needed(data, "prompts", path)),
            lease_ticks=int(data.get("lease_ticks", 5)),
            **limits,
        )
    except AssertionError as error:
        raise ContractError(
            f"{path}: the robot's limits or rates contradict each other ({error or 'lower must be below upper'}). "
            "lower < upper, max_velocity > 0, and control_hz a multiple of camera_hz."
        ) from error
    return Description(
        spec=spec,
        features=tuple(column("feature")),
        scale=scale,
        offset=offset,
        is_gripper=tuple(bool(joint.get("is_gripper", False)) for joint in joints),
        robot=_device(_needed(data, "robot", path), f"{path}, [robot]"),
        cameras={name: _device(camera, f"{path}, camera '{name}'") for name, camera in cameras.items()},
    )


def _unit(joint: Mapping[str, Any], place: str) -> tuple[float, float]:
    """(scale, offset) of LeRobot's unit to ours: rad, and 0..1 for grippers."""
    match joint.get("unit"):
        case "rad":
            return 1.0, 0.0
        case "deg":
            return math.pi / 180.0, 0.0
        case "linear":
            (x0, x1), (y0, y1) = _pair(joint, "from", place), _pair(joint, "to", place)
            if x0 == x1 or y0 == y1 or not np.isfinite([x0, x1, y0, y1]).all():
                raise ContractError(f"{place}: 'from' and 'to' must each have two different, finite numbers.")
            scale = (y1 - y0) / (x1 - x0)
            return scale, y0 - scale * x0
        case other:
            raise ContractError(
                f"{place}: unit must be 'rad', 'deg' or 'linear', got {other!r}. LeRobot does not say which one its numbers "
                "have: look at the robot's configuration (use_degrees). For -100..100 or 0..100 give unit = 'linear' with "
                "from = [-100, 100] and to = [the same two positions in rad, measured]."
            )


def _pair(joint: Mapping[str, Any], key: str, place: str) -> tuple[float, float]:
    value = _needed(joint, key, place)
    if not isinstance(value, list) or len(value) != 2:
        raise ContractError(f"{place}: '{key}' must be two numbers, got {value!r}.")
    return float(value[0]), float(value[1])


def _shape(camera: Mapping[str, Any], place: str) -> tuple[int, int, int]:
    value = _needed(camera, "shape", place)
    if not isinstance(value, list) or len(value) != 3 or value[2] != 3:
        raise ContractError(f"{place}: 'shape' must be [height, width, 3], got {value!r}.")
    return int(value[0]), int(value[1]), 3


def _device(entry: Mapping[str, Any], place: str) -> Device:
    _known({key: value for key, value in entry.items() if key != "shape"}, _DEVICE, place)
    return Device(_needed(entry, "make", place), dict(entry.get("options", {})))


def _needed(data: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in data:
        raise ContractError(f"{place}: '{key}' is missing. See examples/so101.toml for what belongs there.")
    return data[key]


def _known(data: Mapping[str, Any], keys: set[str], place: str) -> None:
    if unknown := sorted(set(data) - keys):
        raise ContractError(f"{place}: unknown entries {', '.join(unknown)}. Known: {', '.join(sorted(keys))}.")

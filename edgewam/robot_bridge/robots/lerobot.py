"""A LeRobot `Robot` as a robot of the bridge; made from a description file, because LeRobot knows neither limits nor units.

This module is no robot by itself.  Yours is a module of three lines (examples/so101.py):

    from edgewam.robot_bridge.robots.lerobot import from_description
    SPEC, make, make_cameras = from_description(Path(__file__).with_name("so101.toml"))

LeRobot's own interface: huggingface/lerobot, robots/robot.py and cameras/camera.py (read at 0.4.4).  It is imported when a
robot is made, never before.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError
from edgewam.core.records import Observation
from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.robot import CameraImage, RobotSpec, Vector
from edgewam.robot_bridge.robots.lerobot_description import Description, Device

_BROKEN_NS = NS  # a camera that has failed for so long will not come back by itself


def from_description(path: Path | str) -> tuple[RobotSpec, Callable[..., LeRobotArm], Callable[[], LeRobotCameras]]:
    """SPEC, make and make_cameras of the robot that a description file describes; ContractError when the file is wrong."""
    description = Description.load(path)

    def make(*, render: bool = False) -> LeRobotArm:
        return LeRobotArm(description)

    def make_cameras() -> LeRobotCameras:
        return LeRobotCameras(description)

    return description.spec, make, make_cameras


class LeRobotArm:
    """`Robot` over an object with connect, get_observation, send_action, disconnect."""

    def __init__(self, description: Description) -> None:
        self.spec = description.spec
        self._description = description
        self._device = _made(description.robot, lambda config: _lerobot("lerobot.robots").make_robot_from_config(config))
        self._check_features()
        self._check_torque()
        self._call("connect to", self._device.connect, calibrate=False)  # calibration asks questions, a driver has no keyboard
        if not self._device.is_calibrated:
            self.close()
            raise ContractError(f"Robot '{self.spec.name}' is not calibrated. Run lerobot-calibrate for it, then start again.")
        self._last_command: Vector | None = None
        self._positions()  # a robot that cannot be read is refused here, not in the middle of a run

    def reset(self, seed: int) -> None:
        """Nothing moves: a person puts the robot and the scene where the task starts."""

    def observe(self) -> Observation:
        """The joint state now, without images."""
        return Observation({}, self._positions().astype(np.float32), 0, now_ns())

    def command(self, target: npt.ArrayLike) -> None:
        """Send an absolute joint target [D]; ContractError, and nothing sent, when it is malformed."""
        command = self.spec.checked(target)
        theirs = (command - self._description.offset) / self._description.scale
        action = dict(zip(self._description.features, theirs.tolist(), strict=True))
        self._call("command", self._device.send_action, action)
        self._last_command = command

    def stop(self) -> None:
        """Hold: command the measured pose; grippers keep their command, else they would drop what they hold."""
        hold = self._positions()
        if self._last_command is not None:
            hold = np.where(self._description.is_gripper, self._last_command, hold)
        self.command(hold)

    def close(self) -> None:
        """Disconnect; whether that takes the torque off is LeRobot's `disable_torque_on_disconnect`."""
        if self._device.is_connected:
            self._call("disconnect from", self._device.disconnect)

    def _positions(self) -> Vector:
        observation = self._call("read", self._device.get_observation)
        try:
            theirs = np.array([observation[feature] for feature in self._description.features], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"Robot '{self.spec.name}' reported no number for every joint: {error!r}.") from error
        return theirs * self._description.scale + self._description.offset

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call LeRobot; whatever it raises comes out as the one error that says which robot failed at what."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise ContractError(
                f"Cannot {what} robot '{self.spec.name}': {_reason(error)}. Check power, cable and port."
            ) from error

    def _check_features(self) -> None:
        described, told = set(self._description.features), set(self._device.action_features)
        reported = dict(self._device.observation_features)
        if described != told or not described <= set(reported):
            raise ContractError(
                f"Robot '{self.spec.name}' is commanded by {sorted(told)} and reports {sorted(reported)}, "
                f"but its description lists the features {sorted(described)}. Describe exactly what it is commanded by."
            )
        if cameras := sorted(name for name, kind in reported.items() if isinstance(kind, tuple)):
            raise ContractError(
                f"Robot '{self.spec.name}' opened the cameras {cameras} itself. Leave them out of [robot.options] and describe "
                "them under [cameras]: they run in a process of their own, so that a slow camera cannot delay the arm."
            )

    def _check_torque(self) -> None:
        option = "disable_torque_on_disconnect"
        if hasattr(getattr(self._device, "config", None), option) and option not in self._description.robot.options:
            raise ContractError(
                f"[robot.options] of '{self.spec.name}' does not say {option}. LeRobot's default lets the arm fall when the "
                f"bridge leaves: set {option} = false, or true if it rests safely without torque."
            )


class LeRobotCameras:
    """`Cameras` over LeRobot cameras.  One that fails or has nothing new is left out of an answer."""

    def __init__(self, description: Description) -> None:
        self._timeout_ms = 1000.0 / description.spec.camera_hz
        self._newest_ns: dict[str, int] = {}  # stamp of the last image
        self._good_ns: dict[str, int] = {}  # when it was read
        self._devices: dict[str, Any] = {}
        try:
            for name, device in description.cameras.items():
                camera = _made(device, lambda config: _lerobot("lerobot.cameras").make_cameras_from_configs({"": config})[""])
                camera.connect()
                self._devices[name] = camera
        except Exception as error:
            self.close()
            if isinstance(error, ContractError):
                raise
            raise ContractError(f"Cannot open camera '{name}': {_reason(error)}. Check its cable.") from error

    def grab(self) -> dict[str, CameraImage]:
        """The newest image of each camera that has a new one; the camera's own exception when one fails for a second."""
        images = {}
        for name, camera in self._devices.items():
            # the stamp is read first: if a frame arrives in between, the image is newer than its stamp, never older
            begin_ns, stamp_s = now_ns(), getattr(camera, "latest_timestamp", None)
            t_ns = begin_ns if stamp_s is None else round(stamp_s * NS)  # perf_counter is CLOCK_MONOTONIC on Linux
            if t_ns <= self._newest_ns.get(name, -1):
                continue
            try:
                image = camera.read_latest() if hasattr(camera, "read_latest") else camera.async_read(timeout_ms=self._timeout_ms)
            except (OSError, RuntimeError):  # not connected, timed out, too old: the bridge sees its age grow and holds
                if begin_ns - self._good_ns.setdefault(name, begin_ns) > _BROKEN_NS:
                    raise  # this process is then started again, which opens the camera anew
                continue
            self._newest_ns[name], self._good_ns[name] = t_ns, begin_ns
            images[name] = CameraImage(np.asarray(image), t_ns)
        return images

    def close(self) -> None:
        """Disconnect all."""
        while self._devices:
            _, camera = self._devices.popitem()
            if camera.is_connected:
                camera.disconnect()


def _made(device: Device, from_config: Callable[[Any], Any]) -> Any:
    """Call the dotted name with its options; a configuration class becomes its device, a function returns it."""
    module_name, _, attribute = device.make.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ContractError(
            f"Cannot import '{device.make}': {error}. Give the dotted name of a LeRobot config class, or of a function that "
            "returns the device, and install LeRobot into this environment."
        ) from error
    try:
        if isinstance(function, type) and dataclasses.is_dataclass(function):
            # LeRobot's configuration classes are decoded from plain values by its own library: paths, enums, nested ones
            return from_config(importlib.import_module("draccus").decode(function, dict(device.options)))
        return function(**device.options)
    except Exception as error:
        raise ContractError(f"'{device.make}' cannot be made: {_reason(error)}. Check its options.") from error


def _lerobot(module: str) -> Any:
    return importlib.import_module(f"{module}.utils")


def _reason(error: Exception) -> str:
    """One line; LeRobot's messages have several."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")

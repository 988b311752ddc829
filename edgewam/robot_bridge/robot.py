"""What a robot is to the bridge: a spec, `observe`, `command`, `stop`; a simulator adds lockstep and its own clock.

A robot is one module in `robot_bridge/robots/`: its file name is the plugin name, and it offers `SPEC: RobotSpec` and
`make(**options) -> Robot`.  In a run its cameras live in a process of their own, so `make(render=False)` gives a robot whose
observations have no images.

A simulator also offers `make_renderer(**options) -> Renderer`, which draws its states anywhere.  A real robot offers
`make_cameras(**options) -> Cameras`, and `make` must not move it.  A robot with several tasks has a `DEFAULT_TASK`, takes `task`
in `make` and `make_renderer`, and offers `describe(task) -> RobotSpec`, the spec with that task's prompt and episode length.
A simulator may tell more of an episode than its reward: `outcome() -> dict` of plain data goes into the report.
A simulator that can be commanded faster than `SPEC.control_hz` takes `control_hz` in `make` (see `at_rate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgewam.core import plugins
from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.records import Observation

MAX_JOINTS = 32  # what was clamped is logged in masks of so many bits

Vector = npt.NDArray[np.float64]
Images = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class RobotSpec:
    """Limits, rates and cameras of a robot; everything the safety filter needs to know.

    lower, upper [D]: command limits in rad (grippers 0 closed .. 1 open).  max_velocity [D]: largest change of a
    command, rad/s (grippers 1/s).  lease_ticks: control ticks that one command stays in force without a new one.
    prompts: instructions, the default first.  episode_ticks: an attempt that takes longer has failed.
    max_acceleration [D]: largest change of a command's velocity, rad/s^2; None: not limited.
    home [D]: a pose that is safe to stand in; None: wherever the robot is when it starts.
    """

    name: str
    joint_names: tuple[str, ...]
    lower: Vector
    upper: Vector
    max_velocity: Vector
    control_hz: float
    camera_shapes: Mapping[str, tuple[int, int, int]]
    camera_hz: float
    prompts: tuple[str, ...]
    lease_ticks: int = 5
    episode_ticks: int = 300
    max_acceleration: Vector | None = None
    home: Vector | None = None

    def __post_init__(self) -> None:
        for field in ("lower", "upper", "max_velocity", "max_acceleration", "home"):
            if getattr(self, field) is None:
                continue
            value = np.array(getattr(self, field), np.float64)
            assert value.shape == (self.num_joints,), f"{self.name}: {field} must have one value per joint"
            assert np.isfinite(value).all(), f"{self.name}: {field} must be finite: nothing brakes before an end that is nowhere"
            value.flags.writeable = False
            object.__setattr__(self, field, value)
        assert (self.lower < self.upper).all() and (self.max_velocity > 0).all(), self.name
        assert self.max_acceleration is None or (self.max_acceleration > 0).all(), self.name
        assert self.home is None or ((self.lower <= self.home) & (self.home <= self.upper)).all(), self.name
        assert 1 <= self.num_joints <= MAX_JOINTS, f"{self.name}: 1 to {MAX_JOINTS} joints; the log has a bit for each"
        assert self.lease_ticks >= 1, f"{self.name}: a command stays in force for a tick at least"
        assert self.control_hz % self.camera_hz == 0, "a camera frame must fall on a control tick"

    @property
    def num_joints(self) -> int:
        """D, the length of states and commands."""
        return len(self.joint_names)

    @property
    def camera_every(self) -> int:
        """Control ticks from one camera frame to the next."""
        return int(self.control_hz // self.camera_hz)

    def checked(self, target: npt.ArrayLike) -> Vector:
        """A command as float64 [D], clipped to the limits (the bridge's filter counts clips; this is the last guard).

        Raises:
            ContractError: wrong shape or values that are not finite; nothing may have changed by then.
        """
        try:
            command = np.array(target, np.float64)
        except (TypeError, ValueError) as error:
            raise ContractError(f"Robot '{self.name}': a command must be {self.num_joints} numbers, got {target!r}.") from error
        if command.shape != (self.num_joints,):
            raise ContractError(f"Robot '{self.name}': a command must have shape [{self.num_joints}], got {list(command.shape)}.")
        if not np.isfinite(command).all():
            bad = [self.joint_names[i] for i in np.flatnonzero(~np.isfinite(command))]
            raise ContractError(f"Robot '{self.name}': command refused, not finite at {', '.join(bad)}.")
        return np.clip(command, self.lower, self.upper)


@dataclass(frozen=True)
class StepResult:
    """After one lockstep control tick: the task's reward, its usual success and a stricter, sustained one."""

    reward: int
    success: bool
    strict_success: bool


@runtime_checkable
class Robot(Protocol):
    """Anything that can be looked at and commanded at `spec.control_hz`."""

    @property
    def spec(self) -> RobotSpec:
        """Limits, rates, cameras."""

    def reset(self, seed: int) -> None:
        """Go to the start pose; in a simulator the seed fixes the whole scene.  A run never asks this of a real robot."""

    def observe(self) -> Observation:
        """The newest images and the present joint state."""

    def command(self, target: npt.ArrayLike) -> None:
        """Set the absolute joint target [D] and renew the lease; ContractError (and no change) when it is malformed."""

    def stop(self) -> None:
        """Hold the present pose until the next command."""

    def close(self) -> None:
        """Release devices; safe to call twice."""


class Steps(Protocol):
    """What lockstep needs of a simulator."""

    @property
    def spec(self) -> RobotSpec:
        """Limits, rates, cameras."""

    def reset(self, seed: int) -> None:
        """Go to the start pose; the seed fixes the whole scene."""

    def observe(self) -> Observation:
        """The newest images and the present joint state."""

    def step(self, target: npt.ArrayLike) -> StepResult:
        """Command and one control tick."""


@runtime_checkable
class Simulator(Robot, Steps, Protocol):
    """A robot whose clock is ours: in lockstep (`step`) or driven by a real-time loop (`command` and `advance`)."""

    def advance(self) -> StepResult:
        """One control tick towards the last command; when its lease has run out the robot holds the present pose."""

    def physics_state(self) -> Vector:
        """A copy of the full state as one flat float64 array of fixed length: all a `Renderer` needs."""


@dataclass(frozen=True, eq=False)
class CameraImage:
    """image: uint8 [H, W, 3] RGB.  t_ns: when it was captured, on the monotonic clock (`time.monotonic_ns`)."""

    image: npt.NDArray[np.uint8]
    t_ns: int


class Cameras(Protocol):
    """A real robot's cameras, in a process of their own.

    A camera that raises, or whose image has a wrong shape or is black, counts as lost; the last good image stays and grows old.
    """

    def grab(self) -> Mapping[str, CameraImage]:
        """Camera name -> newest image, in the shapes of `spec.camera_shapes`; one that has nothing new may be left out.

        Called at `spec.camera_hz`.  It may block for a frame period, but not for seconds: then the process is started again.
        """

    def close(self) -> None:
        """Release devices; safe to call twice."""


class Renderer(Protocol):
    """Draws a simulator's cameras from a physics state, in the simulator's process or in another one."""

    def render(self, physics_state: Vector) -> Images:
        """Camera name -> uint8 [H, W, 3] RGB, the shapes of `spec.camera_shapes`."""

    def close(self) -> None:
        """Release the graphics context; safe to call twice."""


def at_rate(spec: RobotSpec, control_hz: float) -> RobotSpec:
    """The spec of the same robot commanded at a whole multiple of its own rate: what is counted in ticks lasts as long.

    Raises:
        EdgewamError: no whole multiple.
    """
    times = control_hz / spec.control_hz
    if times < 1 or times != round(times):
        raise EdgewamError(
            f"Robot '{spec.name}' runs at {spec.control_hz:g} Hz or a whole multiple of it, not at {control_hz:g} Hz."
        )
    return replace(
        spec,
        control_hz=control_hz,
        lease_ticks=spec.lease_ticks * round(times),
        episode_ticks=spec.episode_ticks * round(times),
    )


def with_task(robot: str, task: str | None) -> tuple[RobotSpec, dict[str, Any]]:
    """The spec of a robot that does one of its tasks, and the options of `make` and `make_renderer` that choose the task.

    There are none for the robot's default task, named or not: what is recorded of it must not depend on that.

    Raises:
        EdgewamError: an unknown robot or task (the message lists what there is), or a robot without tasks.
    """
    module = plugins.load("robot", robot)
    spec: RobotSpec = module.SPEC
    if task is None:
        return spec, {}
    if not hasattr(module, "describe"):
        raise EdgewamError(f"Robot '{robot}' has no tasks to choose from. Leave the task '{task}' out.")
    spec = module.describe(task)
    return spec, {} if task == module.DEFAULT_TASK else {"task": task}

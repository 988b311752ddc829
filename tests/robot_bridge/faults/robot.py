"""A robot that misbehaves on order and keeps a diary, two cameras and a policy that do the same: for runs with real processes.

The fault is named in EDGEWAM_TEST_FAULT and is on while there is a file `switch` in EDGEWAM_TEST_FOLDER.  The file `diary` there
holds every command that reached the robot: a witness that survives whatever dies, and knows nothing of the bridge's own log.
"""

from __future__ import annotations

import os
import time

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.robot import RobotSpec, StepResult
from tests.robot_bridge.faults.injectors import CHUNKS, spoil_writes

PACKAGE = "tests.robot_bridge.faults"
MODULE = f"{PACKAGE}.robot"
HORIZON = 16
NUM_JOINTS = 14
PERIOD_TICKS, AMPLITUDE = 240, 0.5
START_AGAIN_S = 0.8  # of an engine that is asked to be slow

SPEC = RobotSpec(
    name="faulty",
    joint_names=tuple(f"joint_{j}" for j in range(NUM_JOINTS)),
    lower=np.full(NUM_JOINTS, -1.0),
    upper=np.full(NUM_JOINTS, 1.0),
    max_velocity=np.full(NUM_JOINTS, 3.0),
    control_hz=50.0,
    camera_shapes={"cam_high": (48, 64, 3), "cam_wrist": (48, 64, 3)},
    camera_hz=25.0,
    prompts=("swing",),
)

DIARY = np.dtype([("t_ns", "<i8"), ("kind", "S8"), ("joints", "<f8", (NUM_JOINTS,))])


def wave(tick: int | np.ndarray) -> np.ndarray:
    """Targets [..., D] at a tick: every joint swings, each in its own phase, at a third of the velocity limit."""
    phase = np.arange(NUM_JOINTS) * (np.pi / NUM_JOINTS)
    return AMPLITUDE * np.sin(2 * np.pi * np.asarray(tick)[..., None] / PERIOD_TICKS + phase)


def place(name: str) -> str:
    """A file of the run; none of it exists outside of a run with faults."""
    return os.path.join(os.environ.get("EDGEWAM_TEST_FOLDER", "/nonexistent"), name)


def active() -> str:
    """The fault that is on now, or nothing."""
    return os.environ.get("EDGEWAM_TEST_FAULT", "") if os.path.exists(place("switch")) else ""


def make(*, render: bool = True) -> FaultyRobot:
    """A robot at the wave's first pose."""
    return FaultyRobot()


def make_renderer() -> FaultyRenderer:
    """Draws physics states."""
    return FaultyRenderer()


class FaultyRobot:
    """Goes where it is told at once, while the lease lasts; the episode never ends."""

    spec = SPEC

    def __init__(self) -> None:
        path = place("diary")  # closed with the robot
        self._diary = open(path, "ab", buffering=0) if os.path.isdir(os.path.dirname(path)) else None  # noqa: SIM115
        self.reset(0)

    def _note(self, kind: str, joints: np.ndarray) -> None:
        if self._diary is not None:
            row = np.zeros((), DIARY)
            row["t_ns"], row["kind"], row["joints"] = time.monotonic_ns(), kind.encode(), joints
            self._diary.write(row.tobytes())

    def reset(self, seed: int) -> None:
        """The wave's first pose."""
        self._joints = wave(0)
        self._command = self._joints.copy()
        self._age, self._tick = 0, 0
        self._note("reset", self._joints)

    def observe(self) -> Observation:
        """The joints, or what a broken encoder says of them."""
        state = self._joints.astype(np.float32)
        match active():
            case "state_nan":
                state[3] = np.nan
            case "state_dim":
                state = state[:5]
            case "state_late":
                time.sleep(0.1)  # the report is stamped when this returns: the driver itself is late
        return Observation({}, state, self._tick, time.monotonic_ns())

    def command(self, target: np.ndarray) -> None:
        """Renew the lease."""
        self._note("command", np.array(target, np.float64))
        self._command, self._age = SPEC.checked(target), 0

    def stop(self) -> None:
        """Hold."""
        self._note("stop", self._joints)
        self._command = self._joints.copy()

    def step(self, target: np.ndarray) -> StepResult:
        """Lockstep."""
        self.command(target)
        return self.advance()

    def advance(self) -> StepResult:
        """Joints follow the command at once while the lease lasts."""
        if self._age == SPEC.lease_ticks:
            self.stop()
        self._age += 1
        self._tick += 1
        self._joints = self._command.copy()
        self._note("advance", self._joints)
        return StepResult(0, False, False)

    def physics_state(self) -> np.ndarray:
        """Joints and tick."""
        return np.array([*self._joints, self._tick])

    def close(self) -> None:
        """The last entry of the diary; safe to call twice."""
        if self._diary is not None and not self._diary.closed:
            self._note("close", self._joints)
            self._diary.close()


class FaultyRenderer:
    """Grey images whose first pixel counts ticks."""

    def render(self, physics_state: np.ndarray) -> dict[str, np.ndarray]:
        """Camera name -> image."""
        return pictures(int(physics_state[-1]))

    def close(self) -> None:
        """Nothing to release."""


def pictures(tick: int) -> dict[str, np.ndarray]:
    """Images of all cameras at a tick, or what a broken camera gives."""
    images = {name: np.full(shape, 128, np.uint8) for name, shape in SPEC.camera_shapes.items()}
    for image in images.values():
        image[0, 0] = tick % 251
    match active():
        case "camera_drop":
            raise OSError("VIDIOC_DQBUF: No such device")
        case "camera_absent":
            del images["cam_wrist"]
        case "camera_shape":
            images["cam_wrist"] = images["cam_wrist"][:24]
        case "camera_dtype":
            images["cam_wrist"] = images["cam_wrist"].astype(np.float32)
        case "camera_black":
            images["cam_wrist"][:] = 0
    return images


class FaultyPolicy:
    """The wave, in the time that the shipped bundle takes; while a fault is on, what a broken engine does."""

    INFER_S = 0.011

    def __init__(self) -> None:
        spoil_writes(active, "actions")
        self._calls = 0

    def reset(self, prompt: str, seed: int) -> None:
        """Nothing to forget."""

    def plan(self, observation: Observation) -> None:
        """Nothing to refresh."""

    def act(self, observation: Observation) -> ActionChunk:
        """The wave from the tick of the observation."""
        self._calls += 1
        fault = active() if self._calls > 1 else ""
        time.sleep(PAUSES.get(fault, self.INFER_S))
        if fault == "raise":
            raise RuntimeError("the engine is on fire")
        rows = wave(observation.tick + np.arange(HORIZON)).astype(np.float32)
        chunk = ActionChunk(rows, observation.tick, observation.tick, observation.t_capture_ns)
        return CHUNKS.get(fault, lambda chunk: chunk)(chunk)

    def infer(self, observation: Observation) -> ActionChunk:
        """See `act`."""
        return self.act(observation)


PAUSES = {"stall_50": 0.05, "stall_500": 0.5, "stall_forever": 3600.0}


class SplitFaultyPolicy(FaultyPolicy):
    """The same with a context, which is nothing but its tick, and a planner that can hang."""

    refresh_ticks, horizon, chunk_size, prefix_trained, offset_trained = 16, 48, HORIZON, False, True

    def __init__(self) -> None:
        super().__init__()
        self.context_tick: int | None = None

    def reset(self, prompt: str, seed: int) -> None:
        """No context."""
        self.context_tick = None

    def plan(self, observation: Observation) -> None:
        """The context is the tick."""
        if active() == "plan_forever":
            time.sleep(PAUSES["stall_forever"])
        self.context_tick = observation.tick

    def start_plan(self, observation: Observation) -> None:
        """At once."""
        self.plan(observation)

    def poll_plan(self) -> bool:
        """It is done."""
        return True

    def export_context(self) -> bytes:
        """The tick."""
        return str(self.context_tick).encode()

    def import_context(self, data: bytes) -> None:
        """The tick."""
        self.context_tick = int(data)

    def act(self, observation: Observation, prefix: np.ndarray | None = None) -> ActionChunk:
        """As far as the context reaches."""
        if self.context_tick is None or observation.tick + HORIZON > self.context_tick + self.horizon:
            raise EdgewamError(f"No context for tick {observation.tick}: it is of tick {self.context_tick}.")
        return super().act(observation)

    def infer(self, observation: Observation) -> ActionChunk:
        """Refresh, then act."""
        self.plan(observation)
        return self.act(observation)


def split_policy() -> SplitFaultyPolicy:
    """The factory of a policy that a planner process can serve."""
    slow_down()
    return SplitFaultyPolicy()


def policy() -> FaultyPolicy:
    """The factory."""
    slow_down()
    return FaultyPolicy()


def slow_down() -> None:
    """Where a file `slow_start` lies, every call but the first takes a while."""
    if os.path.exists(place("slow_start")):
        try:
            with open(place("started"), "x"):
                pass
        except FileExistsError:
            time.sleep(START_AGAIN_S)

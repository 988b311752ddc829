"""A robot and policies for tests of the bridge: two joints that go where they are told, and policies that misbehave on order.

The module is a robot plugin by its dotted name (SPEC, make, make_renderer).  Camera images carry the tick they show.
"""

from __future__ import annotations

import os
import time

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.policy import ReplayPolicy
from edgewam.robot_bridge.robot import RobotSpec, StepResult, at_rate

ROBOT = "tests.robot_bridge.fakes"
HORIZON = 16

SPEC = RobotSpec(
    name="fake",
    joint_names=("elbow", "gripper"),
    lower=np.array([-1.0, 0.0]),
    upper=np.array([1.0, 1.0]),
    max_velocity=np.array([3.0, 5.0]),
    control_hz=50.0,
    camera_shapes={"cam_high": (4, 6, 3)},
    camera_hz=25.0,
    prompts=("reach",),
)


def make(*, render: bool = True, control_hz: float = SPEC.control_hz) -> FakeRobot:
    """A robot at rest; with `render` its observations hold images."""
    return FakeRobot(render, control_hz)


def make_renderer() -> FakeRenderer:
    """Draws physics states."""
    return FakeRenderer()


class FakeRenderer:
    """An image whose first pixels are the tick and whether the goal is to the right."""

    def render(self, physics_state):
        """Camera name -> image."""
        image = np.zeros((4, 6, 3), np.uint8)
        image[0, 0, 0] = int(physics_state[2]) % 251
        image[0, 1, 0] = 200 if physics_state[3] > 0 else 100
        return {"cam_high": image}

    def close(self):
        """Nothing to release."""


class FakeRobot:
    """Joint 0 must reach the goal (+-0.5, from the seed's parity) and stay for 5 ticks."""

    def __init__(self, render, control_hz=SPEC.control_hz):
        self.spec = at_rate(SPEC, control_hz)
        self._renderer = FakeRenderer() if render else None
        self.reset(0)

    def reset(self, seed):
        """Middle pose; even seeds have the goal on the right."""
        self._joints = np.array([0.0, 0.5])
        self._command = self._joints.copy()
        self._age, self._tick, self._held = 0, 0, 0
        self._goal = 0.5 if seed % 2 == 0 else -0.5

    def observe(self):
        """State and, when made to render, the image."""
        images = self._renderer.render(self.physics_state()) if self._renderer else {}
        return Observation(images, self._joints.astype(np.float32), self._tick, time.monotonic_ns())

    def command(self, target):
        """Renew the lease."""
        self._command, self._age = SPEC.checked(target), 0

    def stop(self):
        """Hold."""
        self._command = self._joints.copy()

    def step(self, target):
        """Lockstep."""
        self.command(target)
        return self.advance()

    def advance(self):
        """Joints follow the command at once while the lease lasts."""
        if self._age == self.spec.lease_ticks:
            self.stop()
        self._age += 1
        self._tick += 1
        self._joints = self._command.copy()
        near = abs(self._joints[0] - self._goal) < 0.05
        self._held = self._held + 1 if near else 0
        return StepResult(4 if near else 0, bool(near), self._held >= 5)

    def physics_state(self):
        """Joints, tick, goal."""
        return np.array([*self._joints, self._tick, self._goal])

    def close(self):
        """Nothing to release."""


def slow_wave(period_ticks: int = 200, amplitude: float = 0.4) -> ReplayPolicy:
    """Swings the elbow around the middle, well below every limit, and never succeeds for 5 ticks."""
    ticks = np.arange(3000)
    return ReplayPolicy(
        lambda seed: np.stack([amplitude * np.sin(2 * np.pi * ticks / period_ticks), np.full(len(ticks), 0.5)], 1), HORIZON
    )


def standing() -> ReplayPolicy:
    """Wants the pose in which the fake arm was left."""
    return ReplayPolicy(lambda seed: [[0.1, 0.5]], HORIZON)


class Seeing:
    """Reads the goal from the image and moves there: needs its eyes.  The seed's noise makes runs distinguishable."""

    def __init__(self, speed: float = 0.04):
        self._speed, self._gate = speed, 1.0

    def reset(self, prompt, seed):
        """Fix the noise."""
        self._noise = np.random.default_rng(seed)

    def plan(self, observation):
        """Nothing to refresh."""

    def act(self, observation):
        """Sixteen steps towards the goal that the image shows."""
        shown = int(observation.images["cam_high"][0, 1, 0])
        goal = {200: 0.5, 100: -0.5}.get(shown, 0.0) * self._gate
        here = float(observation.state[0])
        path = here + np.clip(goal - here, -self._speed * np.arange(1, 17), self._speed * np.arange(1, 17))
        actions = np.stack([path + 1e-3 * self._noise.normal(size=16), np.full(16, 0.5)], 1).astype(np.float32)
        return ActionChunk(actions, observation.tick, observation.tick, observation.t_capture_ns)

    def infer(self, observation):
        """See act."""
        return self.act(observation)

    def ablate(self, part):
        """Only the gate can be closed."""
        if part != "gate":
            raise EdgewamError(f"Unknown part '{part}'. Parts: gate.")
        self._gate = 0.0


ALL = ("nan", "shape", "flat", "long", "dtype", "jump", "future", "foreseen", "expired", "stale")


class Faulty(ReplayPolicy):
    """The slow wave, except between two of its ticks, where it does something wrong (see `_spoil`)."""

    def __init__(self, fault: str, begin: int, end: int, marker: str | None):
        self._fault, self._begin, self._end, self._marker = fault, begin, end, marker
        self._inner = slow_wave()
        self._calls = 0

    def reset(self, prompt, seed):
        """As the wave."""
        self._inner.reset(prompt, seed)

    def act(self, observation):
        """The wave's chunk, spoiled while the fault lasts."""
        self._calls += 1
        chunk = self._inner.act(observation)
        if self._calls > 1 and self._begin <= observation.tick < self._end:
            return self._spoil(chunk)
        return chunk

    def _spoil(self, chunk):
        actions, start, observed, stamp = chunk.actions.copy(), chunk.start_tick, chunk.observation_tick, chunk.t_capture_ns
        fault = self._fault
        if fault == "all":
            fault = ALL[self._calls % len(ALL)]
        match fault:
            case "nan":
                actions[3, 1] = np.nan
            case "shape":
                actions = actions[:, :1]
            case "flat":
                actions = actions[0]
            case "long":
                actions = np.repeat(actions, 10, 0)
            case "dtype":
                actions = actions.astype(np.float64)
            case "jump":
                actions[:, 0] += 0.9
            case "future":
                start += 40
            case "foreseen":
                observed += 40
            case "expired":
                start -= 40
            case "stale":
                stamp -= 2_000_000_000
            case "range":
                actions[:, 1] = 1.4
            case "stall":
                time.sleep(1.0)
            case "raise":
                raise RuntimeError("the engine is on fire")
            case "refuse":
                raise EdgewamError("This bundle is not for this machine. Compile it again.")
            case "die_once" if self._marker and not os.path.exists(self._marker):
                with open(self._marker, "w"):
                    pass
                os.kill(os.getpid(), 9)
            case "hang_once" if self._marker and not os.path.exists(self._marker):
                with open(self._marker, "w"):
                    pass
                time.sleep(60)
            case "die":
                os.kill(os.getpid(), 9)
        return ActionChunk(actions, start, observed, stamp)


def faulty(fault: str, begin: int, end: int, marker: str | None = None, restart_s: float = 0.0) -> Faulty:
    """The wave with a fault in ticks [begin, end); a factory call after the fault that left the marker takes restart_s."""
    if marker and os.path.exists(marker):
        time.sleep(restart_s)
    return Faulty(fault, begin, end, marker)


def refusing() -> None:
    """A factory that cannot build its policy."""
    raise EdgewamError("No such bundle 'x'. Run edgewam compile.")


def seeing(speed: float = 0.04) -> Seeing:
    """A policy that needs its eyes."""
    return Seeing(speed)

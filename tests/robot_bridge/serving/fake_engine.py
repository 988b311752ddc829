"""An engine inside the test's process that answers at once, or does what a test orders: refuse, stall, restart, give NaN."""

import dataclasses
import time

import numpy as np

from edgewam.robot_bridge.serving.engine import EngineFacts
from edgewam.robot_bridge.serving.handler import Answer, DoorError
from edgewam.robot_bridge.serving.session import Session, SessionSettings
from tests.robot_bridge import fakes

CAMERAS = {"cam_high": (6, 8, 3), "cam_left_wrist": (4, 6, 3)}
PROMPTS = ("reach", "wave")
HORIZON = 16
SPEC = dataclasses.replace(fakes.SPEC, camera_shapes=CAMERAS, prompts=PROMPTS)
UNLIMITED = SessionSettings(requests_per_s=1e6, burst=1e6, total_requests_per_s=1e6)


class FakeEngine:
    """Every row of an answer is the state; column 0 is shifted by the first pixel of cam_high, so that mix-ups show."""

    def __init__(self, grid_ticks=1):
        self.facts = EngineFacts(HORIZON, SPEC.num_joints, grid_ticks)
        self.generation = 1
        self.calls, self.episodes = [], []  # ("infer", tick), ...; (prompt, seed)
        self.refuse = None  # a DoorError to raise at the next call
        self.stall_s = 0.0
        self.value = None  # a number that replaces every action
        self.plans = 0

    def reset(self, prompt, seed):
        """Begin."""
        self._obey()
        if prompt not in PROMPTS:
            raise DoorError("unknown_prompt", f"Known: {', '.join(PROMPTS)}.")
        self.episodes.append((prompt, seed))
        self.plans = 0

    def infer(self, observation):
        """Answer."""
        self.calls.append(("infer", observation.tick))
        self._obey()
        return self._answer(observation)

    def act(self, observation):
        """Answer when something was planned."""
        self.calls.append(("act", observation.tick))
        self._obey()
        if not self.plans:
            raise DoorError("no_plan", "Nothing was planned yet.")
        return self._answer(observation)

    def plan(self, observation):
        """Count."""
        self.calls.append(("plan", observation.tick))
        self._obey()
        self.plans += 1
        return {"queued": True, "context_number": self.plans}

    def _answer(self, observation):
        actions = np.tile(observation.state, (HORIZON, 1))
        actions[:, 0] += observation.images["cam_high"][0, 0, 0]
        if self.value is not None:
            actions[:] = self.value
        return Answer(actions, observation.tick, {"infer_ms": 0.0})

    def _obey(self):
        time.sleep(self.stall_s)
        if self.refuse is not None:
            error, self.refuse = self.refuse, None
            raise error


def session(engine=None, settings=UNLIMITED, **options):
    """A session over the fake engine."""
    return Session(engine or FakeEngine(), SPEC, PROMPTS[0], about={"prompts": list(PROMPTS)}, settings=settings, **options)


def images(value=0):
    """Camera images of the right shapes."""
    return {name: np.full(shape, value, np.uint8) for name, shape in CAMERAS.items()}


def state(*values):
    """A joint state."""
    return np.array(values or (0.25, 0.5), np.float32)

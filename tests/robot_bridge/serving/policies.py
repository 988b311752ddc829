"""Policies for an engine process of tests: what they do is chosen by the state they are shown."""

import os
import signal
import time

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk

DIE, RAISE, STALL, REFUSE, GROW = 101.0, 102.0, 103.0, 104.0, 105.0
KNOWN = ("reach", "wave")


def null(stall_s=0.0, horizon=16):
    """Answers at once."""
    return Null(stall_s, horizon)


def split(plan_s=0.0):
    """Plans beside acting."""
    return Split(plan_s)


def broken():
    """Never comes up."""
    raise EdgewamError("The self-test failed, as ordered.")


class Null:
    """Every row is the state; column 0 is shifted by the first pixel of cam_high."""

    def __init__(self, stall_s, horizon):
        self._stall_s, self._horizon = stall_s, horizon

    def reset(self, prompt, seed):
        """Begin."""
        if prompt not in KNOWN:
            raise EdgewamError(f"Unknown prompt. Known: {', '.join(KNOWN)}.")

    def infer(self, observation):
        """Answer, or misbehave."""
        order = float(observation.state[0])
        if order == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if order == RAISE:
            raise RuntimeError("a defect, as ordered")
        if order == STALL:
            time.sleep(self._stall_s)
        if order == REFUSE:
            raise EdgewamError("as ordered")
        # a thousand times as much fits into no message
        actions = np.tile(observation.state, (self._horizon * (1000 if order == GROW else 1), 1))
        actions[:, 0] += observation.images["cam_high"][0, 0, 0]
        return ActionChunk(actions, observation.tick, observation.tick, observation.t_capture_ns)

    act = infer

    def plan(self, observation):
        """Nothing to refresh."""


class Split(Null):
    """Column 1 of an act is the first pixel of the newest plan; a plan takes `plan_s` beside the acts."""

    offset_trained = False

    def __init__(self, plan_s):
        super().__init__(0.0, 16)
        self._plan_s = plan_s
        self.reset("reach", 0)

    def reset(self, prompt, seed):
        """Forget plans."""
        super().reset(prompt, seed)
        self.context_tick, self._pixel, self._pending = None, 0, None

    def plan(self, observation):
        """Plan at once."""
        self.context_tick, self._pixel = observation.tick, int(observation.images["cam_high"][0, 0, 0])

    def infer(self, observation):
        """Plan when there is none, then act."""
        if self.context_tick is None:
            self.plan(observation)
        return self.act(observation)

    def act(self, observation):
        """Needs a plan."""
        if self.context_tick is None:
            raise EdgewamError("There is no plan yet.")
        actions = np.tile(observation.state, (16, 1))
        actions[:, 1] = self._pixel
        return ActionChunk(actions, observation.tick, observation.tick)

    def start_plan(self, observation):
        """Begin a plan that ends by itself."""
        self._pending = (observation, time.monotonic() + self._plan_s)

    def poll_plan(self):
        """Whether it has ended."""
        observation, end = self._pending
        if time.monotonic() < end:
            return False
        self.plan(observation)
        return True

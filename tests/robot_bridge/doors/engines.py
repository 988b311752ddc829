"""An engine for tests of doors: no policy, every call is written down, and refreshes finish when the test says so."""

import threading

import numpy as np

from edgewam.robot_bridge.serving.engine import EngineFacts
from edgewam.robot_bridge.serving.handler import Answer, DoorError
from edgewam.robot_bridge.serving.session import Session, SessionSettings
from tests.robot_bridge import fakes

HORIZON = 16
FAST = SessionSettings(requests_per_s=1e6, burst=1e6, total_requests_per_s=1e6)


class NotedEngine:
    """Answers actions whose every value is the number of the call, with the newest finished refresh as context.

    plan() finishes at once, or with `finish_plan()` when `is_slow`; a context serves until `forget_context()`.
    """

    generation = 0

    def __init__(self, action_dim=2):
        self.facts = EngineFacts(HORIZON, action_dim)
        self.calls = []
        self.is_slow = False
        self.context = 0
        self.pending = False
        self.failure = None
        self.entered = threading.Event()

    def reset(self, prompt, seed):
        """Begin an episode."""
        self.calls.append(("reset", prompt, seed))
        self.context, self.pending = 0, False

    def infer(self, observation):
        """Refresh and act."""
        self.context += 1
        return self._answer("infer", observation)

    def act(self, observation):
        """Act with the newest context."""
        self.entered.set()
        if not self.context:
            raise DoorError("no_plan", "There is no context for this tick.")
        return self._answer("act", observation)

    def plan(self, observation):
        """Queue a refresh."""
        self.calls.append(("plan", observation))
        self.pending = True
        if not self.is_slow:
            self.finish_plan()
        return {"queued": True, "context_number": self.context}

    def finish_plan(self):
        """The waiting refresh is done."""
        assert self.pending
        self.context, self.pending = self.context + 1, False

    def forget_context(self):
        """The context has become too old."""
        self.context = 0

    def names(self):
        """What was called, in order."""
        return [call[0] for call in self.calls]

    def _answer(self, name, observation):
        if self.failure is not None:
            raise self.failure
        self.calls.append((name, observation))
        actions = np.full((HORIZON, self.facts.action_dim), len(self.calls), np.float32)
        return Answer(actions, observation.tick, {"infer_ms": 1.5, "plan_ms": 7.0}, self.context, 5)


def session(engine, spec=fakes.SPEC, settings=FAST):
    """The real session over an engine."""
    return Session(engine, spec, spec.prompts[0], settings=settings)

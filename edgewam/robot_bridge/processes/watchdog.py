"""When a child counts as hanging, and how often one may be started again: pure decisions of the supervisor."""

from __future__ import annotations

from collections import Counter, deque

from edgewam.robot_bridge.clock import NS

# the run cannot go on without them, and starting a robot's driver again by itself could move the arm
INDISPENSABLE = ("io", "driver")
DISPENSABLE = ("recorder", "view")  # who only look on: the run goes on without them
SLOW_ROLES = ("engine", "planner")  # may compute for seconds without a sign of life
_QUICK_TIMEOUT_S = 2.0  # the others report several times a second


class RestartBudget:
    """At most `max_restarts` of a role within any `window_s` seconds."""

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self._max_restarts, self._window_s = max_restarts, window_s
        self._times: dict[str, deque[float]] = {}
        self.counts: Counter[str] = Counter()

    def spend(self, role: str, now_s: float) -> bool:
        """Whether a role may be started again now; if so it is counted."""
        times = self._times.setdefault(role, deque())
        while times and now_s - times[0] > self._window_s:
            times.popleft()
        if role in INDISPENSABLE or len(times) >= self._max_restarts:
            return False
        times.append(now_s)
        self.counts[role] += 1
        return True


def silence_limit_s(role: str, heartbeat_timeout_s: float) -> float:
    """How long a role that is ready may be silent."""
    return heartbeat_timeout_s if role in SLOW_ROLES else min(_QUICK_TIMEOUT_S, heartbeat_timeout_s)


def is_hanging(is_ready: bool, heartbeat_ns: int, started_ns: int, now_ns: int, silence_s: float, start_s: float) -> bool:
    """Whether a child is silent for too long, or did not become ready in `start_s` seconds."""
    if is_ready:
        return now_ns - heartbeat_ns > silence_s * NS
    return now_ns - started_ns > start_s * NS

"""The gate that a chunk passes: what it claims (`chunks.check`), and whether what it asks for first may be done at all.

A chunk that is refused leaves no trace but its reason; the one in use goes on.
"""

from __future__ import annotations

import numpy as np

from edgewam.robot_bridge.control.chunks import Reject, Rules, check
from edgewam.robot_bridge.control.safety import LIMITS_MARGIN, Limits, Vector
from edgewam.robot_bridge.control.scheduling.timed_rows import TimedRows
from edgewam.robot_bridge.control.workspace import Workspace
from edgewam.robot_bridge.records.shm_record import Value


class Intake:
    """Remembers the number of the last chunk it let through."""

    def __init__(self, rules: Rules, limits: Limits, workspace: Workspace | None) -> None:
        self._rules, self._limits, self._workspace = rules, limits, workspace
        self._margin = LIMITS_MARGIN * (limits.upper - limits.lower)
        self._last_id = -1

    def take(
        self, value: Value, tick: int, now_ns: int, episode: int, running_from: Vector | None
    ) -> tuple[Reject, TimedRows | None]:
        """NONE and the chunk, or the first thing wrong with it.

        running_from: the last command [D] while running; else None: an arm that holds approaches slowly, so nothing has to be in
        reach, and it has no motion that a prefix would have to continue.
        """
        reject = check(value, self._rules, tick=tick, now_ns=now_ns, episode=episode, last_id=self._last_id)
        if reject is not Reject.NONE:
            return reject, None
        chunk = TimedRows(value)
        reject = self._judge(chunk, tick, running_from)
        if reject is not Reject.NONE:
            return reject, None
        self._last_id = int(value["id"])
        return reject, chunk

    def _judge(self, chunk: TimedRows, tick: int, running_from: Vector | None) -> Reject:
        first, limits = chunk.at(tick), self._limits
        assert first is not None  # `check` has seen to it
        if not limits.has(first, self._margin):
            return Reject.LIMITS
        target = np.clip(first, limits.lower, limits.upper)
        if running_from is not None:
            given_ticks = int(chunk.record["prefix_rows"]) * chunk.ticks_per_row
            if self._rules.needs_prefix and given_ticks < tick - chunk.start:
                return Reject.BAD_PREFIX
            if (np.abs(target - running_from) > limits.max_jump).any():
                return Reject.JUMP
        if self._workspace is not None and self._workspace(target) is None:
            return Reject.WORKSPACE
        return Reject.NONE

"""The planner process: refreshes the policy's context at its own rate and publishes it, so that no chunk of the engine waits.

It opens the same policy as the engine and resets it in the same way.  A restarted planner begins a new context with an empty
memory; its numbers go on above its predecessor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import become_preferred, now_ns, sleep_until
from edgewam.robot_bridge.policy import Policy, SplitPolicy, open_policy
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.processes.frames import Frames
from edgewam.robot_bridge.processes.refresh import interval, is_due, to_record

POLL_NS = 2_000_000  # a refresh takes tens of milliseconds and serves for hundreds
NICE = -5  # behind the engine, whose chunk is the urgent one, before ordinary programs


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Plan until told to stop; returns how many contexts were published."""
    granted = become_preferred(NICE)
    policy = open_policy(config["policy_factory"], config["policy_args"])
    return {**Planner(config, link, policy).run(), "real_time": {"scheduler": granted}}


class Planner:
    """One policy that only plans; `step` is one look at the newest frame."""

    def __init__(self, config: Mapping[str, Any], link: Link, policy: Policy) -> None:
        """Check the policy.

        Raises:
            EdgewamError: it has no context that could be planned apart, or not at this rate.
        """
        if not isinstance(policy, SplitPolicy):
            raise EdgewamError(
                "This policy has no context of its own, so there is nothing to plan. Run it with planner 'engine'."
            )
        self._link, self._policy = link, policy
        self._frames, self._record = Frames(config, link), link.wires["context"]
        self._every = interval(policy, config["refresh_ticks"])
        self._begins_empty = int(config["generation"]) > 0
        self._number = int(config["generation"]) << 32
        self._count = 0
        self._last: int | None = None  # policy tick of the newest refresh of this episode

    def run(self) -> dict[str, Any]:
        """Until told to stop."""
        while not self._link.is_stopping:
            did = self.step()
            self._link.report(is_ready=self._frames.is_warm, count=self._count)
            if not did:
                sleep_until(now_ns() + POLL_NS)
        return {"contexts": self._count, "began_with_empty_memory": self._begins_empty}

    def step(self) -> bool:
        """Plan when the newest frame is due for it; whether it was new."""
        if not self._frames.look():
            return False
        if not self._frames.is_warm:
            self._frames.warm_up(self._policy)
        if not self._frames.is_of_this_run:
            return True
        if self._frames.begins_episode(self._policy):
            self._last = None
        observation = self._frames.observation()
        if self._last is None or is_due(self._policy, self._every, observation.tick - self._last):
            begin_ns = now_ns()
            self._policy.plan(observation)
            self._last = observation.tick
            self._publish(now_ns() - begin_ns)
        return True

    def _publish(self, plan_ns: int) -> None:
        self._number += 1
        self._record.write(
            to_record(
                self._record,
                self._policy.export_context(),
                episode=self._frames.episode,
                number=self._number,
                tick=self._frames.tick,
                t_capture_ns=self._frames.t_capture_ns,
                plan_ns=plan_ns,
            )
        )
        self._count += 1

"""The engine process: the policy.  It takes the newest frame when a new chunk is due and publishes the answer as a record.

It never queues: a slow engine works on fewer frames, each as fresh as it can be.  It never waits for a context: a chunk uses the
newest one there is (`refresh`), and where none serves, nothing is published and counted, so that io holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.clock import become_preferred, now_ns, sleep_until
from edgewam.robot_bridge.control.chunks import to_record
from edgewam.robot_bridge.control.delay import DelayEstimator, Rows, committed
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.policy import Policy, SplitPolicy, longest_prefix, open_policy, prefix_policy
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.processes.frames import Frames
from edgewam.robot_bridge.processes.refresh import NONE, Blocking, FromPlanner, InEngine, Refresh, interval

POLL_NS = 500_000
RTC = "rtc"


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Serve chunks until told to stop; returns how many were computed and why others were not."""
    granted = become_preferred()  # before the policy starts threads, which inherit it
    policy = open_policy(config["policy_factory"], config["policy_args"])
    return {**Engine(config, link, policy).run(), "real_time": {"scheduler": granted}}


class Engine:
    """One policy and the records around it; `step` is one look at them."""

    def __init__(self, config: Mapping[str, Any], link: Link, policy: Policy) -> None:
        """Choose how contexts are refreshed.

        Raises:
            EdgewamError: settings that this policy cannot follow.
        """
        self._link, self._policy = link, policy
        self._frames = Frames(config, link)
        self._chunks, self._io = link.wires["chunk"], link.wires["status_io"]
        self._replan_ticks, self._ticks_per_row = int(config["replan_ticks"]), self._frames.ticks_per_row
        self._number = int(config["generation"]) << 32  # a restarted engine goes on above its predecessor
        self._refresh = choose_refresh(config, link, policy)
        self._max_age = max_context_age(config, policy)
        self._delay = delay_estimator(config, policy, self._ticks_per_row)
        self._slot = (NONE, NONE)  # of the newest chunk: episode, and which of its replan intervals
        self._last: tuple[Rows, int] | None = None  # actions and start tick of the newest chunk of this episode
        self._counts = {"chunks": 0, "refused": 0, "old_context": 0}
        self._refusal = ""

    def run(self) -> dict[str, Any]:
        """Until told to stop."""
        while not self._link.is_stopping:
            did = self.step()
            self._link.report(is_ready=self._frames.is_warm, count=self._counts["chunks"])
            if not did:
                sleep_until(now_ns() + POLL_NS)
        return {**self._counts, "refusal": self._refusal, "refresh": self._refresh.name}

    def step(self) -> bool:
        """Take in a new context and a new frame; answer when a chunk is due.  Whether anything was new."""
        has_context = self._refresh.poll()
        is_new = self._frames.look()  # after the context: a frame is never older than the context it is used with
        if not (is_new or has_context):
            return False
        if not self._frames.is_warm:
            self._frames.warm_up(self._policy)
        if not self._frames.is_of_this_run:
            return True
        if self._frames.begins_episode(self._policy):
            self._refresh.reset(self._frames.episode)
            self._refresh.poll()
            self._last = None
        observation, tick = self._frames.observation(), self._frames.tick
        if self._refresh.is_waiting:
            self._refresh.offer(observation, tick)
            self._refresh.poll()
        slot = (self._frames.episode, self._frames.episode_tick // self._replan_interval())
        if slot != self._slot and not self._refresh.is_waiting and self._answer(observation, tick):
            self._slot = slot
        self._refresh.offer(observation, tick)  # when the chunk is on its way
        return True

    def _replan_interval(self) -> int:
        """Ticks per chunk; one while the arm waits, because each good chunk brings it closer to moving again."""
        status = self._io.read()
        return self._replan_ticks if status is None or status[1]["mode"] == Mode.RUN else 1

    def _answer(self, observation: Observation, tick: int) -> bool:
        """Publish a chunk; False where there is none for this tick, which the next frame tries again."""
        if self._refresh.tick != NONE and tick - self._refresh.tick > self._max_age:
            self._counts["old_context"] += 1
            return False
        prefix = self._prefix(tick)
        begin_ns = now_ns()
        try:
            chunk = self._refresh.act(observation, prefix)
        except EdgewamError as error:
            self._counts["refused"] += 1
            self._refusal = str(error)
            return False
        self._publish(chunk, observation, tick, begin_ns, 0 if prefix is None else len(prefix))
        return True

    def _publish(self, chunk: ActionChunk, observation: Observation, tick: int, begin_ns: int, prefix_rows: int) -> None:
        self._number += 1
        infer_ns = now_ns() - begin_ns
        value = to_record(self._chunks, chunk, self._number, self._frames.episode, 0, infer_ns)
        # row 0 belongs to the frame's own tick, also where the policy counts coarser ones
        value["start_tick"] = tick + (chunk.start_tick - observation.tick) * self._ticks_per_row
        value["observation_tick"] = tick + (chunk.observation_tick - observation.tick) * self._ticks_per_row
        value["frame_number"], value["t_frame_ns"] = self._frames.number, self._frames.t_frame_ns
        value["context_tick"], value["context_number"] = self._refresh.tick, self._refresh.number
        value["ticks_per_row"], value["prefix_rows"] = self._ticks_per_row, prefix_rows
        value["t_begin_ns"], value["t_sent_ns"] = begin_ns, now_ns()
        self._chunks.write(value)
        self._counts["chunks"] += 1
        if self._delay is not None:
            self._delay.sent(self._number, is_first=self._last is None)
        if chunk.actions.ndim == 2 and np.isfinite(chunk.actions).all():  # io refuses others, a prefix may not hand them on
            self._last = (chunk.actions, int(value["start_tick"]))

    def _prefix(self, tick: int) -> Rows | None:
        """Rows that the newest chunk will still command; None unless the robot is following chunks right now."""
        if self._delay is None or (status := self._io.read()) is None:
            return None
        self._delay.hear(int(status[1]["applied_id"]), int(status[1]["delay_ticks"]))
        if self._last is None or status[1]["mode"] != Mode.RUN:
            return None
        rows = -(-self._delay.ticks // self._ticks_per_row)
        return committed(*self._last, tick, rows, self._ticks_per_row)


def choose_refresh(config: Mapping[str, Any], link: Link, policy: Policy) -> Refresh:
    """How this policy gets its contexts.

    Raises:
        EdgewamError: a planner process or a refresh rate for a policy without a context.
    """
    wanted, planner = config["refresh_ticks"], config["planner"]
    if not isinstance(policy, SplitPolicy):
        if planner == "process" or wanted is not None:
            raise EdgewamError("This policy has no context of its own. Run it with planner 'engine' and without refresh_ticks.")
        return Blocking(policy)
    every = interval(policy, wanted)
    if planner == "process":
        return FromPlanner(policy, link.wires["context"])
    return InEngine(policy, every, int(config["generation"]) << 32)


def max_context_age(config: Mapping[str, Any], policy: Policy) -> int:
    """Control ticks from a context to the last chunk that may use it; by default what the horizon leaves before one chunk."""
    wanted = config["max_context_age_ticks"]
    if wanted is not None or not isinstance(policy, SplitPolicy):
        return int(wanted or 0)
    return (policy.horizon - policy.chunk_size) * int(config["ticks_per_row"])


def delay_estimator(config: Mapping[str, Any], policy: Policy, ticks_per_row: int) -> DelayEstimator | None:
    """The estimator of real-time chunking, None for other schedules.

    Raises:
        EdgewamError: weights that were not trained with prefixes.
    """
    if config["schedule"] != RTC:
        return None
    return DelayEstimator(longest_prefix(prefix_policy(policy)) * ticks_per_row)

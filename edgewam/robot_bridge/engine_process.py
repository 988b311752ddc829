"""The engine process: the policy.  It takes the newest frame when a new chunk is due and publishes the answer as a record.

It never queues: a slow engine works on fewer frames, each as fresh as it can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core.records import Observation
from edgewam.robot_bridge.child import Link
from edgewam.robot_bridge.chunks import to_record
from edgewam.robot_bridge.clock import NS, become_preferred, now_ns, sleep_until
from edgewam.robot_bridge.policy import Policy, open_policy
from edgewam.robot_bridge.shm_record import Value

POLL_NS = 500_000


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Serve chunks until told to stop; returns how many were computed."""
    granted = become_preferred()  # before the policy starts threads, which inherit it
    policy = open_policy(config["policy_factory"], config["policy_args"])
    return {**_Engine(config, link, policy).run(), "real_time": {"scheduler": granted}}


class _Engine:
    def __init__(self, config: Mapping[str, Any], link: Link, policy: Policy) -> None:
        self._link, self._policy = link, policy
        self._frames, self._chunks = link.wires["frame"], link.wires["chunk"]
        self._cameras = list(config["wires"]["camera_shapes"])
        self._prompt, self._first_seed = config["prompt"], int(config["seed"])
        self._replan_ticks = int(config["replan_ticks"])
        self._period_ns = round(NS / config["control_hz"])
        self._number = int(config["generation"]) << 32  # a restarted engine goes on above its predecessor
        self._count = 0

    def run(self) -> dict[str, Any]:
        """Warm up on the first frame, then answer one frame per `replan_ticks` of an episode."""
        version, slot, episode, is_warm = 0, (-1, -1), -1, False
        while not self._link.is_stopping:
            newer = self._frames.read(version)
            if newer is None:
                self._link.report(is_ready=is_warm, count=self._count)
                sleep_until(now_ns() + POLL_NS)
                continue
            version, frame = newer
            epoch_ns = self._link.epoch_ns
            if not is_warm:
                self._policy.reset(self._prompt, self._first_seed)
                self._policy.infer(self._observation(frame))
                is_warm = True
                version = 0  # a restarted engine may still use this frame
                continue
            if not epoch_ns or int(frame["t_ns"]) < epoch_ns - self._period_ns:
                continue
            if int(frame["episode"]) != episode:
                episode = int(frame["episode"])
                self._policy.reset(self._prompt, self._first_seed + episode)
            this = (episode, int(frame["episode_tick"]) // self._replan_ticks)
            if this != slot:
                slot = this
                self._answer(frame)
        return {"chunks": self._count}

    def _answer(self, frame: Value) -> None:
        begin_ns = now_ns()
        chunk = self._policy.infer(self._observation(frame))
        infer_ns = now_ns() - begin_ns
        offset = int(frame["tick"]) - int(frame["episode_tick"])
        self._number += 1
        self._chunks.write(to_record(self._chunks, chunk, self._number, int(frame["episode"]), offset, infer_ns))
        self._count += 1
        self._link.report(count=self._count)

    def _observation(self, frame: Value) -> Observation:
        return Observation(
            images={name: frame[name].copy() for name in self._cameras},
            state=frame["state"].copy(),
            tick=int(frame["episode_tick"]),
            t_capture_ns=int(frame["t_ns"]),
        )

"""A simulator behind the bridge: its physics runs on an absolute clock of its own, as if it were a robot.

The command in force acts for a whole control period and the state after it is published shortly before the next control tick.
When commands stop coming, the robot's own lease makes it hold.  An episode that ends is reset to the next seed; commands that
belong to another episode are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import DRIVER_PRIORITY, NS, Sweep, become_real_time, now_ns, sleep_until
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.processes.inbox import Inbox
from edgewam.robot_bridge.records.wires import MAX_PHYSICS
from edgewam.robot_bridge.robot import Simulator, StepResult

MAX_OUTCOMES = 10_000  # episodes that are listed in the report: 16 hours of 6 s; later ones are counted only


class SimulatorDriver:
    """Ticks, episodes, seeds."""

    def __init__(self, config: Mapping[str, Any], link: Link, robot: Simulator) -> None:
        self._link, self._robot = link, robot
        self._period_ns = round(NS / config["control_hz"])
        self._lead_ns = round(config["driver_lead_s"] * NS)
        self._first_seed, self._episode_ticks = int(config["seed"]), int(config["episode_ticks"])
        self._state, self._physics = link.wires["state"], link.wires["physics"]
        self._inbox = Inbox(config, link)
        self._episode, self._episode_start = 0, 0
        self._tick = 0
        self._success_tick: int | None = None
        self._best_reward = 0
        self._caught_up = 0
        self._num_ended, self._num_strict = 0, 0
        self._outcomes: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Stand at the start pose until the epoch, then tick."""
        self._robot.reset(self._first_seed)
        self._publish()
        granted, sweep = become_real_time(DRIVER_PRIORITY), Sweep()
        self._link.report()
        while not (epoch_ns := self._link.epoch_ns):
            if self._link.is_stopping:
                return self._results(granted)
            self._link.report()
            sleep_until(now_ns() + 5_000_000)
        sleep_until(epoch_ns - self._lead_ns)
        self._publish()  # the same state, seen anew: it still stands there
        while not self._inbox.is_time_to_leave:
            deadline_ns = epoch_ns + (self._tick + 1) * self._period_ns - self._lead_ns
            woken_ns = sleep_until(deadline_ns)
            self._apply_command()
            # time does not wait: after a stall the world has moved on by every period that has passed
            due = 1 + (woken_ns - deadline_ns) // self._period_ns
            self._caught_up += due - 1
            for _ in range(due):
                self._advance()
            self._publish()
            self._link.report(tick=self._tick, count=self._num_ended)
            sweep.if_due()
        return self._results(granted)

    @property
    def was_moved(self) -> bool:
        """Whether it was ever given a command."""
        return self._inbox.applied_tick >= 0

    def _apply_command(self) -> None:
        value = self._inbox.take()
        if value is not None and int(value["episode"]) == self._episode:
            self._robot.command(value["target"].copy())
            self._inbox.applied()

    def _advance(self) -> None:
        self._tick += 1
        if self._is_over:
            self._reset()
            return
        result: StepResult = self._robot.advance()
        elapsed = self._tick - self._episode_start
        self._best_reward = max(self._best_reward, result.reward)
        if result.success and self._success_tick is None:
            self._success_tick = elapsed
        if result.strict_success or elapsed >= self._episode_ticks:
            self._num_ended += 1
            self._num_strict += result.strict_success
            if self._num_ended <= MAX_OUTCOMES:
                self._outcomes.append(
                    {
                        "seed": self._first_seed + self._episode,
                        "ticks": elapsed,
                        "reward": self._best_reward,
                        "success_tick": self._success_tick,
                        "strict_success": result.strict_success,
                        **getattr(self._robot, "outcome", dict)(),  # what only this simulator can tell of an episode
                    }
                )

    @property
    def _is_over(self) -> bool:
        return self._num_ended > self._episode

    def _reset(self) -> None:
        self._episode += 1
        self._episode_start = self._tick
        self._success_tick, self._best_reward = None, 0
        self._robot.reset(self._first_seed + self._episode)

    def _publish(self) -> None:
        """State for the control loop, and the physics state for whoever draws it."""
        physics_state = self._robot.physics_state()
        if physics_state.size > MAX_PHYSICS:
            raise EdgewamError(f"A physics state may have {MAX_PHYSICS} values at most, this robot's has {physics_state.size}.")
        joints, t_ns = self._robot.observe().state, now_ns()
        value = self._physics.blank()
        value["length"] = physics_state.size
        value["physics"][: physics_state.size] = physics_state
        state = self._state.blank()
        state["applied_tick"], state["applied_ns"] = self._inbox.applied_tick, self._inbox.applied_ns
        for record in (state, value):
            record["episode"], record["tick"] = self._episode, self._tick
            record["episode_tick"] = self._tick - self._episode_start
            record["state"], record["t_ns"] = joints, t_ns
        self._state.write(state)
        self._physics.write(value)

    def _results(self, granted: dict[str, str]) -> dict[str, Any]:
        return {
            "episodes": self._outcomes,
            "num_episodes": self._num_ended,
            "num_strict_successes": self._num_strict,
            "caught_up_ticks": self._caught_up,
            "old_commands": self._inbox.refused,
            "real_time": granted,
        }

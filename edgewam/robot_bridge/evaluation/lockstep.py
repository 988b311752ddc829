"""One closed-loop episode in lockstep: the simulator waits for the policy, and inference latency is a declared number of ticks.

The seed fixes the scene and the policy's noise, so an episode is a function of its arguments and the weights.  How a chunk takes
over from the one before is decided by the same code that decides it on the robot (`scheduling`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.control.delay import Rows, committed
from edgewam.robot_bridge.control.scheduling import SCHEDULES, open_schedule
from edgewam.robot_bridge.control.scheduling.timed_rows import TimedRows
from edgewam.robot_bridge.counting.smoothness import smoothness
from edgewam.robot_bridge.policy import Policy, longest_prefix, prefix_policy
from edgewam.robot_bridge.processes.refresh import infer_with_prefix
from edgewam.robot_bridge.robot import Steps, Vector


@dataclass(frozen=True)
class LockstepSettings:
    """How an episode is played, in control ticks.

    A chunk is asked for every `execute_ticks`; it is there `latency_ticks` after its observation, and until then the one before
    goes on (or the last command is repeated, when that one has ended).  An episode ends with strict success or at `max_ticks`.
    schedule: how a chunk takes over, one of `SCHEDULES`; the last two fields belong to crossfade and ensemble.
    """

    max_ticks: int = 300
    latency_ticks: int = 0
    execute_ticks: int = 16
    schedule: str = "replace"
    crossfade_ticks: int = 4
    ensemble_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.max_ticks < 1 or self.execute_ticks < 1:
            raise EdgewamError("max_ticks and execute_ticks must be positive.")
        if not 0 <= self.latency_ticks < self.execute_ticks:
            raise EdgewamError(
                f"latency_ticks must be from 0 to execute_ticks - 1 = {self.execute_ticks - 1}, got {self.latency_ticks}: "
                "one engine cannot begin a chunk before it has finished the last one."
            )
        if self.schedule not in SCHEDULES:
            raise EdgewamError(f"Unknown schedule '{self.schedule}'. Available: {', '.join(SCHEDULES)}.")

    def to_json(self) -> dict[str, Any]:
        """Plain data, of the schedule only what matters to it: of `replace`, the default, nothing."""
        data = asdict(self)
        for name, schedule in (("crossfade_ticks", "crossfade"), ("ensemble_decay", "ensemble")):
            if self.schedule != schedule:
                del data[name]
        return data if self.schedule != "replace" else {k: v for k, v in data.items() if k != "schedule"}


@dataclass(frozen=True)
class EpisodeResult:
    """reward: the best one reached.  success_tick, strict_tick: ticks until the task's success and the strict one, or None.

    held_ticks: ticks without a row to follow, in which the last command was repeated.  seam_jerk, inner_jerk: see `Smoothness`.
    """

    seed: int
    ticks: int
    reward: int
    success_tick: int | None
    strict_tick: int | None
    chunks: int
    held_ticks: int
    seam_jerk: float | None
    inner_jerk: float | None

    @property
    def strict_success(self) -> bool:
        """Whether the strict success was reached."""
        return self.strict_tick is not None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def run_episode(robot: Steps, policy: Policy, seed: int, prompt: str, settings: LockstepSettings) -> EpisodeResult:
    """Play one episode.

    Raises:
        ContractError: the policy's actions have the wrong shape or are not finite.
        EdgewamError: real-time chunking with weights that were not trained for it, or not for this latency.
    """
    ask = _Asking(policy, settings)
    schedule = open_schedule(asdict(settings))
    robot.reset(seed)
    policy.reset(prompt, seed)
    newest: ActionChunk | None = None
    coming: ActionChunk | None = None
    target = np.zeros(0)
    commands: list[Vector] = []
    seams: list[int] = []
    best, success_tick, strict_tick, chunks, held, ticks = 0, None, None, 0, 0, 0
    for tick in range(settings.max_ticks):
        if tick % settings.execute_ticks == 0:
            observation = robot.observe()
            if tick == 0:
                target = observation.state.astype(np.float64)
            coming = _checked(ask(observation, newest), robot)
            chunks += 1
        if coming is not None and tick >= coming.observation_tick + settings.latency_ticks:
            newest, coming = coming, None
            schedule.add(_timed(newest), tick)
            seams.append(tick)
        wanted = schedule.target(tick)
        if wanted is None:
            held += 1
        else:
            target = wanted.pose
        commands.append(target)
        result = robot.step(target)
        ticks = tick + 1
        best = max(best, result.reward)
        if result.success and success_tick is None:
            success_tick = ticks
        if result.strict_success:
            strict_tick = ticks
            break
    smooth = smoothness(commands, seams[1:], robot.spec.max_velocity, robot.spec.control_hz)
    return EpisodeResult(seed, ticks, best, success_tick, strict_tick, chunks, held, **asdict(smooth))


class _Asking:
    """A chunk for an observation; with real-time chunking one that begins with what the newest chunk does until it is there."""

    def __init__(self, policy: Policy, settings: LockstepSettings) -> None:
        self._policy, self._delay = policy, settings.latency_ticks
        self._is_rtc = settings.schedule == "rtc"
        if self._is_rtc and self._delay > (longest := longest_prefix(prefix_policy(policy))):
            raise EdgewamError(
                f"These weights were trained with prefixes of up to {longest} rows, and latency_ticks is {self._delay}. Choose "
                "another schedule, or train with a larger max_prefix."
            )

    def __call__(self, observation: Observation, newest: ActionChunk | None) -> ActionChunk:
        if not self._is_rtc:
            return self._policy.infer(observation)
        prefix: Rows | None = None
        if newest is not None:
            prefix = committed(newest.actions, newest.start_tick, observation.tick, self._delay)
        return infer_with_prefix(prefix_policy(self._policy), observation, prefix)


def _timed(chunk: ActionChunk) -> TimedRows:
    """A chunk as the schedules take it: a record of exactly its rows."""
    rows, numbers = chunk.actions, [(name, "<i8") for name in ("start_tick", "ticks_per_row", "rows")]
    record = np.zeros((), [*numbers, ("actions", rows.dtype, rows.shape)])
    record["start_tick"], record["ticks_per_row"], record["rows"], record["actions"] = chunk.start_tick, 1, len(rows), rows
    return TimedRows(record)


def _checked(chunk: ActionChunk, robot: Steps) -> ActionChunk:
    actions = chunk.actions
    if actions.ndim != 2 or actions.shape[1] != robot.spec.num_joints or not len(actions):
        raise ContractError(f"The policy answered with shape {list(actions.shape)}; needed: [rows, {robot.spec.num_joints}].")
    if not np.isfinite(actions).all():
        raise ContractError(
            f"The policy answered with values that are not finite at tick {chunk.start_tick}. Run edgewam validate on its bundle."
        )
    return chunk

"""One closed-loop episode in lockstep: the simulator waits for the policy, and inference latency is a declared number of ticks.

The seed fixes the scene and the policy's noise, so an episode is a function of its arguments and the weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgewam.core.errors import ContractError, EdgewamError
from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.policy import Policy
from edgewam.robot_bridge.robot import Steps, Vector
from edgewam.robot_bridge.smoothness import smoothness


@dataclass(frozen=True)
class LockstepSettings:
    """How an episode is played, in control ticks.

    A chunk is asked for every `execute_ticks`; it is there `latency_ticks` after its observation, and until then the one before
    goes on (or the last command is repeated, when that one has ended).  An episode ends with strict success or at `max_ticks`.
    """

    max_ticks: int = 300
    latency_ticks: int = 0
    execute_ticks: int = 16

    def __post_init__(self) -> None:
        if self.max_ticks < 1 or self.execute_ticks < 1:
            raise EdgewamError("max_ticks and execute_ticks must be positive.")
        if not 0 <= self.latency_ticks < self.execute_ticks:
            raise EdgewamError(
                f"latency_ticks must be from 0 to execute_ticks - 1 = {self.execute_ticks - 1}, got {self.latency_ticks}: "
                "one engine cannot begin a chunk before it has finished the last one."
            )


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
    """
    robot.reset(seed)
    policy.reset(prompt, seed)
    current: ActionChunk | None = None
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
            coming = _checked(policy.infer(observation), robot)
            chunks += 1
        if coming is not None and tick >= coming.observation_tick + settings.latency_ticks:
            current, coming = coming, None
            seams.append(tick)
        row = None if current is None else current.row(tick)
        if current is None or row is None:
            held += 1
        else:
            target = current.actions[row].astype(np.float64)
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


def _checked(chunk: ActionChunk, robot: Steps) -> ActionChunk:
    actions = chunk.actions
    if actions.ndim != 2 or actions.shape[1] != robot.spec.num_joints or not len(actions):
        raise ContractError(f"The policy answered with shape {list(actions.shape)}; needed: [rows, {robot.spec.num_joints}].")
    if not np.isfinite(actions).all():
        raise ContractError(
            f"The policy answered with values that are not finite at tick {chunk.start_tick}. Run edgewam validate on its bundle."
        )
    return chunk

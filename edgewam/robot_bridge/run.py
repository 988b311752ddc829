"""`edgewam run`: drives a robot in real time with a policy, in four processes, and reports what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.report import RunReport
from edgewam.robot_bridge.robot import with_task
from edgewam.robot_bridge.scheduling import SCHEDULES
from edgewam.robot_bridge.supervisor import Progress, Supervisor
from edgewam.robot_bridge.wires import Wires

__all__ = ["Progress", "RunReport", "RunSettings", "run"]


@dataclass(frozen=True)
class RunSettings:
    """Timing and safety of a run; seconds unless the name says ticks.

    replan_ticks: a new chunk is asked for once per so many ticks.  episode_ticks: an episode without strict success ends here.
    driver_lead_s: how long before a control tick the simulator publishes its state.
    jump_s: a chunk is refused when its first action is farther away than this much time at the velocity limit.
    approach_fraction: speed of leaving a hold, as a part of the velocity limit.  ramp_ticks: ticks to brake in.
    schedule: how one chunk takes over from another (robot_bridge/scheduling); ensemble_decay, crossfade_ticks belong to it.
    ticks_per_row: control ticks per policy row; 2 is a 50 Hz policy under 100 Hz control.
    max_context_age_ticks: a chunk whose planner context is older when it begins is refused; None: the engine's own bound.
    resume_chunks: good chunks in a row that end a hold.  max_rejects: bad chunks in a row that latch STOP.
    orphan_s: how long io goes on sending the held pose when its supervisor is gone.
    """

    replan_ticks: int = 8
    episode_ticks: int = 300
    driver_lead_s: float = 0.004
    jump_s: float = 0.15
    approach_fraction: float = 0.25
    ramp_ticks: int = 4
    max_pause_s: float = 0.5
    max_hold_s: float = 5.0
    max_state_age_s: float = 0.06
    max_observation_age_s: float = 0.5
    start_timeout_s: float = 120.0
    schedule: str = "replace"
    crossfade_ticks: int = 4
    ensemble_decay: float = 0.05
    max_context_age_ticks: int | None = None
    max_camera_age_s: float = 0.2
    resume_chunks: int = 2
    max_rejects: int = 25
    engine_lost_s: float = 1.0
    orphan_s: float = 2.0
    ticks_per_row: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (value is None or isinstance(value, str) or value > 0):
                raise EdgewamError(f"{name} must be positive, got {value}.")
        if self.schedule not in SCHEDULES:
            raise EdgewamError(f"Unknown schedule '{self.schedule}'. Available: {', '.join(SCHEDULES)}.")


def run(
    policy_factory: str,
    policy_args: Mapping[str, Any],
    robot: str = "aloha_sim",
    seconds: float = 60.0,
    *,
    task: str | None = None,
    prompt: str | None = None,
    seed: int = 0,
    settings: RunSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[dict[str, int]], None] | None = None,
) -> RunReport:
    """Drive a robot in real time with a policy.

    Args:
        policy_factory: dotted name of a function that returns a `Policy`, called as factory(**policy_args) in the engine.
        policy_args: plain data (JSON).
        robot: plugin name or dotted module.
        seconds: how long to control, from the first control tick.
        task: one of the robot's tasks; by default its default one.
        prompt: instruction; by default the task's.
        seed: scene and noise of the first episode; the next ones follow by one.
        settings: timing and safety; by default an episode is as long as the task wants it.
        on_progress: called about five times a second.
        on_start: called once with the process ids by role.

    Raises:
        EdgewamError: nothing could be started (the message of the child that failed), or bad arguments.
        KeyboardInterrupt: after braking and cleaning up.
    """
    spec, robot_options = with_task(robot, task)
    settings = settings or RunSettings(episode_ticks=spec.episode_ticks)
    if not seconds > 0:
        raise EdgewamError(f"--seconds must be positive, got {seconds}.")
    num_ticks = max(1, round(seconds * spec.control_hz))
    config = {
        **asdict(settings),
        "lower": spec.lower.tolist(),
        "upper": spec.upper.tolist(),
        "max_velocity": spec.max_velocity.tolist(),
        "max_acceleration": None,
        "workspace": None,
        "control_hz": spec.control_hz,
        "camera_every": spec.camera_every,
        "num_ticks": num_ticks,
        "robot": robot,
        "robot_options": robot_options,
        "seed": seed,
        "prompt": prompt if prompt is not None else spec.prompts[0],
        "policy_factory": policy_factory,
        "policy_args": dict(policy_args),
    }
    wires = Wires(spec.num_joints, spec.camera_shapes)
    supervisor = Supervisor(config, wires)
    try:
        supervisor.start()
        if on_start is not None:
            on_start(supervisor.pids)
        supervisor.watch(on_progress)
        supervisor.stop()
        return supervisor.report(spec, robot)
    finally:
        supervisor.close()
        wires.close()

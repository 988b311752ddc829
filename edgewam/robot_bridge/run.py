"""`edgewam run`: drives a robot in real time with a policy, in several processes, and reports what happened."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.scheduling import SCHEDULES
from edgewam.robot_bridge.counting.report import RunReport
from edgewam.robot_bridge.processes.local_control import ControlServer
from edgewam.robot_bridge.processes.supervisor import Progress, Supervisor
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.records.wires import MAX_CONTEXT, ROLES, Wires
from edgewam.robot_bridge.robot import RobotSpec, at_rate, with_task

__all__ = ["Interrupted", "Progress", "RunReport", "RunSettings", "run", "run_name"]

PLANNERS = ("engine", "process")
ENDLESS_TICKS = 1 << 53  # longer than any run: six million years at 50 Hz
_MAY_BE_ZERO = ("ensemble_decay", "max_restarts", "view_port")


@dataclass(frozen=True)
class RunSettings:
    """Timing and safety of a run; seconds unless the name says ticks.

    replan_ticks: a new chunk is asked for once per so many ticks.  episode_ticks: an episode without strict success ends here.
    driver_lead_s: how long before a control tick the simulator publishes its state.
    jump_s: a chunk is refused when its first action is farther away than this much time at the velocity limit.
    approach_fraction: speed of leaving a hold, as a part of the velocity limit.  ramp_ticks: ticks to brake in.
    schedule: how one chunk takes over from another (`scheduling`); ensemble_decay, crossfade_ticks belong to it.
    refresh_ticks: ticks between two planner refreshes; None: the policy's own number.
    planner: "process" gives the planner a process of its own, "engine" lets the engine refresh between chunks.
    max_context_age_ticks: a chunk whose planner context is older when it begins is refused; None: the engine's own bound.
    max_camera_age_s: hold when the oldest camera is older.  resume_chunks: good chunks in a row that end a hold.
    max_rejects: refused chunks in a row that stop the arm.  engine_lost_s: hold when the engine has not been heard of so long.
    max_restarts: how often a child is started again within restart_window_s before the run ends.
    heartbeat_timeout_s: silence after which engine and planner count as hanging; the others after 2 s at most.
    orphan_s: how long io goes on holding the pose after its supervisor has died.
    ticks_per_row: control ticks per row of the policy (2: a 50 Hz policy at 100 Hz, interpolated).
    max_context_bytes: room for a planner's context.  workspace: dotted name of a function command [D] -> command [D] or None.
    record: MCAP file of the flight recorder.  view_port: port of the live page on 127.0.0.1 (0: any free one).
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
    refresh_ticks: int | None = None
    planner: str = "engine"
    max_context_age_ticks: int | None = None
    max_camera_age_s: float = 0.2
    resume_chunks: int = 2
    max_rejects: int = 25
    engine_lost_s: float = 1.0
    max_restarts: int = 3
    restart_window_s: float = 60.0
    heartbeat_timeout_s: float = 5.0
    orphan_s: float = 2.0
    ticks_per_row: int = 1
    max_context_bytes: int = MAX_CONTEXT
    workspace: str | None = None
    record: str | None = None
    view_port: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, str) or value is None or (name in _MAY_BE_ZERO and value == 0):
                continue
            if not 0 < value < math.inf:
                raise EdgewamError(f"{name} must be positive, got {value}.")
        for name, choices in (("schedule", SCHEDULES), ("planner", PLANNERS)):
            if getattr(self, name) not in choices:
                raise EdgewamError(f"Unknown {name} '{getattr(self, name)}'. Available: {', '.join(choices)}.")
        if self.approach_fraction > 1:
            raise EdgewamError(f"approach_fraction is a part of the velocity limit, at most 1; got {self.approach_fraction}.")
        if self.view_port is not None and self.view_port > 65535:
            raise EdgewamError(f"view_port must be from 0 (any free port) to 65535, got {self.view_port}.")

    @property
    def roles(self) -> list[str]:
        """The children of such a run, in the order of their start."""
        wanted = {"planner": self.planner == "process", "recorder": self.record is not None, "view": self.view_port is not None}
        return [role for role in ROLES if wanted.get(role, True)]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C before the end of a run: the arm was braked, and `report` says what happened until then."""

    def __init__(self, report: RunReport) -> None:
        super().__init__()
        self.report = report


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
    control_hz: float | None = None,
    robot_options: Mapping[str, Any] | None = None,
    arm: bool | None = None,
    name: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[dict[str, int]], None] | None = None,
    on_rows: Callable[[Value], None] = lambda rows: None,
) -> RunReport:
    """Drive a robot in real time with a policy.

    Args:
        policy_factory: dotted name of a function that returns a `Policy`, called as factory(**policy_args) in the engine.
        policy_args: plain data (JSON).
        robot: plugin name or dotted module.
        seconds: how long to control, from the first control tick; 0: until Ctrl-C, which is then the end as planned.
        task: one of the robot's tasks; by default its default one.
        prompt: instruction; by default the task's.
        seed: scene and noise of the first episode; the next ones follow by one.
        settings: timing and safety; by default an episode is as long as the task wants it.  `control_hz` sets ticks_per_row.
        control_hz: command a simulator at a whole multiple of its rate, while the policy keeps the robot's own.
        robot_options: passed to the robot's `make` and `make_cameras`.
        arm: let the arm move at once; by default only a simulator may, a real robot waits for `edgewam control arm`.
        name: how `edgewam control` calls this run; by default see `run_name`.
        on_progress: called about five times a second.
        on_start: called once with the process ids by role.
        on_rows: called with the rows of the log (`wires.log_layout`) as they are drained, several times a second.

    Raises:
        EdgewamError: nothing could be started (the message of the child that failed), or bad arguments.
        Interrupted: Ctrl-C before the end; a KeyboardInterrupt that carries the report.
    """
    spec, options = with_task(robot, task)
    options = {**options, **(robot_options or {})}
    is_simulator = hasattr(plugins.load("robot", robot), "make_renderer")
    if control_hz is not None and control_hz != spec.control_hz:
        ticks_per_row = round(control_hz / spec.control_hz)
        spec, options["control_hz"] = _at_rate(spec, robot, control_hz), control_hz
        settings = settings or RunSettings(
            episode_ticks=spec.episode_ticks, replan_ticks=RunSettings.replan_ticks * ticks_per_row
        )
        settings = replace(settings, ticks_per_row=ticks_per_row)
    settings = settings or RunSettings(episode_ticks=spec.episode_ticks)
    if not 0 <= seconds < math.inf:
        raise EdgewamError(f"--seconds must be positive, or 0 to run until Ctrl-C; got {seconds}.")
    config = {
        **asdict(settings),
        "roles": settings.roles,
        "joint_names": list(spec.joint_names),
        "lower": spec.lower.tolist(),
        "upper": spec.upper.tolist(),
        "max_velocity": spec.max_velocity.tolist(),
        "max_acceleration": None if spec.max_acceleration is None else spec.max_acceleration.tolist(),
        "home": None if spec.home is None else spec.home.tolist(),
        "lease_ticks": spec.lease_ticks,
        "control_hz": spec.control_hz,
        "camera_every": spec.camera_every,
        "num_ticks": max(1, round(seconds * spec.control_hz)) if seconds else ENDLESS_TICKS,
        "arm": is_simulator if arm is None else arm,
        "name": name or run_name(robot),
        "robot": robot,
        "robot_options": options,
        "seed": seed,
        "prompt": prompt if prompt is not None else spec.prompts[0],
        "policy_factory": policy_factory,
        "policy_args": dict(policy_args),
    }
    with ExitStack() as stack:
        server = ControlServer(config["name"])
        stack.callback(server.close)
        wires = Wires(spec.num_joints, spec.camera_shapes, max_context=settings.max_context_bytes)
        stack.callback(wires.close)
        supervisor = Supervisor(config, wires, spec, server, on_rows)
        stack.callback(supervisor.close)
        supervisor.start()
        if on_start is not None:
            on_start(supervisor.pids)
        try:
            supervisor.watch(on_progress)
        except KeyboardInterrupt as interrupt:
            supervisor.interrupt(is_expected=not seconds)
            if seconds:
                raise Interrupted(supervisor.report()) from interrupt
        supervisor.stop()
        return supervisor.report()


def run_name(robot: str) -> str:
    """How a run is called unless it is told: by its robot, of which there is one; simulators have their process id as well."""
    module = plugins.load("robot", robot)
    name = robot.rpartition(".")[2]
    return f"{name}-{os.getpid()}" if hasattr(module, "make_renderer") else name


def _at_rate(spec: RobotSpec, robot: str, control_hz: float) -> RobotSpec:
    if "control_hz" not in inspect.signature(plugins.load("robot", robot).make).parameters:
        raise EdgewamError(f"Robot '{robot}' runs at {spec.control_hz:g} Hz only: its make() takes no control_hz.")
    return at_rate(spec, control_hz)

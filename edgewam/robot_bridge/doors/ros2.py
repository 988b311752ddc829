"""The `ros2` door: a robot that speaks ROS 2 over DDS, without ROS here; joint states and images in, joint commands out.

In (reliable or best effort): `rt/joint_states` sensor_msgs/JointState with exactly the robot's joint names, in any order;
`rt/<camera>/image_raw` sensor_msgs/Image (rgb8, bgr8) or `rt/<camera>/image_raw/compressed` sensor_msgs/CompressedImage (JPEG,
PNG), of exactly the configured size; `rt/edgewam/stop` std_msgs/Bool: true latches STOP, false does nothing.
Out: `rt/edgewam/joint_commands` JointState once per control tick through the bridge's safety filter, always, also while it holds;
`rt/edgewam/joint_trajectory` JointTrajectory: the rest of each new chunk, filtered; `rt/edgewam/mode` and `rt/edgewam/status`
String.  Without the local option `arm=true` commands and trajectories go to `rt/edgewam/shadow/...`, where no robot listens.

Tested between processes over loopback, and its bytes against a hand-written CDR encoding.  Not verified: a real ROS 2 node at the
other end (none runs here).  DDS has no authentication: see `dds/network.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import NS
from edgewam.robot_bridge.doors.dds import readings
from edgewam.robot_bridge.doors.dds.chunk_source import CLIENT, ChunkSource
from edgewam.robot_bridge.doors.dds.command_loop import CommandLoop
from edgewam.robot_bridge.doors.dds.inputs import Inputs
from edgewam.robot_bridge.doors.dds.message_types import message_types
from edgewam.robot_bridge.doors.dds.network import Node
from edgewam.robot_bridge.doors.dds.publisher import Publisher
from edgewam.robot_bridge.robot import RobotSpec, with_task
from edgewam.robot_bridge.run import RunSettings
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.door import DoorOptions, check_options, is_on
from edgewam.robot_bridge.serving.handler import DoorError, Handler

DEFAULT_DOMAIN = 42
STATUS_S = 0.5
JOINT_STATES, STOP = "rt/joint_states", "rt/edgewam/stop"
_LOG = logging.getLogger(__name__)
_OPTIONS = ("domain", "robot", "task", "arm", "network")


@dataclass(frozen=True)
class Settings:
    """domain: DDS domain id.  robot, task: whose limits and joint names count.  is_armed: commands go where robots listen.

    is_loopback: stay on this machine; else the environment's CYCLONEDDS_URI decides.
    """

    domain: int
    robot: str
    task: str | None
    is_armed: bool
    is_loopback: bool


def settings_of(extra: Mapping[str, str], metadata: Mapping[str, Any]) -> Settings:
    """The door's own options; EdgewamError for unknown or senseless ones.  The robot is the served one by default."""
    check_options("ros2", extra, _OPTIONS)
    domain, network = extra.get("domain", str(DEFAULT_DOMAIN)), extra.get("network", "loopback")
    if not domain.isdecimal():
        raise EdgewamError(f"domain must be a number, got {domain!r}.")
    if network not in ("loopback", "environment"):
        raise EdgewamError(f"network must be loopback or environment (CYCLONEDDS_URI), got {network!r}.")
    robot = extra.get("robot", metadata.get("robot", metadata["name"]))
    return Settings(int(domain), robot, extra.get("task"), is_on(extra, "arm"), network == "loopback")


def exposure(address: Address, token: str | None) -> str:
    """One line for people, in place of an address: what can be reached."""
    return "DDS without authentication; its UDP sockets bind all addresses of this machine"


def serve(handler: Handler, address: Address, options: DoorOptions) -> None:
    """Drive the robot until `options.quit` is set, then bring it to rest.  DDS finds its own ports: `address` is not used.

    Raises:
        EdgewamError: a token was given (DDS cannot ask for one), wrong options, or a robot that does not fit the handler.
    """
    if options.token is not None or not address.is_local:
        raise EdgewamError("DDS has no authentication: the door ros2 takes neither --token-file nor --bind. Leave them out.")
    settings = settings_of(options.extra, handler.metadata)
    spec, _ = with_task(settings.robot, settings.task)
    _check_fit(spec, handler.metadata)
    _LOG.warning("%s", describe(settings))
    drive = _Drive(handler, spec, settings)
    try:
        drive.run(options, address)
    finally:
        drive.node.close()


def config_of(spec: RobotSpec) -> dict[str, Any]:
    """What the controller needs: the timing and safety of `edgewam run` and the limits of the robot's description."""
    limits = {name: getattr(spec, name).tolist() for name in ("lower", "upper", "max_velocity")}
    acceleration = getattr(spec, "max_acceleration", None)
    return {
        **asdict(RunSettings(episode_ticks=spec.episode_ticks)), **limits, "control_hz": spec.control_hz,
        "max_acceleration": None if acceleration is None else acceleration.tolist(), "workspace": None,
    }  # fmt: skip


def describe(settings: Settings) -> str:
    """What the door does, for the person who started it."""
    where = (
        "loopback" if settings.is_loopback else f"CYCLONEDDS_URI={os.environ.get('CYCLONEDDS_URI', '(not set: every interface)')}"
    )
    who = "ARMED: commands go to rt/edgewam/joint_commands" if settings.is_armed else "shadow: no command goes to the robot"
    return f"DDS domain {settings.domain}, {where}; {who}. No authentication; its UDP sockets bind all addresses of this machine."


def _check_fit(spec: RobotSpec, metadata: Mapping[str, Any]) -> None:
    cameras = {name: list(shape) for name, shape in spec.camera_shapes.items()}
    found = {name: list(shape) for name, shape in metadata["cameras"].items()}
    if spec.num_joints != metadata["state_dim"] or metadata["action_dim"] != spec.num_joints or cameras != found:
        raise EdgewamError(
            f"The policy needs {metadata['state_dim']} joints and cameras {found}; robot '{spec.name}' has {spec.num_joints} "
            f"and {cameras}. Name the right one with --option robot=NAME."
        )


class _Drive:
    """One robot driven by one handler: the node, what it hears, the control loop and what it says."""

    def __init__(self, handler: Handler, spec: RobotSpec, settings: Settings) -> None:
        config = config_of(spec)
        self._handler, self._spec = handler, spec
        self._inputs = Inputs(silent_ns=round(config["max_camera_age_s"] * NS))
        largest = max((height * width * depth for height, width, depth in spec.camera_shapes.values()), default=0)
        self.node = Node(
            settings.domain,
            self._inputs,
            max_image_bytes=readings.MAX_STEP_RATIO * largest,
            is_loopback=settings.is_loopback,
        )
        self._publisher = Publisher(self.node, spec.joint_names, config, is_armed=settings.is_armed)
        self._loop = CommandLoop(config, self._inputs, spec.camera_shapes, self._publisher.decided, self._stop)
        self._source = ChunkSource(handler, spec, config, self._inputs, lambda: self._loop.tick)

    def run(self, options: DoorOptions, address: Address) -> None:
        """Until asked to end; then the arm is brought to rest first.  EdgewamError when the control loop has died."""
        self._listen()
        ticking = threading.Thread(target=self._loop.run, args=(self._source, options.quit), name="control")
        self.node.listen()
        self._source.begin()
        ticking.start()
        try:
            options.on_ready(address)
            while not options.quit.wait(STATUS_S) and ticking.is_alive():
                self._say()
            if not options.quit.is_set():
                raise EdgewamError("The control loop ended by itself, its error is above: no command goes out any more.")
        finally:
            options.quit.set()
            ticking.join()
            self._source.close()
            self._say()

    def _stop(self) -> None:
        """The control loop has latched: nobody gets actions until somebody at the machine has looked."""
        self._handler.stop(CLIENT)
        self._source.note_stop()

    def _listen(self) -> None:
        types, spec, inputs = message_types(), self._spec, self._inputs
        self.node.read(JOINT_STATES, types.JointState, lambda m, t: inputs.set_state(readings.joints_of(m, spec.joint_names), t))
        for camera, shape in spec.camera_shapes.items():
            for name, kind, read in (
                (f"rt/{camera}/image_raw", types.Image, readings.image_of),
                (f"rt/{camera}/image_raw/compressed", types.CompressedImage, readings.picture_of),
            ):
                self.node.read(name, kind, partial(self._see, camera, shape, read))
        for is_reliable in (False, True):  # a reliable publisher's stop is not lost, and a best-effort publisher is heard as well
            self.node.read(STOP, types.Bool, self._hear, is_reliable=is_reliable, is_shared=True)

    def _see(self, camera: str, shape: Any, read: Any, message: Any, t_ns: int) -> None:
        self._inputs.set_image(camera, read(message, shape), t_ns)

    def _hear(self, message: Any, t_ns: int) -> None:
        if not message.data:
            raise DoorError("bad_request", "A network cannot undo a stop.")
        self._loop.ask_stop()

    def _say(self) -> None:
        counts, inputs = self._loop.counts, self._inputs
        if counts.decision is not None:
            self._publisher.say_mode(counts.decision.mode, counts.decision.cause, again=True)
        self._publisher.say_status(
            {
                "ticks": counts.ticks, "skipped": counts.skipped, "max_late_us": counts.max_late_us, "refused": inputs.refused,
                "last_refusal": inputs.last_refusal, "errors": dict(self._source.errors), "unsent": dict(self._publisher.unsent),
            }
        )  # fmt: skip

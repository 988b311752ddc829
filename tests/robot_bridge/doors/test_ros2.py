"""A robot in one process, the ros2 door in another, ROS messages over loopback DDS between them."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgewam.robot_bridge.control.modes import Mode
from tests.robot_bridge.doors import ros2_messages as ros
from tests.robot_bridge.fakes import SPEC

PERIOD_S = 0.02
PATIENCE_S = 20.0  # two noisy cores: everything here takes less than a second on a quiet machine
STEP = SPEC.max_velocity / SPEC.control_hz
EPSILON = 1e-9
ROUNDING = 1e-6  # chunks are float32
GOAL = 80  # percent of the gripper's range, as the images say it


class Arm:
    """Follows what it is told, and says where it is and what it sees; every command is kept."""

    def __init__(self, domain, prefix="rt/edgewam/"):
        self.peer = ros.Peer(domain)
        self.joints = np.array([0.0, 0.5])
        self.states = self.peer.writer("rt/joint_states", ros.JointState)
        self.images = self.peer.writer("rt/cam_high/image_raw", ros.Image, ros.BEST_EFFORT)
        self.stops = self.peer.writer("rt/edgewam/stop", ros.Bool)
        self.commands_in = self.peer.reader(prefix + "joint_commands", ros.JointState)
        self.trajectories_in = self.peer.reader(prefix + "joint_trajectory", ros.JointTrajectory)
        self.mode_in = self.peer.reader("rt/edgewam/mode", ros.String)
        self.status_in = self.peer.reader("rt/edgewam/status", ros.String)
        self.commands, self.trajectories, self.modes, self.status = [], [], [], {}
        self.is_silent = False
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def close(self):
        """Stop living."""
        self._quit.set()
        self._thread.join()

    def state(self, joints):
        """Where it is, with the joints in another order than the robot's."""
        return ros.JointState(name=["gripper", "elbow"], position=[float(joints[1]), float(joints[0])], velocity=[0.0, 0.0])

    def _live(self):
        while not self._quit.wait(PERIOD_S):
            for message in self.commands_in.take(100):
                assert list(message.name) == ["elbow", "gripper"]
                self.commands.append(np.array(message.position))
                self.joints = self.commands[-1]
            self.trajectories += self.trajectories_in.take(100)
            self.modes += [message.data for message in self.mode_in.take(100)]
            for message in self.status_in.take(100):
                self.status = json.loads(message.data)
            if not self.is_silent:
                self.states.write(self.state(self.joints))
            self.images.write(ros.image_message(np.full((4, 6, 3), GOAL, np.uint8)))

    def wait_for(self, condition):
        """Until it holds."""
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, (self.modes[-5:], self.status, self.joints)
            time.sleep(0.01)

    def wait_for_mode(self, mode):
        """Until this is the newest mode."""
        self.wait_for(lambda: self.modes and self.modes[-1].startswith(mode))

    def wait_for_refusals(self, topic, count):
        """Until the door says that it has refused so many messages."""
        self.wait_for(lambda: self.status.get("refused", {}).get(topic, 0) >= count)

    def assert_safe(self):
        """Every command was finite, within range and within the speed limit."""
        commands = np.array(self.commands)
        assert len(commands) and np.isfinite(commands).all()
        assert (commands >= SPEC.lower - EPSILON).all() and (commands <= SPEC.upper + EPSILON).all()
        assert (np.abs(np.diff(commands, axis=0)) <= STEP + EPSILON).all()


class Server:
    """The door's process."""

    def __init__(self, domain, arm="true"):
        command = [sys.executable, "-m", "tests.robot_bridge.doors.ros2_server", str(domain), arm]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()[1]

    def tell(self, line):
        """A line to its stdin."""
        self.process.stdin.write(line + "\n")

    def ask(self, line):
        """A line to its stdin, and the answer."""
        self.tell(line)
        return self.process.stdout.readline().strip()

    def close(self):
        """End it; gives its stderr."""
        out, errors = self.process.communicate("quit\n", timeout=PATIENCE_S)
        assert out.endswith("ended\n") and self.process.returncode == 0, errors
        assert "Traceback" not in errors, errors
        return errors


@pytest.fixture(scope="module", autouse=True)
def dds():
    if reason := ros.why_not():
        pytest.skip(reason)


@pytest.fixture
def domain():
    return ros.my_domain()


@pytest.fixture
def server(domain):
    server = Server(domain)
    yield server
    if server.process.returncode is None:
        server.close()


@pytest.fixture
def arm(domain, server):
    arm = Arm(domain)
    yield arm
    arm.close()


def test_a_greedy_policy_moves_the_arm_to_its_limit_at_the_speed_limit(arm, server):
    arm.wait_for(lambda: arm.joints[0] >= SPEC.upper[0] - EPSILON and abs(arm.joints[1] - GOAL / 100) < ROUNDING)
    arm.assert_safe()
    steps = np.diff(np.array(arm.commands)[:, 0])
    assert np.isclose(steps.max(), STEP[0]), "it went as fast as it may"
    assert any(mode == "RUN" for mode in arm.modes)
    for trajectory in arm.trajectories:
        points = np.array([point.positions for point in trajectory.points])
        assert list(trajectory.joint_names) == list(SPEC.joint_names)
        assert (points >= SPEC.lower - EPSILON).all() and (points <= SPEC.upper + EPSILON).all()
        assert (np.abs(np.diff(points, axis=0)) <= STEP + EPSILON).all(), "a robot that follows it breaks no limit either"
        times = [point.time_from_start.sec + point.time_from_start.nanosec / 1e9 for point in trajectory.points]
        np.testing.assert_allclose(times, np.arange(len(times)) / SPEC.control_hz, atol=1e-9)
    assert len(arm.trajectories) >= 2
    assert "ARMED" in server.close()


def test_a_stop_from_the_network_latches_and_only_the_machine_clears_it(arm, server):
    arm.wait_for_mode("RUN")
    arm.stops.write(ros.Bool(data=True))
    arm.wait_for_mode("STOP REQUEST")
    time.sleep(0.3)
    count, held = len(arm.commands), arm.joints.copy()
    arm.stops.write(ros.Bool(data=False))
    arm.wait_for_refusals("rt/edgewam/stop", 1)
    arm.wait_for(lambda: len(arm.commands) > count + 10)
    np.testing.assert_array_equal(arm.joints, held, "it holds, and goes on saying so")
    assert arm.modes[-1] == "STOP REQUEST" and server.ask("stopped?") == "True"
    server.tell("clear")
    arm.wait_for_mode("RUN")
    arm.assert_safe()


def test_a_robot_that_falls_silent_is_held_and_goes_on_when_it_speaks_again(arm, server):
    arm.wait_for_mode("RUN")
    arm.is_silent = True
    arm.wait_for_mode("HOLD STALE_STATE")
    count = len(arm.commands)
    arm.wait_for(lambda: len(arm.commands) > count + 5)
    arm.is_silent = False
    arm.wait_for_mode("RUN")
    arm.assert_safe()


def test_wrong_messages_are_refused_counted_and_move_nothing(arm, server):
    arm.wait_for_mode("RUN")
    wrong = [
        ros.JointState(name=["elbow"], position=[0.0]),
        ros.JointState(name=["elbow", "wrist"], position=[0.0, 0.0]),
        ros.JointState(name=["elbow", "elbow"], position=[0.0, 0.0]),
        ros.JointState(name=["elbow", "gripper"], position=[0.0]),
        ros.JointState(name=["elbow", "gripper"], position=[float("nan"), 0.0]),
        ros.JointState(name=["elbow", "gripper"], position=[float("inf"), 0.0]),
        ros.JointState(name=["elbow", "gripper"], position=[1e9, 0.0]),
    ]
    for number, message in enumerate(wrong, 1):
        arm.is_silent = True
        time.sleep(2 * PERIOD_S)  # the reader keeps the newest message only: no good one may follow
        arm.states.write(message)
        arm.wait_for_refusals("rt/joint_states", number)
        arm.is_silent = False
        arm.wait_for_mode("RUN")
    thief = ros.Peer(ros.my_domain())
    second = thief.writer("rt/joint_states", ros.JointState)
    pictures = thief.writer("rt/cam_high/image_raw/compressed", ros.CompressedImage)
    for _ in range(25):
        second.write(arm.state([-1.0, 0.0]))
        time.sleep(0.004)
    impostor = ros.Peer(ros.my_domain()).writer("rt/joint_states", ros.Impostor)
    for number in range(50):
        impostor.write(ros.Impostor(data=np.random.default_rng(number).bytes(number * 7)))
    pictures.write(ros.CompressedImage(data=b"\xff\xd8 no picture"))
    arm.wait_for_refusals("rt/joint_states", len(wrong) + 1)
    arm.wait_for_refusals("rt/cam_high/image_raw/compressed", 1)
    assert Mode.STOP.name not in " ".join(arm.modes)
    arm.assert_safe()


def test_unarmed_it_speaks_into_the_shadow(domain):
    server = Server(domain, arm="false")
    robot = Arm(domain)
    observer = ros.Peer(domain).reader("rt/edgewam/shadow/joint_commands", ros.JointState)
    try:
        robot.wait_for_mode("RUN (shadow)")
        robot.wait_for(lambda: len(observer.take(100)) > 0)
        assert not robot.commands and not robot.trajectories
    finally:
        robot.close()
        assert "shadow: no command goes to the robot" in server.close()

"""A template for your arm: copy this file, fill in the five numbered places, delete the fake hardware at the end.

It runs as it is, on fake hardware, so that you can see the whole bridge work before a motor has power:

    edgewam run BUNDLE --robot examples.my_arm --no-arm --seconds 20

The bridge makes `MyArm` in its driver process and `MyCameras` in its camera process; they share nothing, and nothing here
needs a thread or a lock.  Limits, speed, smoothness and lateness are the bridge's business: do not add filters here.
Test your copy with the contract that edgewam's own robots pass (docs/robot.md, section 1).
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.core.records import Observation
from edgewam.robot_bridge.robot import CameraImage, RobotSpec, Vector

# 1. WHAT THE ROBOT IS.  The order of the joints is the order of the numbers in the policy's states and actions; get it from
#    the dataset the policy was trained on (meta/info.json, features, observation.state, names).  Same for camera names.
JOINTS = ("waist", "shoulder", "elbow", "forearm", "wrist_angle", "wrist_rotate", "gripper")
SPEC = RobotSpec(
    name="my_arm",  # the name of this module
    joint_names=tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS),
    # 2. LIMITS, in rad, grippers 0 (closed) .. 1 (open).  Measure them: motors off, move each joint by hand to where it must
    #    never go beyond (cables, table, the other arm), read the position, step back 0.05 rad.  The data sheet's range is
    #    the motor's, not yours.  max_velocity: the fastest motion of the demonstrations plus a margin, and not more than
    #    you dare stand beside; start with a tenth of it.  max_acceleration: what the motors follow without overshoot.
    lower=np.array((-3.1, -1.8, -1.6, -3.1, -1.8, -3.1, 0.0) * 2),
    upper=np.array((3.1, 1.2, 1.6, 3.1, 2.1, 3.1, 1.0) * 2),
    max_velocity=np.array((2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 4.0) * 2),
    control_hz=50.0,  # the rate of the demonstrations: the policy's rows are that far apart
    camera_shapes={"cam_high": (128, 160, 3), "cam_left_wrist": (64, 80, 3), "cam_right_wrist": (64, 80, 3)},
    camera_hz=25.0,
    prompts=("pick up the cube with the right hand and hand it over to the left hand",),  # one that the bundle knows
    lease_ticks=5,  # without a new command for so many control ticks the driver calls stop(): 0.1 s here
)


def make(*, render: bool = False, port: str = "fake") -> MyArm:
    """Open the hardware, without moving it.  `render` is for simulators: a real robot's images come from `make_cameras`.

    Options of your own, such as the port, are `edgewam run --robot-option port=/dev/ttyUSB0`; `make_cameras` gets the same ones.
    """
    return MyArm(port)


def make_cameras(*, port: str = "fake") -> MyCameras:
    """Open the cameras; called in another process than `make`."""
    return MyCameras()


class MyArm:
    """`Robot`.  All calls come from one thread, `observe` and `command` at `control_hz`: keep each under a few milliseconds."""

    spec = SPEC

    def __init__(self, port: str) -> None:
        self._bus = FakeBus(port)
        self._last_command: Vector | None = None

    def reset(self, seed: int) -> None:
        """Begin an episode.  Never move here: a person puts the robot and the scene where the task starts."""

    def observe(self) -> Observation:
        """The joint state now.  No images: the camera process has them."""
        return Observation({}, self._positions().astype(np.float32), 0, time.monotonic_ns())

    def command(self, target: npt.ArrayLike) -> None:
        """Send an absolute joint target [D]; ContractError, and nothing sent, when it is malformed."""
        command = SPEC.checked(target)  # shape, finite, limits: the last guard behind the bridge's own
        # 3. SEND.  Rad to what your motors want: ticks, degrees, mm of gripper stroke.  Never block: no reply, no sleep.
        self._bus.write_goals(command * TICKS_PER_UNIT)
        self._last_command = command

    def stop(self) -> None:
        """Hold the present pose with power on: an arm without torque falls.  Called when commands stop coming, and at the end."""
        hold = self._positions()
        if self._last_command is not None:  # a gripper that holds something keeps pressing
            grippers = [j for j, name in enumerate(SPEC.joint_names) if name.endswith("gripper")]
            hold[grippers] = self._last_command[grippers]
        self.command(hold)

    def close(self) -> None:
        """Release the port.  Leave the torque on; taking it off is a person's decision, with a hand under the arm."""
        self._bus.close()

    def _positions(self) -> Vector:
        # 4. READ.  What your motors report, to rad, in the order of SPEC.joint_names.  An error must come out as an
        #    EdgewamError that says what to check; never answer with an old or made-up state: the bridge would trust it.
        try:
            return self._bus.read_positions() / TICKS_PER_UNIT
        except OSError as error:
            raise EdgewamError(f"my_arm does not answer: {error}. Check power and cable, then start again.") from error


class MyCameras:
    """`Cameras`.  A camera that fails may be left out of an answer: the bridge sees its age grow and holds the arm."""

    def __init__(self) -> None:
        self._devices = {name: FakeCamera(shape) for name, shape in SPEC.camera_shapes.items()}

    def grab(self) -> dict[str, CameraImage]:
        """The newest image of each camera; do not wait for one: answer with those that are new."""
        # 5. GRAB.  RGB (OpenCV gives BGR: image[..., ::-1]), the shape in SPEC.camera_shapes, and the time of the exposure on
        #    CLOCK_MONOTONIC.  V4L2 stamps its buffers with it; if your camera has no stamp, take the time before the read.
        images = {}
        for name, device in self._devices.items():
            frame, t_ns = device.read()
            images[name] = CameraImage(frame, t_ns)
        return images

    def close(self) -> None:
        """Release the devices."""
        self._devices.clear()


# FAKE HARDWARE from here on: motors that report ticks and run to their goal at a fixed speed, and cameras that show a stripe.
TICKS_PER_UNIT = np.array((651.9,) * 6 + (1000.0,) + (651.9,) * 6 + (1000.0,))  # 4096 a turn; grippers 1000 a stroke
_FAKE_SPEED = 6.0 * TICKS_PER_UNIT  # per second


class FakeBus:
    """Fourteen motors on a cable."""

    def __init__(self, port: str) -> None:
        self._goals = self._positions = 0.1 * TICKS_PER_UNIT
        self._time = time.monotonic()

    def read_positions(self) -> Vector:
        """Ticks [14] of now."""
        now = time.monotonic()
        reach = _FAKE_SPEED * (now - self._time)
        self._positions = self._positions + np.clip(self._goals - self._positions, -reach, reach)
        self._time = now
        return self._positions.copy()

    def write_goals(self, ticks: Vector) -> None:
        """New goals [14]; the motors run on by themselves."""
        self.read_positions()
        self._goals = ticks.copy()

    def close(self) -> None:
        """Nothing to release."""


class FakeCamera:
    """A bright stripe that walks over a grey picture, 25 times a second."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape

    def read(self) -> tuple[npt.NDArray[np.uint8], int]:
        """The newest frame uint8 [H, W, 3] and its capture time."""
        number = time.monotonic_ns() // 40_000_000
        frame = np.full(self._shape, 90, np.uint8)
        frame[:, 4 * number % self._shape[1]] = 220
        return frame, number * 40_000_000

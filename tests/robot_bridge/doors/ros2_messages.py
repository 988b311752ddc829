"""The ROS messages of the ros2 door for tests, written down again from the ROS definitions, and a participant that uses them."""

import os
from dataclasses import dataclass, field

from cyclonedds.core import DDSException, Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import float64, int32, sequence, uint8, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

LOOPBACK = (
    "<CycloneDDS><Domain><General><AllowMulticast>false</AllowMulticast><Interfaces><NetworkInterface name='lo' "
    "multicast='false'/></Interfaces></General><Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>32"
    "</MaxAutoParticipantIndex><Peers><Peer address='127.0.0.1'/></Peers></Discovery></Domain></CycloneDDS>"
)
RELIABLE, BEST_EFFORT = Policy.Reliability.Reliable(duration(seconds=1)), Policy.Reliability.BestEffort


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    """builtin_interfaces/Time."""

    sec: int32 = 0
    nanosec: uint32 = 0


@dataclass
class Duration(IdlStruct, typename="builtin_interfaces::msg::dds_::Duration_"):
    """builtin_interfaces/Duration."""

    sec: int32 = 0
    nanosec: uint32 = 0


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    """std_msgs/Header."""

    stamp: Time = field(default_factory=Time)
    frame_id: str = ""


@dataclass
class Bool(IdlStruct, typename="std_msgs::msg::dds_::Bool_"):
    """std_msgs/Bool."""

    data: bool = False


@dataclass
class String(IdlStruct, typename="std_msgs::msg::dds_::String_"):
    """std_msgs/String."""

    data: str = ""


@dataclass
class JointState(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    """sensor_msgs/JointState."""

    header: Header = field(default_factory=Header)
    name: sequence[str] = field(default_factory=list)
    position: sequence[float64] = field(default_factory=list)
    velocity: sequence[float64] = field(default_factory=list)
    effort: sequence[float64] = field(default_factory=list)


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    """sensor_msgs/Image."""

    header: Header = field(default_factory=Header)
    height: uint32 = 0
    width: uint32 = 0
    encoding: str = "rgb8"
    is_bigendian: uint8 = 0
    step: uint32 = 0
    data: sequence[uint8] = field(default_factory=list)


@dataclass
class CompressedImage(IdlStruct, typename="sensor_msgs::msg::dds_::CompressedImage_"):
    """sensor_msgs/CompressedImage."""

    header: Header = field(default_factory=Header)
    format: str = "jpeg"
    data: sequence[uint8] = field(default_factory=list)


@dataclass
class JointTrajectoryPoint(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectoryPoint_"):
    """trajectory_msgs/JointTrajectoryPoint."""

    positions: sequence[float64] = field(default_factory=list)
    velocities: sequence[float64] = field(default_factory=list)
    accelerations: sequence[float64] = field(default_factory=list)
    effort: sequence[float64] = field(default_factory=list)
    time_from_start: Duration = field(default_factory=Duration)


@dataclass
class JointTrajectory(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectory_"):
    """trajectory_msgs/JointTrajectory."""

    header: Header = field(default_factory=Header)
    joint_names: sequence[str] = field(default_factory=list)
    points: sequence[JointTrajectoryPoint] = field(default_factory=list)


@dataclass
class Impostor(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    """Bytes that say they are a JointState."""

    data: sequence[uint8] = field(default_factory=list)


def image_message(pixels, encoding="rgb8", padding=0):
    """uint8 [H, W, 3] as an Image, its rows padded."""
    height, width, _ = pixels.shape
    rows = pixels if encoding == "rgb8" else pixels[:, :, ::-1]
    data = b"".join(row.tobytes() + b"\xff" * padding for row in rows)
    return Image(height=height, width=width, encoding=encoding, step=3 * width + padding, data=data)


def why_not():
    """Why DDS cannot be used on this machine at all; None when it can."""
    os.environ["CYCLONEDDS_URI"] = LOOPBACK
    try:
        DomainParticipant(my_domain())
    except DDSException as error:
        return f"DDS cannot open a socket here: {error}"
    return None


def my_domain():
    """A domain that two test runs on this machine hardly share."""
    return 60 + os.getpid() % 160


class Peer:
    """A participant that reads and writes ROS topics."""

    def __init__(self, domain):
        os.environ["CYCLONEDDS_URI"] = LOOPBACK
        self.participant = DomainParticipant(domain)
        self.topics = {}

    def writer(self, topic, kind, how=RELIABLE):
        """A publisher."""
        return DataWriter(self.participant, self._topic(topic, kind), Qos(how, Policy.History.KeepLast(10)))

    def reader(self, topic, kind, depth=2000):
        """A subscriber that loses nothing."""
        return DataReader(self.participant, self._topic(topic, kind), Qos(RELIABLE, Policy.History.KeepLast(depth)))

    def _topic(self, name, kind):
        if name not in self.topics:
            self.topics[name] = Topic(self.participant, name, kind)
        return self.topics[name]

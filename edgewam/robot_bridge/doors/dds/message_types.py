"""The ROS 2 messages that the ros2 door exchanges, as DDS types with the names and fields that rmw gives them.

A ROS 2 topic `/joint_states` of sensor_msgs/msg/JointState is the DDS topic `rt/joint_states` of type
`sensor_msgs::msg::dds_::JointState_`; the field order is the wire format (facts/robot.md section 5).
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from edgewam.core.errors import require
from edgewam.robot_bridge.doors.dds import cdr


@cache
def message_types() -> SimpleNamespace:
    """JointState, Image, CompressedImage, JointTrajectory and what they are made of; MissingExtraError without cyclonedds."""
    make = require("cyclonedds.idl", extra="ros2").make_idl_struct
    idl = require("cyclonedds.idl.types", extra="ros2")
    texts, numbers, octets = idl.sequence[str], idl.sequence[idl.float64], idl.sequence[idl.uint8]

    def message(package: str, kind: str, /, **fields: object) -> Any:
        return make(f"{kind}_", f"{package}::msg::dds_::{kind}_", fields)

    time = message("builtin_interfaces", "Time", sec=idl.int32, nanosec=idl.uint32)
    duration = message("builtin_interfaces", "Duration", sec=idl.int32, nanosec=idl.uint32)
    header = message("std_msgs", "Header", stamp=time, frame_id=str)
    vectors = ("positions", "velocities", "accelerations", "effort")
    point = message("trajectory_msgs", "JointTrajectoryPoint", **dict.fromkeys(vectors, numbers), time_from_start=duration)
    image = message(
        "sensor_msgs", "Image", header=header, height=idl.uint32, width=idl.uint32, encoding=str, is_bigendian=idl.uint8,
        step=idl.uint32, data=octets,
    )  # fmt: skip
    compressed = message("sensor_msgs", "CompressedImage", header=header, format=str, data=octets)
    # what a reader of the topic calls; it gets all of a sample's bytes
    image.deserialize, compressed.deserialize = cdr.image, cdr.compressed_image
    return SimpleNamespace(
        Time=time,
        Duration=duration,
        Header=header,
        Bool=message("std_msgs", "Bool", data=bool),
        String=message("std_msgs", "String", data=str),
        JointState=message(
            "sensor_msgs", "JointState", header=header, name=texts, position=numbers, velocity=numbers, effort=numbers
        ),
        Image=image,
        CompressedImage=compressed,
        JointTrajectoryPoint=point,
        JointTrajectory=message(
            "trajectory_msgs", "JointTrajectory", header=header, joint_names=texts, points=idl.sequence[point]
        ),
    )  # fmt: skip

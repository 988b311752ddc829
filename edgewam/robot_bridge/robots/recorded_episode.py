"""An episode of a flight recording (`edgewam run --record`) as what the robot `replay` plays.

States and commands are those of the control ticks, pictures the very pixels that the policy saw; a tick that was missed repeats
the one before it.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgewam.core.errors import ArtifactError
from edgewam.robot_bridge.recorder.claims import LIMITS, check_limits, picture_file
from edgewam.robot_bridge.recorder.reader import Recording
from edgewam.robot_bridge.robots.episode_file import MAX_BYTES, Episode

MAX_GAP = 10_000  # ticks: 200 s at 50 Hz without a command are no gap that could be played over


def load_recorded(path: Path, number: int = 0) -> Episode:
    """Episode `number` of a recording, from the first control tick on that has both a command and a frame.

    Raises:
        ArtifactError: no such file, or it holds no such episode, or one that is too large to play or full of gaps.
    """
    recording = Recording(path)
    config: Mapping[str, Any] = recording.run["config"]
    check_limits(path, recording.run, LIMITS[:3])
    every, names = int(config.get("camera_every", 1)), list(recording.camera_shapes)
    rows: dict[int, Any] = {}
    frames: dict[int, Mapping[str, bytes]] = {}  # by camera period
    num_bytes = 0
    for stream, item in recording.entries():
        if stream == "tick" and int(item["episode"]) == number:
            rows[int(item["tick"])] = item
        elif stream == "frame" and int(item.header["episode"]) == number and set(item.messages) == set(names):
            frames[int(item.header["tick"]) // every] = item.messages
            num_bytes += item.num_bytes
            if num_bytes > MAX_BYTES:
                raise ArtifactError(
                    f"Episode {number} of '{path}' has over {MAX_BYTES >> 30} GiB of pictures. Give a shorter one."
                )
    # a picture belongs to the first tick of its period
    first = every * (max(min(frames, default=0), -(-min(rows, default=0) // every)))
    last = max(rows, default=-1)
    if not frames or first > last:
        raise ArtifactError(f"'{path}' holds no episode {number} with commands and frames. Give another recording.")
    if last - first >= len(rows) + MAX_GAP:
        raise ArtifactError(f"Episode {number} of '{path}' has {len(rows)} ticks from {first} to {last}: too many are missing.")
    ticks = _filled(rows, range(first, last + 1))
    shown = _filled(frames, range(first // every, last // every + 1))
    episode = Episode(
        robot=str(config["robot"]),
        prompt=str(config["prompt"]),
        control_hz=float(config["control_hz"]),
        camera_hz=float(config["control_hz"]) / every,
        joint_names=tuple(config.get("joint_names") or (f"joint_{j}" for j in range(recording.num_joints))),
        states=np.stack([row["state"] for row in ticks]).astype(np.float32),
        actions=np.stack([row["command"] for row in ticks]).astype(np.float32),
        pictures={name: [picture_file(messages[name]) for messages in shown] for name in names},
        lower=np.array(config["lower"]),
        upper=np.array(config["upper"]),
        max_velocity=np.array(config["max_velocity"]),
    )
    try:
        episode.spec("replay")
    except (AssertionError, ValueError, OSError) as error:
        raise ArtifactError(f"'{path}' cannot be played: {error or 'its limits contradict each other'}.") from error
    return episode


def _filled(known: Mapping[int, Any], numbers: range) -> list[Any]:
    """What is known of each number, or of the newest one before it; there must be one before the first."""
    order = sorted(known)
    return [known[order[bisect.bisect_right(order, number) - 1]] for number in numbers]

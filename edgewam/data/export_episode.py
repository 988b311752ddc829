"""Write one episode of a LeRobot dataset as an episode file that the robot `replay` plays.

    python -m edgewam.data.export_episode DATASET OUT.npz [--episode N]

Limits come from the robot plugin that the dataset names, if there is one; otherwise from the recorded motion and a margin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgewam.core import plugins
from edgewam.core.errors import ContractError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.schema import STATE
from edgewam.robot_bridge.robots.episode_file import Episode, encode, limits_of

_BATCH = 64  # frames decoded at a time: 60 MB a camera at 480x640


def export_episode(dataset: Dataset, number: int) -> Episode:
    """Episode `number` with all its cameras, one picture per delivery of the real cameras.

    Raises:
        ContractError: no such episode, or states and actions of different width.
    """
    states, actions = dataset.states(number), dataset.actions(number)
    if states.shape != actions.shape:
        raise ContractError(
            f"Episode {number} has states {list(states.shape)} and actions {list(actions.shape)}; "
            "replay compares them joint by joint. Export a dataset whose actions are joint targets."
        )
    robot_type = str(dataset.index.info.get("robot_type"))
    spec = plugins.load("robot", robot_type).SPEC if robot_type in plugins.names("robot") else None
    if spec is not None and spec.num_joints == states.shape[1]:
        limits = (spec.lower, spec.upper, spec.max_velocity)
    else:
        limits = limits_of(states, actions, dataset.fps)
    steps = np.arange(0, len(states), dataset.fps // dataset.camera_hz)
    pictures = {
        camera: [
            file
            for start in range(0, len(steps), _BATCH)
            for file in encode(dataset.frames(number, camera, steps[start : start + _BATCH]))
        ]
        for camera in dataset.cameras
    }
    names = dataset.features[STATE].get("names") or [f"joint_{j}" for j in range(states.shape[1])]
    return Episode(
        robot_type,
        dataset.task(number),
        float(dataset.fps),
        float(dataset.camera_hz),
        tuple(names),
        states,
        actions,
        pictures,
        *limits,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 and one sentence on stderr for an error that is the user's."""
    parser = argparse.ArgumentParser(prog="python -m edgewam.data.export_episode", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="dataset directory (LeRobot v3.0)")
    parser.add_argument("out", type=Path, help="episode file to write")
    parser.add_argument("--episode", type=int, default=0, help="number of the episode, from 0")
    options = parser.parse_args(arguments)
    try:
        episode = export_episode(Dataset.open(options.dataset), options.episode)
        episode.save(options.out)
    except EdgewamError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(episode)} ticks, {len(episode.pictures)} cameras -> {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

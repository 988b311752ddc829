"""The scripted experts on the simulated ALOHA, adapted to dataset episodes: held images are repeated to one per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewam.data.schema import Episode, Schema
from edgewam.robot_bridge.robots import aloha_demos, aloha_sim
from edgewam.robot_bridge.robots.aloha_task import load_task


def open_demonstrator(task: str | None, style: str | None, noise_rad: float) -> AlohaDemonstrator:
    """Start a simulator with cameras; EdgewamError for an unknown task or style."""
    name = aloha_sim.DEFAULT_TASK if task is None else task
    found = load_task(name)
    style = found.styles[0] if style is None else style
    found.check_style(style)
    spec = aloha_sim.describe(name)
    schema = Schema(
        robot_type=spec.name,
        fps=round(spec.control_hz),
        camera_hz=round(spec.camera_hz),
        cameras={name: shape[:2] for name, shape in spec.camera_shapes.items()},
        joint_names=tuple(spec.joint_names),
        environment_names=found.pose_names,
    )
    return AlohaDemonstrator(schema, name, style, noise_rad, aloha_sim.make(task=name))


@dataclass
class AlohaDemonstrator:
    """`Demonstrator` over one simulator."""

    schema: Schema
    task: str
    style: str
    noise_rad: float
    simulator: aloha_sim.AlohaSim

    def record(self, seed: int) -> Episode | None:
        """Let the expert act in the scene of `seed`; None unless it succeeds strictly and keeps its success to the end."""
        shown = aloha_demos.rollout(self.simulator, seed, self.style, self.noise_rad)
        if not shown.strict_success:
            return None
        num_steps = len(shown.states)
        images = {name: np.repeat(frames, shown.image_every, axis=0)[:num_steps] for name, frames in shown.images.items()}
        return Episode(shown.states, shown.actions, images, shown.prompt, shown.poses)

    def close(self) -> None:
        """Close the simulator's renderer."""
        self.simulator.close()

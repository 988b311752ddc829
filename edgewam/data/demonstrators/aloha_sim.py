"""The scripted experts, or a policy, on the simulated ALOHA, as dataset episodes: held images are repeated to one per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewam.data.schema import Episode, Schema
from edgewam.robot_bridge.policy import Policy
from edgewam.robot_bridge.robots import aloha_demos, aloha_sim
from edgewam.robot_bridge.robots.aloha_task import load_task


def open_demonstrator(task: str | None, style: str | None, noise_rad: float, policy: Policy | None = None) -> AlohaDemonstrator:
    """Start a simulator with cameras; EdgewamError for an unknown task or style."""
    name = aloha_sim.DEFAULT_TASK if task is None else task
    found = load_task(name)
    if policy is not None:
        style = aloha_demos.POLICY_STYLE
    else:
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
    return AlohaDemonstrator(schema, name, style, noise_rad, aloha_sim.make(task=name), policy)


@dataclass
class AlohaDemonstrator:
    """`Demonstrator` over one simulator."""

    schema: Schema
    task: str
    style: str
    noise_rad: float
    simulator: aloha_sim.AlohaSim
    policy: Policy | None = None

    def record(self, seed: int) -> Episode | None:
        """Let the expert act in the scene of `seed`; None unless it succeeds strictly and keeps its success to the end.

        A policy's episode is kept in any case.
        """
        if self.policy is not None:
            shown = aloha_demos.play(self.simulator, self.policy, seed)
        else:
            shown = aloha_demos.rollout(self.simulator, seed, self.style, self.noise_rad)
            if not shown.strict_success:
                return None
        num_steps = len(shown.states)
        images = {name: np.repeat(frames, shown.image_every, axis=0)[:num_steps] for name, frames in shown.images.items()}
        return Episode(shown.states, shown.actions, images, shown.prompt, shown.poses)

    def close(self) -> None:
        """Close the simulator's renderer."""
        self.simulator.close()

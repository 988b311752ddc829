"""The scripted expert on the simulated ALOHA, adapted to dataset episodes: held images are repeated to one per step."""

from __future__ import annotations

import typing
from dataclasses import dataclass

import numpy as np

from edgewam.core.errors import EdgewamError
from edgewam.data.schema import Episode, Schema
from edgewam.robot_bridge.robots import aloha_demos, aloha_expert, aloha_sim

CUBE_NAMES = ("cube_x", "cube_y", "cube_z", "cube_qw", "cube_qx", "cube_qy", "cube_qz")


def open_demonstrator(style: str, noise_rad: float) -> AlohaDemonstrator:
    """Start a simulator with cameras; EdgewamError for an unknown style."""
    if style not in typing.get_args(aloha_expert.Style):
        styles = ", ".join(typing.get_args(aloha_expert.Style))
        raise EdgewamError(f"Unknown expert style '{style}'. Available: {styles}.")
    spec = aloha_sim.SPEC
    schema = Schema(
        robot_type=spec.name,
        fps=round(spec.control_hz),
        camera_hz=round(spec.camera_hz),
        cameras={name: shape[:2] for name, shape in spec.camera_shapes.items()},
        joint_names=tuple(spec.joint_names),
        environment_names=CUBE_NAMES,
    )
    return AlohaDemonstrator(schema, aloha_sim.make(), typing.cast(aloha_expert.Style, style), noise_rad)


@dataclass
class AlohaDemonstrator:
    """`Demonstrator` over one simulator."""

    schema: Schema
    simulator: aloha_sim.AlohaSim
    style: aloha_expert.Style
    noise_rad: float

    def record(self, seed: int) -> Episode | None:
        """Let the expert act in the scene of `seed`; None unless the hand-over is sustained to the end."""
        shown = aloha_demos.rollout(self.simulator, seed, self.style, self.noise_rad)
        if not shown.strict_success:
            return None
        num_steps = len(shown.states)
        images = {name: np.repeat(frames, shown.image_every, axis=0)[:num_steps] for name, frames in shown.images.items()}
        return Episode(shown.states, shown.actions, images, shown.prompt, shown.cube_poses)

    def close(self) -> None:
        """Close the simulator's renderer."""
        self.simulator.close()

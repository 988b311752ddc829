"""The scripted ALOHA expert as a policy: it reads the cube from the seed, so it judges the bridge and never a policy."""

from __future__ import annotations

import numpy as np

from edgewam.robot_bridge.policy import ReplayPolicy
from edgewam.robot_bridge.robots import aloha_expert, aloha_scene


def expert() -> ReplayPolicy:
    """280 targets per seed, sixteen at a time."""
    return ReplayPolicy(lambda seed: aloha_expert.plan(aloha_scene.sample_cube(seed), np.random.default_rng([seed, 1])))

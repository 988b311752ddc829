"""The scripted ALOHA experts as policies: they read the scene from the seed, so they judge the bridge and never a policy."""

from __future__ import annotations

import numpy as np

from edgewam.robot_bridge.policy import ReplayPolicy
from edgewam.robot_bridge.robots.aloha_task import load_task


def expert(task: str = "transfer_cube") -> ReplayPolicy:
    """280 targets per seed, sixteen at a time."""
    found = load_task(task)
    return ReplayPolicy(lambda seed: found.plan(found.sample(seed), np.random.default_rng([seed, 1]), "plain").targets)

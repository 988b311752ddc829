"""Fast-WAM on LIBERO: two cameras side by side, seven actions, numbers scaled by their extremes (facts/aha_wam.md 9)."""

from __future__ import annotations

from dataclasses import replace

from edgewam.recipes.full_size import PolicyRecipe
from edgewam.recipes.robotwin import robotwin_fastwam


def libero_fastwam() -> PolicyRecipe:
    """Two 224x224 cameras on a canvas of 224x448; a state of 8 numbers; min/max normalisation."""
    from edgewam.data.windows import libero_layout
    from edgewam.models.fast_wam import libero

    policy = robotwin_fastwam()
    return replace(
        policy,
        model=libero(),
        layout=libero_layout(),
        composition="side_by_side",
        normalisation="min/max",
        # twice the epochs of RoboTwin: the public task configuration (libero_uncond_2cam224_1e-4)
        schedule=replace(policy.schedule, epochs=10),
    )

"""Recipes of a user: the released ones, derived, for networks so small that they train in seconds."""

from dataclasses import replace

from edgewam.recipes.full_size import PolicyRecipe, Schedule, StudentRecipe
from edgewam.recipes.robotwin import robotwin_ahawam, robotwin_ahawam_ode
from tests.training import tiny


def policy() -> PolicyRecipe:
    schedule = Schedule(batch_per_rank=3, lr=1e-3, epochs=1)
    return replace(robotwin_ahawam(), model=tiny.MODEL, layout=tiny.LAYOUT, schedule=schedule, start_stride=4)


def student() -> StudentRecipe:
    schedule = Schedule(batch_per_rank=2, lr=1e-3, accumulate=2)
    return replace(robotwin_ahawam_ode(), teacher=policy(), schedule=schedule, teacher_steps=4, captured=(0, 1, 4))


def no_recipe() -> int:
    return 7


number = 7

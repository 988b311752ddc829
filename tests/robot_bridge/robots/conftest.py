"""Simulators without pictures for the tests that need only physics."""

import pytest


@pytest.fixture(scope="session")
def sims():
    """Task name -> a simulator of it, made once."""
    pytest.importorskip("mujoco", reason="needs edgewam[sim]")
    from edgewam.robot_bridge.robots import aloha_sim

    made = {}

    def simulator(task):
        if task not in made:
            made[task] = aloha_sim.make(task=task, render=False)
        return made[task]

    yield simulator
    for one in made.values():
        one.close()


@pytest.fixture(scope="session")
def sim(sims):
    """The simulator of the default task."""
    return sims("transfer_cube")

"""One simulator without pictures for the tests that need only physics."""

import pytest


@pytest.fixture(scope="session")
def sim():
    pytest.importorskip("mujoco", reason="needs edgewam[sim]")
    from edgewam.robot_bridge.robots import aloha_sim

    simulator = aloha_sim.make(render=False)
    yield simulator
    simulator.close()

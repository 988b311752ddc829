"""The simulated robot's side of the bridge, tick by tick, in this process."""

from __future__ import annotations

import types

import pytest

from edgewam.robot_bridge.driver_simulator import SimulatorDriver
from edgewam.robot_bridge.wires import Wires
from tests.robot_bridge import fakes

CONFIG = {"control_hz": 50.0, "driver_lead_s": 0.004, "seed": 7, "episode_ticks": 4, "lease_ticks": 5, "orphan_s": 2.0}


@pytest.fixture
def driver():
    wires = Wires(2, fakes.SPEC.camera_shapes)
    made = SimulatorDriver(CONFIG, types.SimpleNamespace(wires=wires), fakes.make(render=False))
    made._robot.reset(7)
    yield made, wires
    wires.close()


def send(wires, target, episode):
    value = wires["command"].blank()
    value["target"], value["episode"] = target, episode
    wires["command"].write(value)


def joints(wires):
    return wires["state"].read()[1]["state"]


def test_a_command_acts_on_the_next_tick(driver):
    made, wires = driver
    send(wires, [0.3, 0.6], 0)
    made._apply_command()
    made._advance()
    made._publish()
    assert joints(wires) == pytest.approx([0.3, 0.6])


def test_a_command_of_another_episode_is_ignored(driver):
    made, wires = driver
    send(wires, [0.3, 0.6], 1)
    made._apply_command()
    made._advance()
    made._publish()
    assert joints(wires) == pytest.approx([0.0, 0.5])


def test_an_episode_that_is_over_is_put_back_at_the_next_tick_with_the_next_seed(driver):
    made, wires = driver
    send(wires, [0.3, 0.6], 0)
    made._apply_command()
    for _ in range(4):
        made._advance()
    made._publish()
    state = wires["state"].read()[1]
    assert (int(state["episode"]), int(state["tick"]), int(state["episode_tick"])) == (0, 4, 4)
    made._advance()
    made._publish()
    state = wires["state"].read()[1]
    assert (int(state["episode"]), int(state["tick"]), int(state["episode_tick"])) == (1, 5, 0)
    assert joints(wires) == pytest.approx([0.0, 0.5])
    assert made._outcomes == [{"seed": 7, "ticks": 4, "reward": 0, "success_tick": None, "strict_success": False}]
    physics = wires["physics"].read()[1]
    assert int(physics["length"]) == 4 and physics["physics"][3] == 0.5, "seed 8 has its goal on the right"

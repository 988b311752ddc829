"""The robot's side of the bridge, simulated or real, tick by tick, in this process."""

from __future__ import annotations

import threading
import types

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge import clock
from edgewam.robot_bridge.clock import NS, now_ns
from edgewam.robot_bridge.processes import driver_process, driver_robot, driver_simulator, io_process
from edgewam.robot_bridge.processes.driver_robot import RobotDriver
from edgewam.robot_bridge.processes.driver_simulator import SimulatorDriver
from edgewam.robot_bridge.records.wires import Wires
from tests.robot_bridge import bench, fake_arm, fakes

CONFIG = {"control_hz": 50.0, "driver_lead_s": 0.004, "seed": 7, "episode_ticks": 4, "lease_ticks": 5, "orphan_s": 2.0}


@pytest.fixture
def driver():
    wires = Wires(2, fakes.SPEC.camera_shapes)
    made = SimulatorDriver(CONFIG, types.SimpleNamespace(wires=wires, epoch_ns=now_ns()), fakes.make(render=False))
    made._robot.reset(7)
    yield made, wires
    wires.close()


def send(wires, target, episode, tick=0, is_live=True):
    value = wires["command"].blank()
    value["target"], value["episode"], value["tick"], value["is_live"] = target, episode, tick, is_live
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


def test_the_state_says_which_command_the_robot_has_got(driver):
    made, wires = driver
    made._publish()
    assert wires["state"].read()[1]["applied_tick"] == -1
    send(wires, [0.3, 0.6], 0, tick=12)
    made._apply_command()
    made._publish()
    state = wires["state"].read()[1]
    assert state["applied_tick"] == 12 and 0 < state["applied_ns"] <= state["t_ns"]
    send(wires, [0.3, 0.6], 1, tick=13)  # of another episode: not handed on
    made._apply_command()
    made._publish()
    assert wires["state"].read()[1]["applied_tick"] == 12


def test_more_episodes_than_are_listed_are_counted(driver, monkeypatch):
    monkeypatch.setattr(driver_simulator, "MAX_OUTCOMES", 2)
    made, _ = driver
    for _ in range(5 * 5):
        made._advance()
    results = made._results({})
    assert len(results["episodes"]) == 2 and results["num_episodes"] == 5


class FakeLink:
    """What a driver needs of its parent."""

    def __init__(self, wires):
        self.wires, self.is_stopping = wires, False
        self.epoch_ns = now_ns() + 20_000_000
        self.control = {"is_armed": 1}

    def report(self, **kwargs):
        """Nobody looks."""


@pytest.fixture
def arm():
    wires = Wires(2, fake_arm.SPEC.camera_shapes)
    robot, link = fake_arm.FakeArm(), FakeLink(wires)
    yield RobotDriver({**CONFIG, "robot": "fake_arm"}, link, robot), robot, link, wires
    wires.close()


def test_a_real_robot_gets_a_command_once_and_its_state_is_published(arm):
    made, robot, _, wires = arm
    made._look()
    assert joints(wires) == pytest.approx([0.1, 0.5])
    send(wires, [0.3, 0.6], 0, tick=5)
    made._serve_commands()
    made._serve_commands()
    made._look()
    state = wires["state"].read()[1]
    assert robot.calls.count("command") == 1 and state["state"] == pytest.approx([0.3, 0.6])
    assert state["applied_tick"] == 5 and state["episode"] == 0 and state["t_ns"] <= now_ns()


def test_a_real_robot_is_told_to_stop_once_when_commands_stop_coming_and_may_go_on_later(arm, monkeypatch):
    made, robot, _, wires = arm
    monkeypatch.setattr(driver_robot, "now_ns", lambda: clock[0])
    clock = [1_000_000_000]
    made._serve_commands()
    assert robot.calls == [], "a robot that was never moved is left alone"
    send(wires, [0.3, 0.6], 0)
    made._serve_commands()
    clock[0] += 100_000_000
    made._serve_commands()
    assert "stop" not in robot.calls, "the lease is 5 ticks of 20 ms"
    clock[0] += 1
    made._serve_commands()
    made._serve_commands()
    assert robot.calls == ["command", "stop"] and made._results({})["lease_stops"] == 1
    send(wires, [0.2, 0.6], 0)
    made._serve_commands()
    assert robot.calls == ["command", "stop", "command"]


def test_a_robot_that_does_not_stop_is_told_so_once_a_tick_and_given_half_a_second(arm, monkeypatch):
    made, robot, _, wires = arm
    monkeypatch.setattr(driver_robot, "now_ns", lambda: clock[0])
    clock = [1_000_000_000]
    send(wires, [0.3, 0.6], 0)
    made._serve_commands()
    robot.fault = "stop"
    clock[0] += 100_000_001
    for _ in range(40 * 24):  # a look every 0.5 ms
        made._serve_commands()
        clock[0] += 500_000
    assert robot.calls.count("stop") == 24
    robot.fault = ""
    clock[0] += 20_000_000
    made._serve_commands()
    assert made._results({})["lease_stops"] == 1 and made._results({})["robot_errors"] == 24


@pytest.mark.parametrize("faults", [0, 3, 9])
def test_the_last_stop_is_tried_several_times(monkeypatch, faults):
    monkeypatch.setattr(driver_process, "sleep_until", lambda deadline: None)
    robot, left = fake_arm.FakeArm(), [faults]

    def stop():
        robot.calls.append("stop")
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("bus error")

    robot.stop = stop
    if faults == 9:
        with pytest.raises(EdgewamError, match="'x' could not be told to stop: bus error"):
            driver_process.stop(robot, "x")
    else:
        driver_process.stop(robot, "x")
    assert len(robot.calls) == min(faults + 1, 5)


@pytest.mark.parametrize("is_armed", [False, True])
def test_a_robot_that_was_only_looked_at_is_sent_nothing_to_the_end(monkeypatch, is_armed):
    monkeypatch.setattr(driver_robot, "become_real_time", lambda priority: {})
    robot, wires = fake_arm.FakeArm(), Wires(2, fake_arm.SPEC.camera_shapes)
    monkeypatch.setattr(fake_arm, "make", lambda render: robot)
    link = FakeLink(wires)
    link.is_stopping, link.control["is_armed"] = True, is_armed
    link.epoch_ns = now_ns()
    send(wires, [0.1, 0.5], 0, is_live=is_armed)
    driver_process.run({**CONFIG, "robot": fake_arm.ROBOT, "robot_options": {}}, link)
    wires.close()
    moved = ["command", "stop"] if is_armed else []
    assert [call for call in dict.fromkeys(robot.calls) if call != "observe"] == [*moved, "close"]


def test_a_real_time_process_collects_its_garbage_once_a_second(monkeypatch):
    now, collected = [5 * 10**9], []
    monkeypatch.setattr(clock, "now_ns", lambda: now[0])
    monkeypatch.setattr(clock.gc, "collect", lambda: collected.append(now[0]))
    sweep = clock.Sweep()
    for _ in range(200):
        sweep.if_due()
        now[0] += 20_000_000
    assert collected == [5 * 10**9, 6 * 10**9, 7 * 10**9, 8 * 10**9]


def test_a_disarmed_robot_is_sent_nothing_but_the_end_of_its_braking(arm):
    made, robot, link, wires = arm
    link.control["is_armed"] = 0
    send(wires, [0.1, 0.5], 0)
    made._serve_commands()
    assert robot.calls == [], "it may be moved by hand, and its torque be off"
    link.control["is_armed"] = 1
    send(wires, [0.1, 0.5], 0)
    made._serve_commands()
    link.control["is_armed"] = 0
    for target in (0.12, 0.13, 0.13, 0.13):
        send(wires, [target, 0.5], 0)
        made._serve_commands()
    assert robot.calls == ["command"] * 3 and robot.joints[0] == 0.13


def test_a_pose_that_io_held_before_it_saw_the_arming_never_reaches_an_arm_that_was_moved_by_hand(arm):
    made, robot, link, wires = arm
    link.control["is_armed"] = 0
    robot.joints = np.array([0.9, 0.5])  # by hand
    link.control["is_armed"] = 1  # between io's look at the arming and ours
    send(wires, [0.1, 0.5], 0, is_live=False)
    made._serve_commands()
    assert robot.calls == []


def test_arming_between_the_tick_of_io_and_the_look_of_the_driver_does_not_move_an_arm_that_was_moved_by_hand(arm):
    made, robot, link, wires = arm
    link.is_orphan, link.is_quitting = False, False
    link.control = wires["control"].blank()
    link.epoch_ns = now_ns()
    io = io_process._Loop({**bench.CONFIG, "control_hz": 50.0}, link)

    def tick(number):
        made._look()
        io.tick(number, 0, now_ns(), False, False)

    tick(0)
    made._serve_commands()
    robot.joints = np.array([0.9, 0.5])  # by hand
    tick(1)
    assert wires["command"].read()[1]["target"][0] == pytest.approx(0.1), "io still holds the old pose"
    link.control["is_armed"] = 1
    made._serve_commands()
    assert robot.joints[0] == 0.9 and "command" not in robot.calls
    tick(2)
    made._serve_commands()
    assert robot.calls.count("command") == 1 and robot.joints[0] == pytest.approx(0.9)


def test_a_command_that_is_older_than_its_lease_is_refused_and_renews_nothing(arm):
    made, robot, link, wires = arm
    period_ns = 20_000_000
    link.epoch_ns = now_ns() - 100 * period_ns
    send(wires, [0.3, 0.6], 0, tick=94)  # io or this process was stopped for six ticks, and the lease is five
    made._serve_commands()
    assert robot.calls == [] and made._results({})["old_commands"] == 1
    send(wires, [0.3, 0.6], 0, tick=97)
    made._serve_commands()
    assert robot.calls == ["command"] and made._results({})["old_commands"] == 1


def test_a_robot_may_write_into_the_command_it_gets(arm):
    made, robot, link, wires = arm
    got = []

    def command(target):
        target *= 100.0  # to the motors' units, in place
        got.append(target.tolist())

    robot.command = command
    for _ in range(2):
        send(wires, [0.3, 0.6], 0)
        made._serve_commands()
    link.control["is_armed"] = 0
    send(wires, [0.3, 0.6], 0)
    made._serve_commands()
    assert got == [[30.0, 60.0]] * 2 and made._results({})["robot_errors"] == 0


def test_a_simulator_refuses_an_old_command_too(driver):
    made, wires = driver
    made._link.epoch_ns = now_ns() - 10**9
    send(wires, [0.3, 0.6], 0, tick=3)
    made._apply_command()
    made._advance()
    made._publish()
    assert joints(wires) == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("fault", ["observe", "command"])
def test_a_real_robot_that_raises_is_tried_again_and_counted_and_given_up_in_its_own_words(arm, fault):
    made, robot, _, wires = arm
    made._look()
    before = wires["state"].read()[0]
    robot.fault = fault
    for tick in range(24):
        send(wires, [0.3, 0.6], 0, tick=tick)
        made._serve_commands()
        made._look()
    newest = wires["state"].read()
    assert (newest[0] == before) == (fault == "observe"), "what could not be read is not published"
    assert newest[1]["applied_tick"] == -1
    assert made._results({})["robot_errors"] == 24
    send(wires, [0.3, 0.6], 0, tick=24)
    with pytest.raises(EdgewamError, match=f"'fake_arm' failed to {fault} 25 times in a row, at last: OSError: bus error"):
        made._serve_commands()
        made._look()


def test_errors_of_a_real_robot_that_are_not_in_a_row_end_nothing(arm):
    made, robot, _, _ = arm
    for _ in range(30):
        for robot.fault in ("observe", ""):
            made._look()
    assert made._results({})["robot_errors"] == 30


def test_a_state_of_another_size_is_an_error_of_the_robot(arm):
    made, robot, _, wires = arm
    robot.joints = np.zeros(3)
    made._look()
    assert wires["state"].read() is None and "shape [3]" in made._results({})["last_robot_error"]


def test_a_driver_leaves_when_asked_and_no_more_commands_come(arm, monkeypatch):
    monkeypatch.setattr(driver_robot, "become_real_time", lambda priority: {})  # pytest is not to be
    made, robot, link, wires = arm
    made._inbox._lease_ns = made._lease_ns = NS  # two busy cores may stop a thread for longer than five ticks
    begun, end = threading.Event(), threading.Event()

    link.epoch_ns = now_ns()

    def brake():
        for step in range(15):
            send(wires, [0.01 * step, 0.5], 0, tick=(now_ns() - link.epoch_ns) // 20_000_000)
            begun.set()
            end.wait(0.02)

    sender = threading.Thread(target=brake)
    sender.start()
    begun.wait()  # a thread may start late, and a driver without commands leaves at once
    link.is_stopping = True
    made.run()
    sender.join()
    assert robot.joints[0] == pytest.approx(0.14), "the last command of the braking ramp arrived"
    assert "reset" not in robot.calls

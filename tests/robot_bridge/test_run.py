"""The bridge as a whole, with real processes: it keeps its clock, survives its engine and leaves nothing behind.

Runs on noisy machines: counts and safety are asserted, wall-clock times only loosely.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bridge import is_alive, wait_until_gone
from edgewam.core.errors import EdgewamError, PluginError
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.processes import supervisor
from edgewam.robot_bridge.processes.local_control import ControlServer, ask, runs
from edgewam.robot_bridge.run import Interrupted, RunReport, RunSettings, run
from tests.robot_bridge import fake_arm, fakes
from tests.robot_bridge.faults.judge import is_never_hurried
from tests.waiting import wait_for

PERIOD_NS = 20_000_000
FACTORY = "tests.robot_bridge.fakes."
ROOT = Path(__file__).parents[2]


@pytest.fixture
def logs(monkeypatch):
    """The logs of the runs of a test."""
    found = []

    class Keeping(supervisor.Tally):
        def __init__(self, *args):
            super().__init__(*args)
            self.kept = []
            found.append(self)

        def add(self, rows, lost=0):
            self.kept.append(rows)
            super().add(rows, lost)

    class Logs:
        def __getitem__(self, index):
            return np.concatenate(found[index].kept)

    monkeypatch.setattr(supervisor, "Tally", Keeping)
    return Logs()


def drive(policy, args=None, seconds=2.0, **kwargs):
    report = run(FACTORY + policy, args or {}, robot=fakes.ROBOT, seconds=seconds, **kwargs)
    check_sums(report)
    assert report.violations == report.violations_in_log == 0
    return report


def check_sums(report: RunReport):
    assert report.ticks == report.sent + report.missed + report.silent
    assert report.sent == report.ready + report.run + report.held + report.stopped
    assert report.held == sum(report.held_by_cause.values())
    assert report.rejected == sum(report.rejected_by_cause.values())
    assert report.chunks_received == report.chunks_applied + report.chunks_superseded + report.rejected
    assert report.clamped <= sum(report.clamped_by_joint.values()) or not report.clamped
    assert report.observation_to_command_ms.n == report.chunks_applied
    assert report.command_age_ms.n == report.run


def follows(log):
    """Whether the arm follows chunks at the end: within the last half second, because two busy cores may hold it for a moment."""
    return bool((log["mode"][-25:] == Mode.RUN).any())


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def when_running(action, role, after_s, pids):
    """Do something to one child some time after the run has begun."""
    timer = threading.Timer(after_s, lambda: action(pids[role]))
    timer.start()


def test_an_undisturbed_run_counts_to_its_end(logs):
    report = drive("slow_wave", seconds=2.5)
    assert report.ticks == 125 and report.is_complete and not report.faults
    assert follows(logs[0]) and report.rejected == report.stopped == 0
    assert report.run >= 80 and report.chunks_applied >= 8 and report.clamped == 0
    assert report.num_strict_successes == 0 and report.frames >= 20
    log = logs[0]
    assert (log["deadline_ns"] - log["deadline_ns"][0] == (log["tick"] - log["tick"][0]) * PERIOD_NS).all(), "deadlines drift"
    assert (log["sent_ns"] >= log["deadline_ns"]).all()
    assert (np.diff(log["tick"]) >= 1).all()
    json.dumps(report.to_json(), allow_nan=False)


def test_commands_follow_the_chunks_by_time(logs):
    drive("slow_wave", seconds=2.0, settings=RunSettings(episode_ticks=10_000))
    log = logs[0]
    running = log[(log["mode"] == Mode.RUN) & (log["step_clamps"] == 0)]
    assert len(running) > 50
    expected = 0.4 * np.sin(2 * np.pi * running["tick"] / 200)
    np.testing.assert_allclose(running["command"][:, 0], expected, atol=1e-6)


def test_every_kind_of_bad_chunk_is_refused_and_the_run_recovers(logs):
    report = drive("faulty", {"fault": "all", "begin": 24, "end": 24 + 128}, seconds=5.5)  # the jumps led far away
    causes = report.rejected_by_cause
    assert causes.keys() >= {"shape", "dtype", "not_finite", "future", "expired", "stale"}, causes
    assert report.held > 0 and follows(logs[0]) and report.is_complete


def test_a_jump_is_refused_while_running():
    report = drive("faulty", {"fault": "jump", "begin": 24, "end": 48}, seconds=1.2)
    assert report.rejected_by_cause.get("jump", 0) >= 1


def test_targets_out_of_range_are_clamped_and_counted_by_joint(logs):
    report = drive("faulty", {"fault": "range", "begin": 24, "end": 40}, seconds=1.5)
    assert report.clamped_by_joint.get("gripper", 0) > 0 and "elbow" not in report.clamped_by_joint
    assert logs[0]["command"][:, 1].max() <= 1.0


def test_a_stalled_engine_is_held_and_then_followed_again(logs):
    report = drive("faulty", {"fault": "stall", "begin": 24, "end": 32}, seconds=3.0)
    assert report.held_by_cause["no_chunk"] >= 20
    assert follows(logs[0]) and report.engine_restarts == 0


def test_a_killed_engine_is_held_and_replaced(tmp_path, logs):
    arguments = {"fault": "die_once", "begin": 24, "end": 10_000, "marker": str(tmp_path / "died"), "restart_s": 1.0}
    report = drive("faulty", arguments, seconds=4.0)
    assert report.engine_restarts == 1 and report.held > 0 and report.is_complete
    assert report.faults == ["The engine process was ended by SIGKILL."]
    assert follows(logs[0]) and report.rejected == 0, "a new engine's chunks are new ones"


def test_an_engine_that_fails_again_and_again_ends_the_run_with_its_message():
    report = drive("faulty", {"fault": "raise", "begin": 24, "end": 10_000}, seconds=30.0)
    assert not report.is_complete and report.engine_restarts == RunSettings().max_restarts
    assert "RuntimeError: the engine is on fire" in report.faults[0] and len(report.faults) == 5
    assert report.faults[-1] == "The engine process failed too often within 60 s."
    assert report.held > 0 and report.ticks < 1500


def test_a_stopped_io_process_skips_ticks_and_never_bursts(logs):
    def pause(pid):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)

    report = drive("slow_wave", seconds=2.0, on_start=lambda pids: when_running(pause, "io", 0.8, pids))
    assert report.missed >= 14 and report.is_complete and follows(logs[0])
    assert np.diff(logs[0]["sent_ns"]).max() >= 280_000_000
    assert is_never_hurried(logs[0], PERIOD_NS)
    assert len(set(logs[0]["tick"].tolist())) == report.sent


def test_without_the_robot_s_driver_the_run_ends_and_says_so():
    begin = time.monotonic()
    report = drive("slow_wave", seconds=30.0, on_start=lambda pids: when_running(kill, "driver", 0.6, pids))
    assert time.monotonic() - begin < 20
    assert not report.is_complete and report.faults == ["The driver process was ended by SIGKILL."]
    assert 0 < report.ticks < 1500 and report.restarts == {}


def test_a_killed_camera_process_is_replaced_and_its_frames_go_on(logs):
    settings = RunSettings(max_camera_age_s=0.1)  # less than any Python takes to start
    report = drive("slow_wave", seconds=4.0, settings=settings, on_start=lambda pids: when_running(kill, "camera", 0.8, pids))
    assert report.is_complete and report.restarts == {"camera": 1} and report.engine_restarts == 0
    assert report.faults == ["The camera process was ended by SIGKILL."]
    assert report.held_by_cause["camera"] > 0 and follows(logs[0])
    assert report.transitions["RUN > HOLD camera"] >= 1


def test_a_hanging_engine_is_killed_and_replaced(tmp_path, logs):
    arguments = {"fault": "hang_once", "begin": 24, "end": 10_000, "marker": str(tmp_path / "hung")}
    report = drive("faulty", arguments, seconds=4.5, settings=RunSettings(heartbeat_timeout_s=0.6, episode_ticks=10_000))
    assert report.faults == ["The engine process gave no sign of life and was killed."]
    assert report.restarts == {"engine": 1} and report.held > 20 and follows(logs[0])


def test_a_killed_io_process_ends_the_run_and_its_log_survives():
    report = drive("slow_wave", seconds=30.0, on_start=lambda pids: when_running(kill, "io", 0.8, pids))
    assert not report.is_complete and report.faults == ["The io process was ended by SIGKILL."]
    assert report.run > 0


def test_episodes_end_and_the_next_one_begins(logs):
    report = drive("seeing", seconds=3.0)
    assert len(report.episodes) >= 2 and report.num_strict_successes == len(report.episodes)
    assert [episode["seed"] for episode in report.episodes] == list(range(len(report.episodes)))
    assert all(episode["reward"] == 4 and episode["success_tick"] <= episode["ticks"] for episode in report.episodes)
    # even seeds go right, odd ones left: the engine looked at the scene of its own episode
    ends = [logs[0][logs[0]["episode"] == n]["command"][-1, 0] for n in range(2)]
    assert ends[0] > 0.4 and ends[1] < -0.4
    assert report.ready >= 2, "an episode begins with a declared pause"


def test_an_engine_that_cannot_start_is_reported_in_its_own_words():
    with pytest.raises(EdgewamError, match=r"No such bundle 'x'\. Run edgewam compile\."):
        drive("refusing")
    with pytest.raises(EdgewamError, match="unexpected keyword"):
        drive("slow_wave", {"wrong": 1})


@pytest.mark.parametrize("wrong", [{"seconds": -1}, {"seconds": float("inf")}, {"robot": "nobody"}])
def test_senseless_requests_are_refused(wrong):
    with pytest.raises((EdgewamError, PluginError)):
        run(FACTORY + "slow_wave", {}, **{"robot": fakes.ROBOT, **wrong})
    with pytest.raises(EdgewamError, match="replan_ticks"):
        RunSettings(replan_ticks=0)


def test_progress_is_shown():
    seen = []
    drive("slow_wave", seconds=1.5, on_progress=seen.append)
    assert len(seen) >= 3 and seen[-1].tick > seen[0].tick and seen[-1].num_ticks == 75
    assert "RUN" in {progress.mode for progress in seen}


def when_ready(action):
    """Do something at this machine's control socket as soon as the run has begun."""
    thread = threading.Timer(0.4, action)
    return lambda pids: thread.start()


def test_a_real_arm_waits_to_be_armed_and_can_be_stopped_and_reset_at_this_machine_only(tmp_path, monkeypatch, logs):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    journal = str(tmp_path / "journal")
    seen, answered = [], []

    def reach(mode):
        wait_for(lambda: ask("status", "fake_arm")["mode"] == mode, mode)

    def operate():
        reach("READY")
        time.sleep(0.5)  # nothing happens by itself
        for verb, mode in (("status", "READY"), ("arm", "RUN"), ("stop", "STOP"), ("arm", "STOP"), ("reset", "RUN")):
            answered.append(ask(verb, "fake_arm")["is_armed"])
            time.sleep(0.3)
            reach(mode)
            seen.append(ask("status", "fake_arm"))

    report = run(
        FACTORY + "standing",
        {},
        robot=fake_arm.ROBOT,
        seconds=5.0,
        robot_options={"journal": journal},
        on_start=when_ready(operate),
    )
    check_sums(report)
    assert answered == [False, True, True, True, True]
    # what is asked for takes effect within a tick, so the state is asked for once that has happened
    assert [(answer["mode"], answer["is_armed"]) for answer in seen] == [
        ("READY", False), ("RUN", True), ("STOP", True), ("STOP", True), ("RUN", True),
    ]  # fmt: skip
    assert report.transitions["RUN > STOP request"] == 1 and report.is_complete and follows(logs[0])
    assert report.transitions["STOP > READY"] == 1 and report.violations == report.violations_in_log == 0
    assert report.episodes == [] and report.robot_errors == 0
    done = fake_arm.journal_of(journal)
    assert "reset" not in done and done[-2:] == ["stop", "close"] and runs() == []


def test_a_run_s_name_is_taken_while_it_lasts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = ControlServer("fake_arm")
    with pytest.raises(EdgewamError, match="already there"):
        run(FACTORY + "standing", {}, robot=fake_arm.ROBOT, seconds=1)
    server.close()


def test_a_camera_that_is_lost_holds_the_arm_until_it_is_back(tmp_path, monkeypatch, logs):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    journal = str(tmp_path / "journal")
    lost = Path(f"{journal}.lost")

    def unplug():
        lost.touch()
        time.sleep(0.8)
        lost.unlink()

    report = run(
        FACTORY + "standing", {}, robot=fake_arm.ROBOT, seconds=2.5, robot_options={"journal": journal}, arm=True,
        on_start=when_ready(unplug),
    )  # fmt: skip
    assert report.held_by_cause["camera"] >= 20 and follows(logs[0]) and report.restarts == {}


SCRIPT = """
import json, sys
from edgewam.robot_bridge.run import run
def show(pids):
    print(json.dumps(pids), flush=True)
options = {options}
run("tests.robot_bridge.fakes.standing", {{}}, robot="{robot}", seconds=60, arm=True, robot_options=options, on_start=show)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_stops_the_robot_and_leaves_no_process_no_shared_memory_and_no_socket(how, tmp_path):
    before = set(os.listdir("/dev/shm"))
    journal = tmp_path / "journal"
    script = SCRIPT.format(robot=fake_arm.ROBOT, options={"journal": str(journal)})
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    pids = json.loads(parent.stdout.readline())
    assert all(is_alive(pid) for pid in pids.values())
    time.sleep(0.5)
    parent.send_signal(how)
    killed_ns = time.monotonic_ns()
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
    wait_until_gone(pids, 10.0)
    assert set(os.listdir("/dev/shm")) <= before
    done = [line.split() for line in journal.read_text().splitlines()]
    assert [what for what, _ in done[-2:]] == ["stop", "close"]
    after = [what for what, t_ns in done if int(t_ns) > killed_ns]
    # io brakes first; without a supervisor it holds the pose for two seconds more
    assert after.count("command") >= (60 if how == signal.SIGKILL else 1)
    assert (tmp_path / "edgewam" / "fake_arm.sock").exists() == (how == signal.SIGKILL)


def test_ctrl_c_gives_the_report_of_what_was_and_ends_an_endless_run_as_planned():
    def interrupt(pids):
        threading.Timer(0.8, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    report = drive("slow_wave", seconds=0, on_start=interrupt)
    assert report.is_complete and report.faults == [] and 20 < report.ticks < 200 and report.missed < report.ticks
    with pytest.raises(Interrupted) as interrupted:
        drive("slow_wave", seconds=30, on_start=interrupt)
    report = interrupted.value.report
    assert not report.is_complete and report.faults == ["The run was interrupted."] and 20 < report.ticks < 200


def test_a_simulator_is_commanded_at_twice_the_policy_s_rate_along_the_same_path(logs):
    report = drive("slow_wave", seconds=2.0, control_hz=100)
    assert report.ticks == 200 and report.run > 100 and report.rejected == 0 and report.robot_options == {"control_hz": 100}
    log = logs[0]
    running = log[(log["mode"] == Mode.RUN) & (log["step_clamps"] == 0)]
    assert set(running["tick"] % 2) == {0, 1}
    # a policy row is 20 ms; between rows the command lies on the straight line
    between = lambda row: 0.4 * np.sin(2 * np.pi * row / 200)  # noqa: E731
    expected = (between(running["tick"] // 2) + between((running["tick"] + 1) // 2)) / 2
    np.testing.assert_allclose(running["command"][:, 0], expected, atol=1e-6)


def test_a_rate_that_a_robot_cannot_keep_is_refused():
    with pytest.raises(EdgewamError, match=r"runs at 50 Hz only: its make\(\) takes no control_hz"):
        run(FACTORY + "standing", {}, robot=fake_arm.ROBOT, seconds=1, control_hz=100)
    with pytest.raises(EdgewamError, match="runs at 50 Hz or a whole multiple of it, not at 75 Hz"):
        drive("slow_wave", control_hz=75)


def test_the_io_process_imports_nothing_heavy():
    code = (
        "import sys, edgewam.robot_bridge.processes.child, edgewam.robot_bridge.processes.io_process;"
        "print([m for m in ('torch', 'mujoco', 'PIL', 'onnxruntime', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_report_is_plain_data_with_the_permissions_that_were_got():
    report = drive("slow_wave", seconds=1.0)
    assert {field.name for field in dataclasses.fields(report)} == report.to_json().keys()
    assert report.real_time["io"].keys() == {"scheduler", "memory"}
    assert all("scheduler" in granted for granted in report.real_time.values())


def test_a_stopped_driver_is_held_for_and_the_world_has_moved_on_meanwhile(logs):
    def pause(pid):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(pid, signal.SIGCONT)

    report = drive("slow_wave", seconds=2.5, on_start=lambda pids: when_running(pause, "driver", 0.6, pids))
    assert report.held_by_cause["stale_state"] >= 10 and follows(logs[0])
    assert report.driver_caught_up_ticks >= 15


def test_a_hold_that_does_not_end_is_latched_and_explained():
    arguments = {"fault": "nan", "begin": 24, "end": 10_000}
    report = drive("faulty", arguments, seconds=2.5, settings=RunSettings(max_hold_s=0.6))
    assert report.final_mode == "STOP" and report.stopped > 0 and not report.is_complete
    assert len(report.faults) == 1 and "no valid chunk" in report.faults[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "average"}, r"Unknown schedule 'average'. Available: replace, ensemble, crossfade, rtc"),
        ({"planner": "thread"}, "Available: engine, process"),
        ({"approach_fraction": 1.5}, "at most 1"),
        ({"view_port": 70_000}, "65535"),
        ({"refresh_ticks": 0}, "refresh_ticks must be positive"),
        ({"jump_s": float("nan")}, "jump_s must be positive"),
        ({"max_hold_s": float("inf")}, "max_hold_s must be positive"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_what_would(wrong, message):
    with pytest.raises(EdgewamError, match=message):
        RunSettings(**wrong)


def test_optional_processes_exist_only_when_asked_for():
    assert RunSettings().roles == ["io", "driver", "camera", "engine"]
    everything = RunSettings(planner="process", record="run.mcap", view_port=0)
    assert everything.roles == ["io", "driver", "camera", "engine", "planner", "recorder", "view"]


def test_a_recorder_that_dies_again_and_again_is_given_up_and_the_run_goes_on(tmp_path, logs):
    is_over = threading.Event()

    def kill_each():
        while not is_over.wait(0.1):
            with contextlib.suppress(EdgewamError, OSError, ValueError, KeyError):  # between two runs of it, or at the very end
                kill(ask("status", "given-up")["pids"]["recorder"])

    killer = threading.Thread(target=kill_each, daemon=True)
    report = drive(
        "slow_wave", seconds=5.0, name="given-up", settings=RunSettings(max_restarts=1, record=str(tmp_path / "a.mcap")),
        on_start=lambda pids: killer.start(),
    )  # fmt: skip
    is_over.set()
    killer.join()
    assert report.is_complete and follows(logs[0]) and report.restarts == {"recorder": 1}
    assert any("failed too often" in fault for fault in report.faults)

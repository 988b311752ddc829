"""Watching and ending children without any: who counts as hanging, whom signals reach, and that nobody blocks the supervisor."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

from edgewam.robot_bridge.processes import child, children
from edgewam.robot_bridge.processes import spawn as processes
from edgewam.robot_bridge.processes.children import Children
from edgewam.robot_bridge.processes.supervisor import Supervisor
from edgewam.robot_bridge.records.wires import Wires

NS = 1_000_000_000
ROLES = ["io", "driver", "camera"]


class FakeChild:
    """Runs until it is killed, or for ever."""

    def __init__(self, pid, is_mortal=True):
        self.pid, self.exit_code, self._is_mortal = pid, None, is_mortal

    def kill(self):
        """Whether that ended it."""
        self.exit_code = -9 if self._is_mortal else None
        return self._is_mortal

    def failure(self):
        """Why."""
        return "killed"

    def close(self):
        """Nothing to forget."""


@pytest.fixture
def watched(monkeypatch):
    """Children that have all just reported, on a clock that the test winds; `spawned` lists who was started again."""
    clock = [100 * NS]
    monkeypatch.setattr(children, "now_ns", lambda: clock[0])
    wires = Wires(2, {})
    config = {"roles": ROLES, "max_restarts": 3, "restart_window_s": 60, "heartbeat_timeout_s": 5, "start_timeout_s": 120}
    made, spawned = Children(config, wires), []
    monkeypatch.setattr(made, "_spawn", spawned.append)
    for pid, role in enumerate(ROLES):
        made._children[role], made.started_ns[role] = FakeChild(pid), clock[0]

    def report(*roles):
        for role in roles:
            status = wires[f"status_{role}"].blank()
            status["is_ready"], status["heartbeat_ns"] = 1, clock[0]
            wires[f"status_{role}"].write(status)

    report(*ROLES)
    made.watch_from(clock[0])
    yield made, clock, report, spawned
    wires.close()


def test_who_is_silent_while_the_supervisor_listens_is_started_again(watched):
    made, clock, report, spawned = watched
    for _ in range(21):
        clock[0] += NS // 10
        report("io", "driver")
        assert made.keep_alive()
    assert spawned == ["camera"] and made.faults == ["The camera process gave no sign of life and was killed."]


def test_a_supervisor_that_was_stopped_together_with_all_others_kills_nobody_when_it_wakes_first(watched):
    made, clock, report, spawned = watched
    made.keep_alive()
    clock[0] += 10 * NS
    assert made.keep_alive() and made.faults == [] and spawned == []
    clock[0] += NS // 10
    report(*ROLES)
    assert made.keep_alive() and made.faults == []
    for _ in range(21):
        clock[0] += NS // 10
        report("io", "camera")
        going_on = made.keep_alive()
    assert not going_on and made.faults == ["The driver process gave no sign of life and was killed."]


def test_a_child_that_hangs_in_the_kernel_ends_the_run_instead_of_being_waited_for(watched):
    made, clock, report, spawned = watched
    made._children["camera"] = FakeChild(2, is_mortal=False)
    going_on = True
    while going_on:
        clock[0] += NS // 10
        report("io", "driver")
        going_on = made.keep_alive()
    assert spawned == [], "two of them would write the same records"
    assert made.faults == ["The camera process (pid 2) hangs inside of the kernel and cannot be ended."]


def test_ctrl_c_pressed_again_and_again_does_not_cut_the_braking_short():
    ended = []

    class Impatient:
        def end(self):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            ended.append(True)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    wires = Wires(2, {})
    made = Supervisor.__new__(Supervisor)
    made._children, made._wires, made._control = Impatient(), wires, wires["control"].blank()
    made._control["quit"] = 1
    made.stop()
    wires.close()
    assert ended and before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_process_that_is_gone_has_no_number_any_more(watched):
    made, *_ = watched
    made._children["camera"].kill()
    assert made.pids == {"io": 0, "driver": 1}


def test_killing_never_waits_for_long(monkeypatch):
    monkeypatch.setattr(processes, "KILL_S", 0.05)
    made = processes.Child.__new__(processes.Child)
    made._process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    kill = made._process.kill
    monkeypatch.setattr(made._process, "kill", lambda: None)  # as in the kernel, where no signal arrives
    assert not made.kill()
    kill()
    made._process.communicate()
    assert made.kill()


def test_the_last_words_of_a_child_are_read_whatever_it_had_printed_before(monkeypatch):
    code = "import sys; sys.stderr.buffer.write(b'\\xff\\xfe noise \\xe4\\n' * 100_000 + b'no such port: \\xe4'); sys.exit(3)"
    real = subprocess.Popen
    monkeypatch.setattr(processes.subprocess, "Popen", lambda command, **options: real([command[0], "-c", code], **options))
    made = processes.Child({"role": "camera"}, (), {})
    assert made.wait(30.0)
    assert made.failure() == "The camera process ended with exit code 3: no such port: \N{REPLACEMENT CHARACTER}."
    made.close()


def test_a_child_outlives_the_signals_that_its_parent_gets_too(monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    said = io.StringIO()
    monkeypatch.setattr(child, "private_stdout", lambda: said)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"role": "nobody"}\n'))
    try:
        assert child.main() == 2
        for number in numbers:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN), "programs that it starts get the default"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "KeyError" in said.getvalue()

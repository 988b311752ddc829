"""`edgewam run` and `edgewam control`: what is refused, what is said, and a run that is armed from another terminal."""

from __future__ import annotations

import dataclasses
import json
import signal
import time

import pytest

from edgewam.cli._pairs import pairs
from edgewam.cli.control import describe
from edgewam.cli.run import _plain, _remote, choose_planner
from edgewam.core.artifacts import read_manifest
from edgewam.core.errors import EdgewamError
from tests.cli.command import apart, here, started


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


WRONG = {
    "run --schedule average": "Available: replace, ensemble, crossfade, rtc",
    "run --planner thread": "Available: engine, process",
    "run --control-hz 75": "50 Hz or a whole multiple",
    "run --control-hz 150": "50, 100 or 250 Hz, not at 150 Hz",
    "run --robot-option port": "takes KEY=VALUE, such as port=/dev/ttyUSB0",
    "run --remote 8000": "takes HOST:PORT, such as 127.0.0.1:8000",
    "run a_bundle --remote 127.0.0.1:8000": "leave the bundle 'a_bundle' out",
    "run --name ../x": "letters, digits",
    "control status": "Start it with: edgewam run",
    "control arm --run nobody": "No run 'nobody'. Running: none",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_one_sentence_that_says_what_would_be_right(line):
    done = here(*line.split())
    assert done.code == 1 and WRONG[line] in done.err and "Traceback" not in done.err


def test_an_unknown_verb_lists_them():
    done = here("control", "jump")
    assert done.code == 2 and "estop" in done.err


def test_robot_options_are_json_where_they_can_be():
    given = pairs("--robot-option", ["port=/dev/ttyUSB0", "baud=1000000", "gripper=true", "name=a=b"], "port=/dev/ttyUSB0")
    assert {key: _plain(value) for key, value in given.items()} == {
        "port": "/dev/ttyUSB0", "baud": 1_000_000, "gripper": True, "name": "a=b",
    }  # fmt: skip
    for wrong in ("a b=1", "=1", "nothing"):
        with pytest.raises(EdgewamError, match=f"--robot-option takes KEY=VALUE, such as port=/dev/ttyUSB0; got '{wrong}'"):
            pairs("--robot-option", [wrong], "port=/dev/ttyUSB0")


def test_an_address_has_a_host_and_a_port():
    assert _remote("[::1]:8000", None, None) == {"host": "::1", "port": 8000, "token_file": None}


def test_a_bundle_that_plans_on_the_processor_gets_a_planner_process(shipped):
    manifest = read_manifest(shipped / "bundle", kind="bundle", verify=False)
    assert choose_planner(manifest) == "process"


@pytest.mark.parametrize(
    ("mode", "is_armed", "advice"),
    [
        ("READY", False, "edgewam control arm --run x"),
        ("STOP", True, "edgewam control reset --run x"),
        ("ESTOP", True, "ended and started again"),
        ("RUN", True, "armed."),
    ],
)
def test_the_status_says_what_to_do_next(mode, is_armed, advice):
    text = describe({"run": "x", "mode": mode, "cause": "no_chunk", "tick": 7, "is_armed": is_armed})
    assert text.startswith(f"x: {mode} (no chunk) at tick 7") and advice in text


def test_a_run_is_armed_stopped_and_ended_from_another_terminal(shipped):
    pytest.importorskip("mujoco", reason="needs edgewam[sim]")
    arguments = ("run", "--seconds", 0, "--no-arm", "--name", "x", "--planner", "engine", "--threads", 1, "--json")

    def control(verb):
        done = here("control", verb, "--json")
        return done.json if done.code == 0 else {"mode": done.err}

    with started(*arguments) as family:
        family.wait_until(lambda: control("status")["mode"] == "READY")
        time.sleep(0.5)
        assert control("status")["mode"] == "READY", "nobody has armed it"
        assert control("arm")["is_armed"]
        family.wait_until(lambda: control("status")["mode"] == "RUN")
        assert control("stop")["mode"] == "STOP"
        assert control("reset")["mode"] != "STOP"
        family.wait_until(lambda: control("status")["mode"] == "RUN")
        done = family.cut(signal.SIGTERM)
        assert family.none_left()
    report = json.loads(done.out)
    assert done.code == 0, done.err
    assert report["is_complete"] and report["faults"] == [] and report["violations"] == report["violations_in_log"] == 0
    assert report["transitions"]["RUN > STOP request"] >= 1
    assert "Not armed" in done.err and "edgewam control arm --run x" in done.err
    assert apart("control", "status").code == 1


def test_the_table_shows_what_went_wrong_also_when_nothing_ran(capsys):
    from edgewam.cli._run_table import show
    from edgewam.robot_bridge.counting.tally import Tally

    config = {"control_hz": 50.0, "lower": [0.0], "upper": [1.0], "max_velocity": [1.0], "max_acceleration": None}
    report = Tally(config, ("elbow",)).report(0)
    show(dataclasses.replace(report, faults=["The io process was ended by SIGKILL."], processes={"recorder": {}}))
    shown = capsys.readouterr().err
    assert "The io process was ended by SIGKILL." in shown and "unknown messages lost" in shown


def test_a_stop_without_a_name_takes_every_run_and_arming_takes_none(monkeypatch, capsys):
    from edgewam.cli import control
    from edgewam.core.errors import EdgewamError
    from edgewam.robot_bridge.processes import local_control

    asked = []

    def ask(verb, name=None):
        asked.append((str(verb), name))
        if name is None:
            raise EdgewamError("Several runs: left, right. Choose one with --run.")
        if name == "left" and verb == "stop":
            raise EdgewamError("The run 'left' gives no answer.")
        return {"run": name, "mode": "STOP", "cause": "request", "tick": 1, "is_armed": True}

    monkeypatch.setattr(local_control, "ask", ask)
    monkeypatch.setattr(local_control, "runs", lambda: ["left", "right"])
    monkeypatch.setattr(control, "_SETTLE_S", 0.0)
    with pytest.raises(EdgewamError, match="'left' gives no answer"):  # and the other one is stopped all the same
        control.command(control.Verb.STOP)
    assert asked == [("stop", "left"), ("stop", "right"), ("status", "right")]
    assert "right: STOP" in capsys.readouterr().err
    with pytest.raises(EdgewamError, match="Choose one with --run"):
        control.command(control.Verb.ARM)

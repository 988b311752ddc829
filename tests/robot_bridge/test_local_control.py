"""Talking to a run from the same machine: whole requests are answered, bad ones refused, and nobody can make the run wait."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.processes import local_control
from edgewam.robot_bridge.processes.local_control import MAX_REQUEST, ControlServer, ask, directory, runs


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "edgewam"


@pytest.fixture
def served():
    """A server that is polled like a supervisor does, and what it was asked."""
    asked, end = [], threading.Event()

    def answer(verb):
        asked.append(verb)
        return {"mode": "RUN", "verb": verb}

    server = ControlServer("arm")

    def loop():
        while not end.is_set():
            server.poll(answer)
            time.sleep(0.005)

    thread = threading.Thread(target=loop)
    thread.start()
    yield asked
    end.set()
    thread.join()
    server.close()


def connected(place):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5.0)
    client.connect(str(place / "arm.sock"))
    return client


def test_a_verb_reaches_the_run_and_its_answer_comes_back(served):
    assert ask("status") == {"mode": "RUN", "verb": "status"}
    assert ask("arm", "arm")["verb"] == "arm"
    assert served == ["status", "arm"] and runs() == ["arm"]


def test_what_to_do_is_said_when_there_is_no_such_run_or_verb(served):
    with pytest.raises(EdgewamError, match=r"Unknown verb 'jump'. Available: status, arm, disarm, stop, reset, estop"):
        ask("jump")
    with pytest.raises(EdgewamError, match=r"No run 'leg'. Running: arm"):
        ask("stop", "leg")
    with pytest.raises(EdgewamError, match="letters, digits"):
        ask("stop", "../arm")
    other = ControlServer("other")
    with pytest.raises(EdgewamError, match=r"Several runs: arm, other\. Choose one with --run"):
        ask("stop")
    other.close()
    assert served == []


def test_a_run_whose_supervisor_is_stopped_is_said_not_to_answer(place, monkeypatch):
    monkeypatch.setattr(local_control, "_ANSWER_TIMEOUT_S", 0.1)
    server = ControlServer("arm")  # nobody polls it
    with pytest.raises(EdgewamError, match="'arm' gives no answer: its supervisor is stopped"):
        ask("stop", "arm")
    waiting = []
    with contextlib.suppress(OSError):  # until no more callers fit
        while len(waiting) < 100:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].settimeout(0.1)
            waiting[-1].connect(str(place / "arm.sock"))
    assert 1 < len(waiting) < 100
    with pytest.raises(EdgewamError, match="gives no answer"):
        ask("stop", "arm")
    assert runs() == ["arm"], "busy is not dead"
    for client in waiting:
        client.close()
    server.close()


def test_a_supervisor_that_can_open_no_more_files_goes_on(place, monkeypatch):
    server = ControlServer("arm")
    waiting = connected(place)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, limits[1]))
    try:
        server.poll(lambda verb: {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    waiting.close()
    server.close()


def test_nothing_runs():
    with pytest.raises(EdgewamError, match="Start it with: edgewam run"):
        ask("status")


def test_only_the_user_may_look_into_the_directory(place):
    assert stat.S_IMODE(directory().stat().st_mode) == 0o700 and directory() == place
    place.chmod(0o755)
    with pytest.raises(EdgewamError, match="mode 0700"):
        directory()


class PeerOf777:
    """What the kernel would say of user 777."""

    size = 12

    @staticmethod
    def unpack(data):
        return 1, 777, 777


def test_another_user_s_connection_is_closed_at_once(served, place, monkeypatch):
    monkeypatch.setattr(local_control, "_PEER", PeerOf777)
    client = connected(place)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it may be closed before it is used
        client.sendall(b'{"verb": "arm"}\n')
        assert client.recv(100) == b""
    client.close()
    monkeypatch.undo()
    time.sleep(0.05)
    assert served == []


@pytest.mark.parametrize(
    "line", [b"arm\n", b"[]\n", b'{"verb": "jump"}\n', b'{"verb": ["arm"]}\n', b"\xff\xfe\n", b"[" * 4000 + b"\n", b"{}\n"]
)
def test_what_is_no_request_gets_an_answer_that_says_what_is(served, place, line):
    client = connected(place)
    client.sendall(line)
    answer = json.loads(client.makefile().readline())
    client.close()
    assert "Verbs: status" in answer["error"] and served == []
    assert ask("status")["verb"] == "status"


def test_a_request_without_an_end_is_cut_off_and_others_are_served_meanwhile(served, place):
    flood, silent = connected(place), connected(place)
    with pytest.raises(OSError):
        for _ in range(1000):
            flood.sendall(b"x" * MAX_REQUEST)
            time.sleep(0.001)
    assert ask("status")["verb"] == "status"
    flood.close()
    silent.close()


def test_a_silent_client_is_sent_away(served, place, monkeypatch):
    monkeypatch.setattr(local_control, "_IDLE_S", 0.05)
    client = connected(place)
    assert client.recv(10) == b""
    client.close()


def test_requests_that_arrive_in_pieces_or_together_are_answered_one_by_one(served, place):
    client = connected(place)
    stream = client.makefile()
    client.sendall(b'{"verb": "st')
    time.sleep(0.05)
    client.sendall(b'op"}\n{"verb": "reset"}\n')
    assert [json.loads(stream.readline())["verb"] for _ in range(2)] == ["stop", "reset"]
    stream.close()
    client.close()
    assert served == ["stop", "reset"]


def test_a_live_run_of_the_same_name_is_refused_and_a_dead_one_is_cleared_away(place):
    code = """
import os, signal
from edgewam.robot_bridge.processes.local_control import ControlServer
ControlServer("arm")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert (place / "arm.sock").exists()
    server = ControlServer("arm")
    with pytest.raises(EdgewamError, match=r"already there.*edgewam control stop --run arm"):
        ControlServer("arm")
    assert runs() == ["arm"], "the refusal harmed nobody"
    server.close()
    server.close()
    assert list(place.iterdir()) == []

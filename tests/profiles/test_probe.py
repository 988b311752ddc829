"""Probes: whatever a child does, its own row says so, in time, and nothing of it lives on."""

import os
import time
from pathlib import Path

import pytest

from edgewam.profiles.probe import Probe, run_probes

HERE = "tests.profiles.probes."


@pytest.fixture(scope="module")
def pid_file(tmp_path_factory):
    return tmp_path_factory.mktemp("probes") / "pids"


@pytest.fixture(scope="module")
def answers(pid_file):
    """All of them at once; the hanging ones are cut after three seconds."""
    plain = ("refuses", "breaks", "crashes", "leaves", "says_half_and_hangs", "says_half_and_crashes", "absent")
    probes = [
        Probe("double", f"{HERE}double", {"number": 21}, {"MOOD": "good"}),
        Probe("hangs", f"{HERE}hangs", {"pid_file": str(pid_file)}),
        *(Probe(name, HERE + name) for name in plain),
    ]
    began = time.monotonic()
    found = run_probes(probes, 3.0)
    assert time.monotonic() - began < 4.5
    return found


def test_what_a_function_returns_comes_back_with_its_environment(answers):
    assert answers["double"].ok
    assert answers["double"].value == {"twice": 42, "threads": "1", "mood": "good"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("refuses", "Install it with: pip install 'edgewam[sim]'"),
        ("breaks", "ZeroDivisionError: division by zero"),
        ("crashes", "it crashed (SIGSEGV)"),
        ("leaves", "it ended with code 3: out of tea"),
        ("hangs", "no answer within 3 s"),
        ("absent", "AttributeError: module 'tests.profiles.probes' has no attribute 'absent'"),
    ],
)
def test_a_failure_gives_its_reason(answers, name, reason):
    assert not answers[name].ok and answers[name].reason == reason
    assert answers[name].timed_out == (name == "hangs")


def test_what_was_said_before_the_end_counts(answers):
    for name, timed_out in (("says_half_and_hangs", True), ("says_half_and_crashes", False)):
        assert answers[name].ok and answers[name].value == {"half": True} and answers[name].timed_out == timed_out
    assert answers["says_half_and_crashes"].reason == "it crashed (SIGABRT)"


def test_a_cut_probe_leaves_no_process(answers, pid_file):
    for pid in map(int, pid_file.read_text().split()):
        for _ in range(100):
            stat = Path(f"/proc/{pid}/stat")
            if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
                break  # a killed grandchild waits for init to collect it
            time.sleep(0.02)
        else:
            os.kill(pid, 9)
            pytest.fail(f"process {pid} lives on")

"""When a child is hanging, how often it may be started again, and how its memory is watched."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgewam.robot_bridge.processes import memory
from edgewam.robot_bridge.processes.memory import MemoryWatch, resident_mb
from edgewam.robot_bridge.processes.watchdog import RestartBudget, is_hanging, silence_limit_s

NS = 1_000_000_000


def test_a_budget_is_per_role_and_comes_back_with_time():
    budget = RestartBudget(2, 60.0)
    assert [budget.spend("engine", t) for t in (0.0, 10.0, 20.0)] == [True, True, False]
    assert budget.spend("camera", 20.0)
    assert not budget.spend("engine", 60.0) and budget.spend("engine", 60.5), "the first one is a minute ago"
    assert not budget.spend("engine", 69.0) and budget.spend("engine", 71.0)
    assert budget.counts == {"engine": 4, "camera": 1}


def test_what_holds_the_robot_is_never_started_again():
    budget = RestartBudget(3, 60.0)
    assert not budget.spend("driver", 0.0) and not budget.spend("io", 0.0) and budget.counts == {}


@pytest.mark.parametrize(
    ("role", "limit_s"), [("engine", 5.0), ("planner", 5.0), ("io", 2.0), ("driver", 2.0), ("camera", 2.0), ("view", 2.0)]
)
def test_who_computes_may_be_silent_for_longer(role, limit_s):
    assert silence_limit_s(role, 5.0) == limit_s and silence_limit_s(role, 0.5) == 0.5


def test_silence_counts_once_a_child_is_ready_and_before_that_the_time_it_takes_to_start():
    def hangs(is_ready, heartbeat_s, now_s):
        return is_hanging(is_ready, heartbeat_s * NS, 10 * NS, now_s * NS, silence_s=2.0, start_s=100.0)

    assert not hangs(True, 50, 52) and hangs(True, 50, 53)
    assert not hangs(False, 0, 110) and hangs(False, 0, 111)


def test_memory_is_what_the_kernel_says_and_shared_records_are_not_one_s_own():
    code = """
import mmap, os, sys
shared = mmap.mmap(-1, 30 << 20, mmap.MAP_SHARED)
shared.write(b"x" * (30 << 20))
own = bytearray(b"x" * (20 << 20))
print("ready", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    resident, own = resident_mb(child.pid)
    child.communicate()
    assert 50 < resident < 90 and 20 < own < 60 and resident - own > 30
    assert resident_mb(child.pid) is None, "gone"


def test_growth_is_counted_from_a_warm_process_and_anew_after_a_restart(monkeypatch):
    sizes = iter([(50.0, 20.0), (100.0, 40.0), (101.0, 40.0), (102.0, 44.0), (80.0, 30.0), None])
    monkeypatch.setattr(memory, "resident_mb", lambda pid: next(sizes))
    watch = MemoryWatch()
    for age_s in (1.0, 9.0, 12.0, 60.0):
        watch.sample("engine", 1, age_s)
    assert watch.report()["engine"] == {
        "first": 100.0, "last": 102.0, "max": 102.0, "growth_percent": 2.0,
        "own_first": 40.0, "own_last": 44.0, "own_growth_percent": 10.0,
    }  # fmt: skip
    watch.sample("engine", 2, 1.0)
    watch.sample("engine", 2, 5.0)
    report = watch.report()["engine"]
    assert (report["first"], report["last"], report["growth_percent"], report["max"]) == (80.0, 80.0, 0.0, 102.0)


def test_this_process_has_memory():
    resident, own = resident_mb(os.getpid())
    assert 10 < own < resident

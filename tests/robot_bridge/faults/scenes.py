"""What is done to runs with real processes beyond a switch or a signal, and what must be true of them beyond the counters."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.robot_bridge.faults.judge import is_never_hurried
from tests.robot_bridge.faults.rig import PERIOD_NS, Evidence, Scene
from tests.robot_bridge.faults.robot import SPEC

RECORDING = "{folder}/run.mcap"
SETTLE_TICKS = 10  # the ramp (4 ticks) and what two noisy cores add


def nothing_more(evidence: Evidence) -> list[str]:
    """The counters say it all."""
    return []


def slow_start(scene: Scene) -> None:
    """An engine that is started again needs a while, so that its loss is seen."""
    (scene.folder / "slow_start").touch()


def stepped_clock() -> dict[str, str]:
    """Every process of the run gets a wall clock that can be stepped."""
    return {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "clock"), *(entry or os.getcwd() for entry in sys.path)]),
        "EDGEWAM_TEST_CLOCK": "{folder}/clock",
    }


def step_clock(seconds: int) -> Callable[[Scene], None]:
    """From now on the wall clock is so far off."""

    def act(scene: Scene) -> None:
        (scene.folder / "clock").write_text(str(seconds))

    return act


def clock_was_stepped(evidence: Evidence) -> list[str]:
    """Every process really had the stepped clock."""
    signed = {int(path.suffix[1:]) for path in evidence.scene.folder.glob("clock.*")}
    return [f"the {role} process had the true clock" for role, pid in evidence.scene.pids.items() if pid not in signed]


def skips_and_never_bursts(evidence: Evidence) -> list[str]:
    """After a pause of io there are no two commands for one tick, and none are hurried."""
    longest = np.diff(evidence.rows["sent_ns"]).max()
    found = []
    if longest < 0.28e9:
        found.append(f"the longest gap was {longest / 1e6:.0f} ms, so io was not stopped")
    if not is_never_hurried(evidence.rows, PERIOD_NS):
        found.append("io caught up on ticks that were past")
    return found


def lease_stops_the_robot(evidence: Evidence) -> list[str]:
    """Without commands the robot moves on for its lease at most, then holds; it is told to stop before it is left."""
    diary = evidence.diary
    commands = np.flatnonzero(diary["kind"] == b"command")
    after = diary[commands[-1] + 1 :]
    poses = after["joints"][after["kind"] == b"advance"]
    moved = np.flatnonzero(np.abs(np.diff(poses, axis=0)).max(1) > 0) if len(poses) > 1 else np.array([])
    found = []
    if len(moved) and moved[-1] > SPEC.lease_ticks + 1:
        found.append(f"the robot still moved {moved[-1]} ticks after the last command")
    if b"stop" not in after["kind"]:
        found.append("nobody told the robot to stop")
    return found


def orphans_come_to_rest(evidence: Evidence) -> list[str]:
    """Without a supervisor io brakes, goes on sending the held pose for orphan_s, and the driver stops the robot at the end."""
    diary = evidence.diary
    after = diary[(diary["kind"] == b"command") & (diary["t_ns"] > evidence.begin_ns)]
    lasted_s = (after["t_ns"][-1] - evidence.begin_ns) / 1e9 if len(after) else 0.0
    found = []
    if not 1.5 <= lasted_s <= 4.0:
        found.append(f"commands went on for {lasted_s:.2f} s after the supervisor's death, expected about 2 s (orphan_s)")
    if len(after) > SETTLE_TICKS and np.ptp(after["joints"][SETTLE_TICKS:], axis=0).max() > 0:
        found.append("the arm did not come to rest")
    if diary["kind"][-2:].tolist() != [b"stop", b"close"]:
        found.append(f"the driver left the robot with {diary['kind'][-2:].tolist()}")
    return found


def says_who_died(role: str) -> Callable[[Evidence], list[str]]:
    """The report names the process."""

    def check(evidence: Evidence) -> list[str]:
        faults = evidence.report["faults"] if evidence.report else []
        return [] if any(f"The {role} process was ended by SIGKILL" in fault for fault in faults) else [f"faults: {faults}"]

    return check


def burn(scene: Scene) -> None:
    """One busy loop per core at nice 0."""
    for _ in range(len(os.sched_getaffinity(0))):
        scene.helpers.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))


def cool(scene: Scene) -> None:
    """End the burners."""
    for process in scene.helpers:
        process.kill()
        process.wait()


def few_ticks_are_missed(evidence: Evidence) -> list[str]:
    """Loosely: the soak (benchmarks/soak.py) measures it."""
    span = int(evidence.rows["tick"][-1]) - int(evidence.rows["tick"][0]) + 1
    missed = span - len(evidence.rows)
    return [f"{missed} of {span} ticks missed"] if missed > 0.05 * span else []


def fill_the_disk(scene: Scene) -> None:
    """The recorder can write no byte more: its file-size limit is what it has written (EFBIG, handled as ENOSPC is)."""
    size = sum(path.stat().st_size for path in scene.folder.glob("run*.mcap*"))
    resource.prlimit(scene.pids["recorder"], resource.RLIMIT_FSIZE, (size, size))


def losses_are_told(evidence: Evidence) -> list[str]:
    """The report says that the recording ended and how much is in no file."""
    assert evidence.report is not None
    told = evidence.report["processes"]["recorder"]
    return [] if told["fault"] and told["lost"] > 0 else [f"the report is silent about the losses: {told}"]


def a_new_part_was_begun(evidence: Evidence) -> list[str]:
    """The recording goes on in another file, and the first one is still there."""
    assert evidence.report is not None
    parts = evidence.report["processes"]["recorder"]["parts"]
    files = sorted(path.name for path in evidence.scene.folder.glob("run*.mcap"))
    return [] if parts == len(files) == 2 else [f"{parts} parts, files {files}"]


def look_for_names(scene: Scene) -> None:
    """Unlink what could name the run's memory: there is nothing."""
    maps = Path(f"/proc/{scene.pids['io']}/maps").read_text()
    names = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "memfd:edgewam" in line}
    scene.notes.append(f"{len(names)} kinds of mapping: {', '.join(sorted(names))}")
    for path in Path("/dev/shm").glob("*edgewam*"):
        scene.notes.append(f"FOUND {path}")
        path.unlink()


def memory_had_no_name(evidence: Evidence) -> list[str]:
    """All of it is memfd, which the kernel calls deleted from the start."""
    notes = evidence.scene.notes
    if len(notes) != 1 or "(deleted)" not in notes[0]:
        return notes or ["io maps no memory of ours"]
    return []

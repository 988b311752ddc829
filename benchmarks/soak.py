"""Half an hour of the bridge in closed loop: does it keep its clock, its chunks, its limits and its memory?

    python3 -m benchmarks.soak [--minutes 30] [--control-hz 50] [--record] [--no-burners] [--no-fifo] [--json PATH]

The shipped bundle drives aloha_sim in real time; in the middle third two pure-Python loops burn the processors.  Every figure is
counted from the log rows, per third.  --no-fifo gives up CAP_SYS_NICE and CAP_IPC_LOCK before the bridge starts: it then gets
what an ordinary user gets.  The JSON goes to benchmarks/results/<device>/soak.json (soak_100hz.json, soak_no_fifo.json, ...); an
interrupted run is written with "is_complete": false.  Exit status 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bridge import BridgeRun
from benchmarks.results import RESULTS, slug
from benchmarks.soak_judge import MAX_MISSED_PERCENT, Memory, judge, text
from edgewam.cli._shipped import FACTORY, shipped
from edgewam.core.artifacts import read_manifest, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.robot_bridge.processes.memory import resident_mb
from edgewam.robot_bridge.robot import with_task
from edgewam.robot_bridge.run import RunSettings

ROBOT, POLICY_HZ = "aloha_sim", 50.0
BURNERS = 2
# it looks for its parent now and then: a soak that is killed must not leave the processors burning
BURN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(1_000_000): pass"


class Burners:
    """Processes at nice 0 that never rest."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, count: int) -> None:
        """Burn."""
        command = [sys.executable, "-c", BURN, str(os.getpid())]
        self._processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]

    def stop(self) -> None:
        """Cool down; safe to call twice."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes = []


def watch(run: BridgeRun, seconds: float, burners: int, every_s: float, memory: Memory) -> None:
    """Look at a run until it ends; fills in the memory of each process."""
    memory.update({role: [] for role in run.pids})
    burner, begin, next_look = Burners(), time.monotonic(), 0.0
    try:
        while run.exit_code is None and (now := time.monotonic() - begin) < seconds:
            in_middle = seconds / 3 <= now < seconds * 2 / 3
            if in_middle != bool(burner._processes) and burners:
                burner.start(burners) if in_middle else burner.stop()
            if now >= next_look:
                next_look += every_s
                for role, pid in run.pids.items():
                    if (used := resident_mb(pid)) is not None:
                        memory[role].append((round(now, 1), *used))
                shown = ", ".join(f"{role} {looks[-1][1]:.0f} MB" for role, looks in memory.items() if looks)
                state = " burning" if in_middle and burners else ""
                print(f"{now:7.1f} s of {seconds:.0f}{state}: {shown}", file=sys.stderr, flush=True)
            time.sleep(0.1)
    finally:
        burner.stop()


def soak(
    minutes: float, control_hz: float, burners: int, record: bool, is_real_time: bool, seed: int, every_s: float
) -> dict[str, Any]:
    """One run, judged; also when it is interrupted."""
    bundle = shipped("bundle")
    spec, _ = with_task(ROBOT, None)
    with tempfile.TemporaryDirectory(prefix="edgewam_soak_") as work:
        folder = Path(work)
        settings = RunSettings(
            episode_ticks=round(spec.episode_ticks * control_hz / POLICY_HZ),
            replan_ticks=round(RunSettings.replan_ticks * control_hz / POLICY_HZ),
            record=str(folder / "run.mcap") if record else None,
            planner="process",  # as edgewam run does on a CPU
        )
        options: dict[str, Any] = {} if control_hz == spec.control_hz else {"control_hz": control_hz}
        conditions = {
            "minutes": minutes,
            "control_hz": control_hz,
            "burners": burners,
            "burners_are": "pure-Python loops at nice 0, in the middle third" if burners else "none",
            "recorder": record,
            "planner": "process",
            "may_be_real_time": is_real_time,
            "robot": ROBOT,
            "first_seed": seed,
            "threads": 1,
            "bundle": read_manifest(bundle, kind="bundle", verify=False).digest,
            "cpu": read_machine().cpu,
            "num_cpus": len(os.sched_getaffinity(0)),
        }
        run = BridgeRun(
            folder, FACTORY, {"bundle": str(bundle), "threads": 1}, settings,
            is_real_time=is_real_time, robot=ROBOT, seconds=minutes * 60, seed=seed, **options,
        )  # fmt: skip
        memory: Memory = {}
        report = None
        try:
            watch(run, minutes * 60, burners, every_s, memory)
            report = run.wait()
        except KeyboardInterrupt:
            print("interrupted: what there is will be written", file=sys.stderr)
            run.interrupt()
            report = run.wait()
        finally:
            run.close()
        size = sum(path.stat().st_size for path in folder.glob("run*.mcap"))
        return judge(run.rows(), report, memory, spec, conditions | {"recording_bytes": size})


def name_of(control_hz: float, record: bool, is_real_time: bool) -> str:
    """Of the result file."""
    parts = ["soak"] + ([f"{control_hz:.0f}hz"] if control_hz != POLICY_HZ else [])
    return "_".join(parts + (["recorded"] if record else []) + ([] if is_real_time else ["no_fifo"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--control-hz", type=float, default=POLICY_HZ, choices=sorted(MAX_MISSED_PERCENT))
    parser.add_argument("--record", action="store_true", help="with the flight recorder")
    parser.add_argument("--no-burners", action="store_true", help="also the default at 100 Hz")
    parser.add_argument("--no-fifo", action="store_true", help="as a user without CAP_SYS_NICE and CAP_IPC_LOCK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-s", type=float, default=15.0, help="how often memory is looked at")
    parser.add_argument("--json", type=Path, help="file of the result (default: benchmarks/results/<device>/<name>.json)")
    a = parser.parse_args(argv)
    burners = 0 if a.no_burners or a.control_hz != POLICY_HZ else BURNERS
    try:
        record = soak(a.minutes, a.control_hz, burners, a.record, not a.no_fifo, a.seed, a.every_s)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    name = name_of(a.control_hz, a.record, not a.no_fifo)
    path = a.json or RESULTS / slug(record["conditions"]["cpu"]) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    print(text(record))
    print(f"Written to {path}")
    if record["faults"]:
        print("faults: " + "; ".join(record["faults"]))
    return 0 if record["is_complete"] and all(gate["passed"] for gate in record["gates"]) else 1


if __name__ == "__main__":
    sys.exit(main())

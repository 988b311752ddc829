"""A run of the bridge in a process of its own, watched from outside: its log rows go to a file while it runs.

Measuring and faults need that: the supervisor's memory is then its own, and even the supervisor can be killed.  The child is
`python -m benchmarks.bridge`: it reads one JSON line (arguments of `robot_bridge.run.run`), prints the process ids and in the end
the report.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.processes.spawn import child_environment
from edgewam.robot_bridge.records.wires import log_layout
from edgewam.robot_bridge.run import Interrupted, RunSettings, run

_PR_CAPBSET_DROP = 24  # linux/prctl.h
_CAP_IPC_LOCK, _CAP_SYS_NICE = 14, 23  # linux/capability.h
_CLEAN_UP_S = 60.0  # from the last control tick until every process is collected, on a busy machine


class BridgeRun:
    """One run.  `pids`: by role, "supervisor" too.  `rows` may be read at any time, `wait` gives the report."""

    def __init__(
        self,
        folder: Path,
        policy_factory: str,
        policy_args: Mapping[str, Any],
        settings: RunSettings,
        *,
        is_real_time: bool = True,
        environment: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> None:
        self._path = folder / "rows"
        self._path.unlink(missing_ok=True)
        request = {
            "rows": str(self._path),
            "settings": asdict(settings),
            "is_real_time": is_real_time,
            "policy_factory": policy_factory,
            "policy_args": dict(policy_args),
            **arguments,
        }
        self._errors = open(folder / "errors.log", "w+")  # noqa: SIM115  closed with the run
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bridge"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, env=child_environment(environment or {}), start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        started = self._line()
        if "pids" not in started:
            self.close()
            raise EdgewamError(started.get("error") or f"The bridge did not start; see {folder / 'errors.log'}.")
        self.pids: dict[str, int] = {**started["pids"], "supervisor": self._process.pid}
        self._num_joints = int(started["num_joints"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.strip() else {}

    @property
    def exit_code(self) -> int | None:
        """Of the supervisor; None while it runs."""
        return self._process.poll()

    def rows(self) -> npt.NDArray[Any]:
        """Log rows so far, one per tick."""
        layout = log_layout(self._num_joints)
        size = self._path.stat().st_size // layout.itemsize if self._path.exists() else 0
        found = np.fromfile(self._path, layout, size)
        return found[np.unique(found["tick"], return_index=True)[1]]

    def interrupt(self) -> None:
        """Ctrl-C: the arm is braked and everyone is collected."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> dict[str, Any] | None:
        """The report; None when the supervisor was killed.

        Raises:
            EdgewamError: the run failed, in its own words.
        """
        report = self._line()
        self._process.wait(_CLEAN_UP_S)
        if "error" in report:
            raise EdgewamError(report["error"])
        return report or None

    def close(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self.interrupt()
            try:
                self._process.wait(_CLEAN_UP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._errors.close()


def played(
    folder: Path, policy_factory: str, policy_args: Mapping[str, Any], settings: RunSettings, **arguments: Any
) -> tuple[dict[str, Any] | None, npt.NDArray[Any]]:
    """A whole run: its report, None when the supervisor was killed, and its log rows.  EdgewamError: see `BridgeRun`."""
    run = BridgeRun(folder, policy_factory, policy_args, settings, **arguments)
    try:
        report = run.wait()
    finally:
        run.close()
    return report, run.rows()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: Mapping[str, int], timeout_s: float = _CLEAN_UP_S) -> None:
    """Every process of a run leaves by itself, whoever died; EdgewamError names those that do not."""
    limit = time.monotonic() + timeout_s
    while left := {role: pid for role, pid in pids.items() if is_alive(pid)}:
        if time.monotonic() > limit:
            raise EdgewamError(f"{timeout_s:.0f} s after the run there still are: {left}.")
        time.sleep(0.05)


def give_up_privileges() -> None:
    """Let this process's children have neither SCHED_FIFO, nor a better nice value, nor locked memory, as an ordinary user."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in (_CAP_IPC_LOCK, _CAP_SYS_NICE):
        if os.geteuid() == 0 and prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            raise EdgewamError(f"Cannot give up a privilege: {os.strerror(ctypes.get_errno())}. Run as an ordinary user instead.")


def main() -> int:
    """The child; exit status 1 with the message on standard output when the run fails."""
    request = json.loads(sys.stdin.readline())
    path = request.pop("rows")
    if not request.pop("is_real_time"):
        give_up_privileges()
    settings = RunSettings(**request.pop("settings"))

    def announce(pids: dict[str, int]) -> None:
        from edgewam.robot_bridge.robot import with_task

        spec, _ = with_task(request.get("robot", "aloha_sim"), request.get("task"))
        print(json.dumps({"pids": pids, "num_joints": spec.num_joints}), flush=True)

    try:
        with open(path, "ab", buffering=0) as file:  # the parent reads it meanwhile
            report = run(settings=settings, on_start=announce, on_rows=lambda rows: file.write(rows.tobytes()), **request)
    except EdgewamError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    except Interrupted as interrupt:
        report = interrupt.report
    print(json.dumps(report.to_json()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

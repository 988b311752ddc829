"""Runs jobs within a budget: each with its own time limit, in a process group of its own or one that it shares, each recorded
as it ends.

A job whose result is recorded for the same code and parameters is skipped, so that the next call goes on where this one
stopped.  A job that fails or runs out of time is recorded as such, with the sections it had, and the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.jobs import Job
from benchmarks.gpu.worker import END
from benchmarks.results import ROOT, Record, Section, Status, now_utc, recorded, write_bundle, write_record
from edgewam.core.errors import EdgewamError

LOG_LINES = 40  # of a failed job's output that are kept in its record


@dataclass(frozen=True)
class Outcome:
    """What became of a job in this call: its record (new or found), or the reason why it was not started.

    can_run: whether another call could start it on this machine.
    """

    job: Job
    record: Record | None
    note: str
    can_run: bool = True


def run_jobs(
    jobs: Sequence[Job],
    device: str,
    device_name: str,
    folder: Path,
    known: Sequence[Path],
    budget_s: float,
    say: Callable[[str], None] = print,
    bundle: Path | None = None,
) -> list[Outcome]:
    """Run `jobs` in order and return one outcome for each.

    Args:
        jobs: most important first.
        device: "cuda" or "cpu".
        device_name: what the results are recorded under.
        folder: where new results go.
        known: folders that are searched for results of the same key.
        budget_s: no job is started that is not expected to end within it, and none runs past it.
        say: gets every line of output.
        bundle: file that holds all records made in this call, too.
    """
    end = time.monotonic() + budget_s
    outcomes: list[Outcome] = []
    made: list[Record] = []
    worker = _Worker(device, say)
    for job in jobs:
        key = job.key()
        if found := recorded(job.name, key, [folder, *known]):
            outcomes.append(Outcome(job, found, f"recorded {found.started_utc}"))
            say(f"== {job.name}: recorded for this code on {found.started_utc}, skipped")
            continue
        if job.data == "latents" and "data" not in job.params:
            outcomes.append(Outcome(job, None, "needs --data"))
            say(f"== {job.name}: skipped, it needs --data FILE (python3 -m benchmarks.gpu.pack_dataset makes it)")
            continue
        if reason := job.lacks(device):
            outcomes.append(Outcome(job, None, reason, can_run=False))
            say(f"== {job.name}: skipped, not for this machine: {reason}")
            continue
        left = end - time.monotonic()
        if left < job.expected_s:
            outcomes.append(Outcome(job, None, f"no budget: {left:.0f} s left, {job.expected_s} s expected"))
            say(f"== {job.name}: not started, {left:.0f} s are left and {job.expected_s} s expected; run again")
            continue
        say(f"== {job.name}: {job.about}")
        try:
            record = worker.run(job, key, device_name, min(job.limit_s, left))
        except BaseException:  # Ctrl-C
            worker.close()
            raise
        write_record(folder, record)
        made.append(record)
        if bundle is not None:
            write_bundle(bundle, made)
        outcomes.append(Outcome(job, record, record.error.splitlines()[-1] if record.error else ""))
        say(f"== {job.name}: {record.status} after {record.wall_s:.1f} s")
    worker.close()
    return outcomes


class _Worker:
    """The process that jobs run in: a new one per job, unless jobs after one another name the same `process`."""

    def __init__(self, device: str, say: Callable[[str], None]) -> None:
        self._device, self._say = device, say
        self._process: subprocess.Popen[str] | None = None
        self._shared = ""

    def run(self, job: Job, key: str, device_name: str, limit_s: float) -> Record:
        """Run one job; kill its whole process group at `limit_s`.  Never raises for what the job did."""
        started, clock = now_utc(), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="edgewam_gpu_") as scratch:
            path = Path(scratch) / "sections.json"
            process = self._start(job)
            late = threading.Event()

            def stop() -> None:
                late.set()
                _kill_group(process.pid)

            timer = threading.Timer(limit_s, stop)
            timer.start()
            try:
                ended, last = self._follow(process, json.dumps({"job": job.to_json(), "sections": str(path)}))
            finally:
                timer.cancel()
            code = "" if ended else f"exit status {process.wait()}"
            if not ended or not job.process:
                self.close()
            error, sections = None, {}
            try:
                sections = _read_sections(path)
            except EdgewamError as problem:
                error = str(problem)
        if late.is_set():
            error = f"stopped at its time limit of {limit_s:.0f} s"
        elif ended != "ok":
            error = "\n".join([*last, code or "the job failed"])
        elif not sections:
            error = error or "it ended without a result"
        status: Status = "timeout" if late.is_set() else "failed" if error else "ok"
        return Record(job.name, key, status, device_name, started, time.monotonic() - clock, dict(job.params), sections, error)

    def close(self) -> None:
        """End the process and whatever children it left behind."""
        if self._process is not None:
            _kill_group(self._process.pid)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
        self._process = None

    def _start(self, job: Job) -> subprocess.Popen[str]:
        """The process for a job: the one that is there if both share it, else a new one."""
        if self._process is not None and (job.process != self._shared or self._process.poll() is not None):
            self.close()
        if self._process is None:
            environment = {
                **os.environ,
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts, whose name and clocks go into the record
                "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.worker", self._device], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
        self._shared = job.process
        return self._process

    def _follow(self, process: subprocess.Popen[str], order: str) -> tuple[str, deque[str]]:
        """Hand over an order and pass its output on; returns "ok", "failed" or (the process died) "", and the last lines."""
        last: deque[str] = deque(maxlen=LOG_LINES)
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(order + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return "", last
        for line in process.stdout:
            if line.startswith(END):
                return line.removeprefix(END).strip(), last
            last.append(line.rstrip())
            self._say(f"   {line.rstrip()}")
        return "", last


def _read_sections(path: Path) -> dict[str, Section]:
    if not path.exists():
        return {}
    try:
        return {name: Section.from_json(data) for name, data in json.loads(path.read_text()).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgewamError(f"The job wrote sections that cannot be read: {error}") from error


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

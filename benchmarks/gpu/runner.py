"""Runs jobs within a budget: each in its own process group with its own time limit, each recorded as it ends.

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
from benchmarks.results import ROOT, Record, Section, now_utc, recorded, write_record
from edgewam.core.errors import EdgewamError

LOG_LINES = 40  # of a failed job's output that are kept in its record


@dataclass(frozen=True)
class Outcome:
    """What became of a job in this call: its record (new or found), or the reason why it was not started."""

    job: Job
    record: Record | None
    note: str


def run_jobs(
    jobs: Sequence[Job],
    device: str,
    device_name: str,
    folder: Path,
    known: Sequence[Path],
    budget_s: float,
    say: Callable[[str], None] = print,
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
    """
    end = time.monotonic() + budget_s
    outcomes = []
    for job in jobs:
        key = job.key()
        if found := recorded(job.name, key, [folder, *known]):
            outcomes.append(Outcome(job, found, f"recorded {found.started_utc}"))
            say(f"== {job.name}: recorded for this code on {found.started_utc}, skipped")
            continue
        if job.needs_data and "data" not in job.params:
            outcomes.append(Outcome(job, None, "needs --data"))
            say(f"== {job.name}: skipped, it needs --data FILE (python3 -m benchmarks.gpu.pack_dataset makes it)")
            continue
        left = end - time.monotonic()
        if left < job.expected_s:
            outcomes.append(Outcome(job, None, f"no budget: {left:.0f} s left, {job.expected_s} s expected"))
            say(f"== {job.name}: not started, {left:.0f} s are left and {job.expected_s} s expected; run again")
            continue
        say(f"== {job.name}: {job.about}")
        record = run_job(job, key, device, device_name, min(job.limit_s, left), say)
        write_record(folder, record)
        outcomes.append(Outcome(job, record, record.error.splitlines()[-1] if record.error else ""))
        say(f"== {job.name}: {record.status} after {record.wall_s:.1f} s")
    return outcomes


def run_job(job: Job, key: str, device: str, device_name: str, limit_s: float, say: Callable[[str], None] = print) -> Record:
    """Run one job in its own process group; kill the whole group at `limit_s`.  Never raises for what the job did."""
    started, clock = now_utc(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgewam_gpu_") as scratch:
        sections_file = Path(scratch) / "sections.json"
        command = [sys.executable, "-m", "benchmarks.gpu.worker", json.dumps(job.to_json()), device, str(sections_file)]
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill_group(process.pid)

        timer = threading.Timer(limit_s, stop)
        timer.start()
        last: deque[str] = deque(maxlen=LOG_LINES)
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    last.append(line.rstrip())
                    say(f"   {line.rstrip()}")
            code = process.wait()
        finally:
            timer.cancel()
            _kill_group(process.pid)  # Ctrl-C here, or children the job left behind
            process.wait()
        error, sections = None, {}
        try:
            sections = _read_sections(sections_file)
        except EdgewamError as problem:
            error = str(problem)
        if late.is_set():
            error = f"stopped at its time limit of {limit_s:.0f} s"
        elif code != 0:
            error = "\n".join([*last, f"exit status {code}"])
        elif not sections:
            error = error or "it ended without a result"
    status = "timeout" if late.is_set() else "failed" if error else "ok"
    return Record(
        job.name, key, status, device_name, started, time.monotonic() - clock, dict(job.params), sections, error  # type: ignore[arg-type]
    )  # fmt: skip


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

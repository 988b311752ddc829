"""Try things in child processes that might crash, hang or import half of the world: all at once, under one time limit.

A probe is a dotted function with plain arguments; what it returns (plain JSON) or raises comes back as an `Answer`.
A driver that aborts or never returns costs its own row, never the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import IO, Any

MODULE = "edgewam.profiles.probe_process"


@dataclass(frozen=True)
class Probe:
    """`function` ("package.module.name") is called as function(**arguments) in a process with `environment` added."""

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """ok: `value` is what it returned.  Otherwise `reason`: its exception, its signal, or that time was up.

    timed_out: it was ended; a generator's last value still counts then.
    """

    ok: bool
    value: Any = None
    reason: str = ""
    timed_out: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)


def run_probes(probes: Iterable[Probe], limit_s: float) -> dict[str, Answer]:
    """Run all probes at once and end those that have not answered `limit_s` seconds from now.  Answers by name."""
    began = time.monotonic()
    children: dict[str, _Child] = {}
    answers: dict[str, Answer] = {}
    try:
        for probe in probes:
            children[probe.name] = _Child(probe)
        while len(answers) < len(children):
            elapsed = time.monotonic() - began
            for name, child in children.items():
                if name not in answers and (child.has_ended or elapsed >= limit_s):
                    answers[name] = child.answer(elapsed, limit_s)
            time.sleep(0.01)
        return answers
    finally:
        for child in children.values():
            child.end()


class _Child:
    """One probe under way."""

    def __init__(self, probe: Probe) -> None:
        self._output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `end`
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, probe.function, json.dumps(dict(probe.arguments))],
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._errors, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **probe.environment},
        )  # fmt: skip

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def answer(self, seconds: float, limit_s: float) -> Answer:
        """What it said by now."""
        self._output.seek(0)
        text, took = self._output.read(), round(seconds, 2)
        lines = text[: text.rfind("\n") + 1].splitlines()  # only whole ones: it may be writing now
        timed_out = not self.has_ended
        reason = f"no answer within {limit_s:g} s" if timed_out else self._how_it_failed()
        if lines:
            said = json.loads(lines[-1])
            return Answer(said["ok"], said["value"], said["reason"] or reason, timed_out, took)
        return Answer(False, None, reason or "it said nothing", timed_out, took)

    def _how_it_failed(self) -> str:
        """Why an ended process left without having said all; empty after a good end."""
        code = self._process.returncode
        if code == 0:
            return ""
        self._errors.seek(0)
        last = self._errors.read().strip().rpartition("\n")[2]
        ended = f"it crashed ({signal.Signals(-code).name})" if code < 0 else f"it ended with code {code}"
        return f"{ended}: {last}" if last else ended

    def end(self) -> None:
        """Kill it and all that it started, and collect it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()
        self._errors.close()

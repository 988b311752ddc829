"""The parent's side of an evaluation worker: ask for a seed, wait for its episode."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.evaluation.lockstep import EpisodeResult
from edgewam.robot_bridge.processes.spawn import child_environment

MODULE = "edgewam.robot_bridge.evaluation.evaluate_process"
# one thread per worker: sums are then added in the same order on every machine, and workers do not fight over cores
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}


class Worker:
    """One worker process; `play` is for one thread at a time."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=child_environment(_ONE_THREAD),
            start_new_session=True,
            text=True,
        )
        self._is_configured = False
        self._config = json.dumps(dict(config))

    def play(self, seed: int) -> EpisodeResult:
        """One episode.

        Raises:
            EdgewamError: the worker failed; its message.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        answer: dict[str, Any] = {}
        try:
            if not self._is_configured:
                self._process.stdin.write(self._config + "\n")
                self._is_configured = True
            self._process.stdin.write(f"{seed}\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            pass  # it is gone; what it said last is still to be read
        if line := self._process.stdout.readline():
            answer = json.loads(line)
        if "episode" in answer:
            return EpisodeResult(**answer["episode"])
        if "error" in answer:
            raise EdgewamError(f"Evaluation of seed {seed} failed: {answer['error']}")
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().rpartition("\n")[2]
        raise EdgewamError(f"The evaluation worker ended with code {code} at seed {seed}: {last or 'it gave no reason'}")

    def end(self) -> None:
        """Let it leave, or kill it when it is busy; a `play` that waits for it then fails.  May be called from any thread."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(1.0)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """After `end`, and after the last `play` has returned."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

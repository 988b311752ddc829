"""Starting, watching and ending child processes from the parent: plain subprocesses with inherited descriptors.

Not `multiprocessing`: its children import the parent's main module again, which may be anything, and the io process must stay
small.  A child's results and errors go to anonymous temporary files, so nobody can block on a full pipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

MODULE = "edgewam.robot_bridge.processes.child"
LAST_WORDS = 4096  # bytes of its standard error that are looked at when it has failed
KILL_S = 2.0  # a process that has not ended by then hangs inside of the kernel, where no signal reaches it


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with its import path, so that a child finds what the parent finds."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


class Child:
    """One running child.  `wait` and `end` are safe to call more than once."""

    def __init__(self, config: Mapping[str, Any], fds: Iterable[int], environment: Mapping[str, str]) -> None:
        self.role = str(config["role"])
        # whatever a robot's library prints, in whatever encoding, must not harm the parent
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in `close`
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._errors,
            pass_fds=tuple(fds),
            env=child_environment(environment),
            start_new_session=True,  # Ctrl-C is for the parent, who ends the others in order
            text=True,
        )
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stdin:
                stdin.write(json.dumps(dict(config)) + "\n")
        except BrokenPipeError:
            pass  # it died at once; `failure` tells why

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._process.poll()

    def failure(self) -> str:
        """Why it ended, for a user: its own message, or the signal that ended it."""
        code, message = self.exit_code, self._printed().get("error")
        if message is not None:
            return str(message) if code == 1 else f"The {self.role} process failed: {message}"
        if code is not None and code < 0:
            return f"The {self.role} process was ended by {signal.Signals(-code).name}."
        self._errors.seek(max(0, os.fstat(self._errors.fileno()).st_size - LAST_WORDS))
        last = self._errors.read().strip().rpartition("\n")[2]
        return f"The {self.role} process ended with exit code {code}: {last or 'it gave no reason'}."

    def results(self) -> dict[str, Any]:
        """What it printed; empty when it failed or was ended before."""
        return self._printed() if self.exit_code == 0 else {}

    def _printed(self) -> dict[str, Any]:
        self._output.seek(0)
        lines = self._output.read().splitlines()
        try:
            found = json.loads(lines[-1]) if lines else {}
        except ValueError:
            found = {}  # it was ended in the middle of a line
        return found if isinstance(found, dict) else {}

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within the time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, timeout_s: float = 1.0) -> None:
        """Give it a moment to leave by itself, then kill it, and collect it so that no zombie stays."""
        if not self.wait(timeout_s):
            self.kill()

    def kill(self) -> bool:
        """End it now, whatever it does, and collect it; whether that worked.  Never waits for longer than `KILL_S`."""
        self._process.kill()
        return self.wait(KILL_S)

    def close(self) -> None:
        """End it and forget its output."""
        self.end(0.0)
        self._output.close()
        self._errors.close()

"""Run edgewam as a user does: in a process of its own, or in this one through the same `main`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewam import cli

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; anything else there is an error."""
        return json.loads(self.out)

    def ok(self) -> Done:
        """This, if it succeeded."""
        assert self.code == 0, self.err
        return self


def here(*arguments: object) -> Done:
    """Run a command in this process, which spares the imports; its exit code is what the shell would see."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    argv, sys.argv = sys.argv, ["edgewam", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    if isinstance(code, str):  # what Python does with sys.exit("text")
        return Done(1, out.getvalue(), err.getvalue() + code)
    return Done(int(code or 0), out.getvalue(), err.getvalue())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment with one compute thread and this checkout first."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(extra or {})}


def apart(*arguments: object, env: Mapping[str, str] | None = None, file_limit: int | None = None) -> Done:
    """Run a command in a process of its own; `file_limit` is the largest file in bytes that it may write."""

    def limit() -> None:
        assert file_limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    command = [sys.executable, "-m", "edgewam", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(env), capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
        preexec_fn=limit if file_limit is not None else None,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


class Family:
    """A command and all its processes, found by a mark in their environment."""

    def __init__(self, *arguments: object) -> None:
        self._mark = f"EDGEWAM_TEST_MARK={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgewam", *map(str, arguments)],
            env=environment({name: value}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def pids(self) -> list[int]:
        """Living processes of the command; what has ended and only waits to be reaped does not count."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in (directory / "environ").read_bytes():
                    found.append(int(directory.name))
        return found

    def wait_until(self, moment: Callable[[], bool]) -> None:
        """Wait for a moment in the middle of the command."""
        end = time.monotonic() + TIMEOUT_S
        while not moment():
            if self.process.poll() is not None:
                raise AssertionError(f"The command ended before that moment: {self.process.communicate()[1]}")
            assert time.monotonic() < end, "that moment never came"
            time.sleep(0.02)

    def cut(self, number: signal.Signals) -> Done:
        """Ctrl-C reaches the whole group, as in a terminal; any other signal the command's own process alone."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return Done(self.process.returncode, out, err)

    def none_left(self, within_s: float = 10.0) -> bool:
        """Whether every process is gone in time."""
        end = time.monotonic() + within_s
        while self.pids():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def end(self) -> None:
        """Leave nothing behind, whatever the test found."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[Family]:
    """A command under way; whatever is left of it afterwards is killed."""
    family = Family(*arguments)
    try:
        yield family
    finally:
        family.end()


def leftovers(directory: Path) -> list[str]:
    """Temporary siblings of artifacts that a writer should have removed."""
    return sorted(path.name for path in directory.rglob(".*") if path.name.endswith((".partial", ".old")))

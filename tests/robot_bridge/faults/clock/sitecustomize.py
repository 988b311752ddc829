"""A wall clock that a test can step: Python imports this at its start when the folder is on PYTHONPATH.

The offset in seconds is what the file EDGEWAM_TEST_CLOCK holds; every process that asks for the time, or only starts, signs it
with its number in the folder beside it.  The monotonic clock is left alone, as the kernel leaves it.
"""

import os
import time

_PATH = os.environ.get("EDGEWAM_TEST_CLOCK", "")
_time, _time_ns = time.time, time.time_ns


def _offset() -> int:
    try:
        with open(_PATH) as file:
            return int(file.read() or "0")
    except (OSError, ValueError):
        return 0


def _stepped() -> float:
    return _time() + _offset()


def _stepped_ns() -> int:
    return _time_ns() + _offset() * 1_000_000_000


if _PATH:
    time.time, time.time_ns = _stepped, _stepped_ns
    with open(f"{_PATH}.{os.getpid()}", "w"):
        pass

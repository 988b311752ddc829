"""Waiting for something that happens in another thread or process: as long as a busy machine needs, and not a moment longer."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 30.0  # a child process starts in half a second, on two cores that others burn in several


def wait_for(condition: Callable[[], Any], what: str = "it", limit_s: float = PATIENCE_S) -> None:
    """Until the condition holds; an AssertionError that names `what` when it does not in time."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"in vain for {limit_s:g} s: {what}"
        time.sleep(0.01)

"""The dotted factory by which the robot bridge opens a compiled policy in another process."""

from __future__ import annotations

from typing import Any

from edgewam.runtime.bundle import Bundle


def open_policy(bundle: str, threads: int = 2, spinning: bool = True) -> Any:
    """Open a bundle directory, let it test itself, and return the policy that drives it (see `robot_bridge.policy.Policy`)."""
    return Bundle.open(bundle, threads=threads, spinning=spinning).open_policy()

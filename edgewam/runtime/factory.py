"""The dotted factory by which the robot bridge opens a compiled policy in another process."""

from __future__ import annotations

from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.runtime.bundle import Bundle


def open_policy(bundle: str, threads: int = 2, spinning: bool = True, refresh_ticks: int | None = None) -> Any:
    """Open a bundle directory, let it test itself, and return the policy that drives it (see `robot_bridge.policy.Policy`).

    refresh_ticks: control ticks between refreshes of the context, instead of the bundle's own number.

    Raises:
        EdgewamError: a damaged bundle, or a policy without a context that could be refreshed so.
    """
    policy = Bundle.open(bundle, threads=threads, spinning=spinning).open_policy()
    if refresh_ticks is not None:
        if not hasattr(policy, "refresh_every"):
            raise EdgewamError(f"The policy of '{bundle}' has no context to refresh. Leave refresh_ticks out.")
        policy.refresh_every(refresh_ticks)
    return policy

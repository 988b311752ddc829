"""Two pure counters of a door: how often a client may ask (token bucket), and who is the controller (lease).

Neither knows a socket or a policy; time is passed in, in seconds of the monotonic clock.
"""

from __future__ import annotations

from edgewam.robot_bridge.serving.handler import DoorError


class Bucket:
    """`burst` requests at once, `per_second` in the long run."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._level, self._filled_s = burst, 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more request is allowed now; counts it when it is."""
        self._level = min(self._burst, self._level + max(0.0, now_s - self._filled_s) * self._per_second)
        self._filled_s = now_s
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


class Rates:
    """One bucket per client, and one for all of them together but the controller."""

    def __init__(self, per_second: float, burst: float, total_per_second: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._total = Bucket(total_per_second, burst * total_per_second / per_second)
        self._clients: dict[str, Bucket] = {}

    def check(self, client: str, now_s: float, is_exempt: bool = False) -> None:
        """Count one request.  is_exempt: the controller's, which others must not be able to crowd out.

        Raises:
            DoorError: `rate_limited`.
        """
        bucket = self._clients.setdefault(client, Bucket(self._per_second, self._burst))
        if not bucket.take(now_s) or not (is_exempt or self._total.take(now_s)):
            raise DoorError("rate_limited", f"More than {self._per_second:g} requests per second. Ask less often.")

    def forget(self, client: str) -> None:
        """The client is gone."""
        self._clients.pop(client, None)


class Lease:
    """At most one controller.  It stays until it releases, or until another asks after it was silent for `idle_s`."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self.holder: str | None = None
        self._seen_s = 0.0

    def take(self, client: str, now_s: float) -> bool:
        """Become or stay the controller; True when the controller changed.

        Raises:
            DoorError: `not_controller`, somebody else is.
        """
        is_new = client != self.holder
        if is_new and self.holder is not None and now_s - self._seen_s < self._idle_s:
            raise DoorError(
                "not_controller",
                f"Another client controls the robot. Wait until it disconnects or is silent for {self._idle_s:g} s.",
            )
        self.holder, self._seen_s = client, now_s
        return is_new

    def release(self, client: str) -> None:
        """Give it up; nothing happens for a client that does not hold it."""
        if client == self.holder:
            self.holder = None

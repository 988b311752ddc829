"""The monotonic clock of the bridge, the ticks of a control loop, and the real-time permissions a process can get.

Wall-clock time is never used: stepping it must not move the arm.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import time
from collections.abc import Iterator

NS = 1_000_000_000
DRIVER_PRIORITY = 40  # below the io process, whose tick it must not delay
LATEST_START = 0.5  # a tick that would begin later than this part of its period is skipped: the next one is too near
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def now_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds, the same in every process of this machine."""
    return time.monotonic_ns()


def sleep_until(deadline_ns: int) -> int:
    """Sleep to an absolute monotonic time and return the time of waking; returns at once when it has passed.

    The remaining time is computed anew after every early return, so errors do not add up over ticks.
    """
    while (now := time.monotonic_ns()) < deadline_ns:
        time.sleep((deadline_ns - now) / NS)
    return now


def ticks(epoch_ns: int, period_ns: int) -> Iterator[tuple[int, int, int]]:
    """Sleep to each tick's deadline; gives tick, deadline and time of waking.

    Ticks that woke too late are left out, and so are those whose command would follow too closely on one that was sent late.
    """
    tick = 0
    while True:
        deadline_ns = epoch_ns + tick * period_ns
        woken_ns = sleep_until(deadline_ns)
        if woken_ns - deadline_ns > LATEST_START * period_ns:
            tick = _next_tick(woken_ns - epoch_ns, period_ns)
            continue
        yield tick, deadline_ns, woken_ns
        tick = max(tick + 1, _tick_after(now_ns() - epoch_ns, period_ns))


def _next_tick(elapsed_ns: int, period_ns: int) -> int:
    """The next tick that can still be started in time, after a late waking."""
    return (elapsed_ns + period_ns - round(LATEST_START * period_ns)) // period_ns


def _tick_after(elapsed_ns: int, period_ns: int) -> int:
    """The first tick at least `LATEST_START` of a period away."""
    return -((-elapsed_ns - round(LATEST_START * period_ns)) // period_ns)


def become_real_time(priority: int) -> dict[str, str]:
    """Ask for SCHED_FIFO and locked memory and freeze the garbage collector; say what was granted and why not.

    A refusal is no error: the loop runs on, and its counters show what that costs.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    granted = {"scheduler": f"SCHED_FIFO {priority}", "memory": "locked"}
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        granted["scheduler"] = f"SCHED_OTHER (SCHED_FIFO refused: {error.strerror}; needs CAP_SYS_NICE or an rtprio limit)"
    unlimited = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    # under a finite limit MCL_FUTURE would turn a later allocation into a MemoryError inside the loop
    flags = _MCL_CURRENT | (_MCL_FUTURE if unlimited else 0)
    if ctypes.CDLL(None, use_errno=True).mlockall(flags) != 0:
        granted["memory"] = f"not locked ({os.strerror(ctypes.get_errno())}; needs CAP_IPC_LOCK or a memlock limit)"
    return granted


class Sweep:
    """Collects the garbage of a real-time process once a second, when its tick is done.

    Since `become_real_time` nothing else does, and an exception that refers to itself, of a robot's library or a workspace, would
    stay for ever, in locked memory.  What was there at the start is frozen: without garbage a call takes 10 us.
    """

    def __init__(self) -> None:
        self._due_ns = 0

    def if_due(self) -> None:
        """A second after the last time."""
        now = now_ns()
        if now >= self._due_ns:
            self._due_ns = now + NS
            gc.collect()


def become_preferred(nice: int = -10) -> str:
    """Ask for a better share of the processor than ordinary programs get; say what was granted.

    For work that has a deadline in sum but may not block the control loop: drawing images, computing chunks.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        return f"nice {os.getpriority(os.PRIO_PROCESS, 0)} ({nice} refused: {error.strerror}; needs CAP_SYS_NICE or a nice limit)"
    return f"nice {nice}"

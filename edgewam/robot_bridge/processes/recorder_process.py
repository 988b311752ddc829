"""The recorder process: the run's flight recorder.  It reads what the others publish, and nobody waits for it.

It has the priority of an ordinary program, behind every other process of the bridge that computes: what it misses for that is
counted in the recording and in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.robot_bridge.clock import NS, now_ns, sleep_until
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.recorder.flight_recorder import FlightRecorder

POLL_NS = 5_000_000
HEARTBEAT_NS = NS // 10
STOPPED = 1  # `cause` in the status: recording has ended, for example on a full disk
LINGER_NS = 5 * NS // 2  # after the end of the run io still brakes, and its last ticks are the ones to look at
IO_SILENT_NS = NS // 5  # io has left


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Record until the run has ended and io has left; returns the counts (see `FlightRecorder.close`)."""
    recorder = FlightRecorder(config, link.wires)
    stopping_ns, reported_ns = 0, 0
    while True:
        time_ns = now_ns()
        recorder.poll()
        if time_ns - reported_ns >= HEARTBEAT_NS:
            reported_ns = time_ns
            tick = recorder.tallies["tick"]
            link.report(count=tick.kept, tick=tick.last, cause=STOPPED if recorder.fault else 0, lost=recorder.lost)
            if link.is_stopping:
                stopping_ns = stopping_ns or time_ns
                if time_ns - stopping_ns >= LINGER_NS or _io_is_silent(link, time_ns):
                    return recorder.close()
        sleep_until(time_ns + POLL_NS)


def _io_is_silent(link: Link, time_ns: int) -> bool:
    status = link.wires["status_io"].read()
    return status is None or time_ns - int(status[1]["heartbeat_ns"]) >= IO_SILENT_NS

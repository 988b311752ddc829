"""What people ask of the arm, read from counters that only grow: arming and resets are local, a network can only stop.

A counter that changed is a request; nobody can lose one by asking twice, and a torn or repeated record asks for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgewam.robot_bridge.control.modes import Cause
from edgewam.robot_bridge.records.shm_record import Value


@dataclass(frozen=True)
class Orders:
    """stop: why to stop, or NONE.  reset: a local request to leave STOP, new in this tick."""

    is_armed: bool = False
    stop: Cause = Cause.NONE
    reset: bool = False
    estop: bool = False


class OrderReader:
    """Remembers the counters that were seen."""

    def __init__(self) -> None:
        self._stops, self._network_stops, self._resets = 0, 0, 0

    def read(self, control: Value, network_stops: int, is_orphan: bool, is_over: bool = False) -> Orders:
        """This tick's orders.  is_orphan: the supervisor is gone; is_over: the run has lasted as long as it was to last.

        A stop counter that *changes* asks for a stop, so that a writer that was restarted and counts from zero is heard; a reset
        counter has to grow.
        """
        stops, resets = int(control["stops"]), int(control["resets"])
        is_asked = bool(control["quit"]) or is_over or stops != self._stops or network_stops != self._network_stops
        reset = resets > self._resets
        self._stops, self._network_stops, self._resets = stops, network_stops, resets
        stop = Cause.ORPHANED if is_orphan else Cause.REQUEST if is_asked else Cause.NONE
        return Orders(bool(control["is_armed"]), stop, reset, bool(control["estop"]))

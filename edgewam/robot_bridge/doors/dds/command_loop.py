"""The control loop of the ros2 door: one tick per period on absolute deadlines, through the bridge's own controller and filter.

It decides and hands on; who receives a command is the door's business.  Once the inputs have been whole and a first chunk came,
holes in them hold the arm as in `edgewam run`.  A stop latches here and in the handler; it is left when somebody at the machine
has cleared the handler's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgewam.robot_bridge.clock import NS, now_ns, ticks
from edgewam.robot_bridge.control.controller import Controller
from edgewam.robot_bridge.control.decision import Decision, Health, Sensed
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.control.orders import Orders
from edgewam.robot_bridge.doors.dds.chunk_source import ChunkSource
from edgewam.robot_bridge.doors.dds.inputs import Inputs

MAX_BRAKING_S = 2.0  # an arm that is not at rest by then is left to its own watchdog


@dataclass
class Counts:
    """Ticks done and skipped, the largest lateness in microseconds, and the newest decision."""

    ticks: int = 0
    skipped: int = 0
    max_late_us: int = 0
    decision: Decision | None = None


class CommandLoop:
    """`run` in a thread of its own until `quit` is set and the arm has come to rest.

    on_decision: given every decision with its tick.  on_latch: called when the controller has latched STOP or ESTOP.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        inputs: Inputs,
        cameras: Mapping[str, Any],
        on_decision: Callable[[int, Decision], None],
        on_latch: Callable[[], None],
    ) -> None:
        self._controller = Controller(config)
        self._period_ns = round(NS / config["control_hz"])
        self._inputs, self._cameras = inputs, cameras
        self._on_decision, self._on_latch = on_decision, on_latch
        self._stop_asked = threading.Event()
        self._begun = False
        self._was_stopped, self._is_reset_due = False, False
        self._mode = Mode.INIT
        self.tick = 0
        self.counts = Counts()

    def ask_stop(self) -> None:
        """Latch STOP in the next tick.  Safe from any thread, and for whoever asks: it can only stop."""
        self._stop_asked.set()

    def run(self, source: ChunkSource, quit_event: threading.Event) -> None:
        """Tick until asked to leave; then brake first."""
        epoch_ns, next_tick = now_ns() + self._period_ns, 0
        braking_ticks = round(MAX_BRAKING_S * NS / self._period_ns)
        for tick, deadline_ns, woken_ns in ticks(epoch_ns, self._period_ns):
            is_over = quit_event.is_set()
            if is_over and (self._is_at_rest or not braking_ticks):
                break
            self.counts.skipped += tick - next_tick
            self.counts.max_late_us = max(self.counts.max_late_us, (woken_ns - deadline_ns) // 1000)
            self.tick = tick
            self._step(source, is_over)
            braking_ticks -= is_over
            self.tick = next_tick = tick + 1

    @property
    def _is_at_rest(self) -> bool:
        return self._mode in (Mode.INIT, Mode.STOP, Mode.ESTOP) and self._controller.is_at_rest

    def _step(self, source: ChunkSource, is_over: bool) -> None:
        now, snapshot, received = now_ns(), self._inputs.snapshot(), source.newest()
        self._begun |= received is not None
        state: Any = None if snapshot.state is None else snapshot.state.value
        sensed = None if snapshot.state is None else Sensed(state, 0, snapshot.state.t_ns)
        health = Health(snapshot.camera_age_ns(now, self._cameras), now - source.alive_ns)
        decision = self._controller.step(self.tick, now, sensed, received, self._orders(source, is_over), health)
        self._on_decision(self.tick, decision)
        self.counts.ticks += 1
        self.counts.decision = decision
        is_latched = decision.mode >= Mode.STOP > self._mode
        self._mode = decision.mode
        if is_latched and not is_over:
            self._on_latch()

    def _orders(self, source: ChunkSource, is_over: bool) -> Orders:
        is_stopped = source.is_stopped
        # asked for until it is granted: in the tick of the clearing the robot's state may be too old to begin anew from
        self._is_reset_due = not is_stopped and self._mode is Mode.STOP and (self._is_reset_due or self._was_stopped)
        self._was_stopped = is_stopped
        is_asked = self._stop_asked.is_set()
        self._stop_asked.clear()
        stop = Cause.REQUEST if is_asked or is_stopped or is_over else Cause.NONE
        return Orders(self._begun, stop, self._is_reset_due)

"""Asks the handler for action chunks at a steady rate, in a thread of its own, from the newest readings of the robot.

It never hands on anything but chunk records of the bridge's layout; what is wrong with one, the controller finds.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.control.chunks import to_record
from edgewam.robot_bridge.doors.dds.inputs import Inputs
from edgewam.robot_bridge.records.shm_record import SharedRecord, Value
from edgewam.robot_bridge.records.wires import layouts
from edgewam.robot_bridge.robot import RobotSpec
from edgewam.robot_bridge.serving.handler import DoorError, Handler, Look

CLIENT = "ros2"
PAUSE_S = 0.005  # a quarter of a 50 Hz tick: how late a look may be taken
AFTER_ERROR_S = 0.1
_LOST = ("engine_restarting", "deadline")


class ChunkSource:
    """`begin`, then `newest` once per control tick.  tick_of: the present control tick.  errors: refusals by code."""

    def __init__(
        self, handler: Handler, spec: RobotSpec, settings: Mapping[str, Any], inputs: Inputs, tick_of: Callable[[], int]
    ) -> None:
        self._handler, self._spec, self._inputs, self._tick_of = handler, spec, inputs, tick_of
        self._replan_ticks = int(settings["replan_ticks"])
        hz = spec.control_hz
        self._max_age_ns = round(settings["max_state_age_s"] * 1e9), round(settings["max_camera_age_s"] * 1e9)
        self._record = SharedRecord(layouts(spec.num_joints, spec.camera_shapes)["chunk"])
        self._period_s = self._replan_ticks / hz
        self._lock = threading.Lock()
        self._chunk: Value | None = None
        self._number = 0
        self.errors: Counter[str] = Counter()
        self.alive_ns = now_ns()
        self._stopped_ns = 0  # when the handler was known to be stopped, 0: it is not
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chunks", daemon=True)

    def begin(self) -> None:
        """Start asking."""
        self._thread.start()

    def newest(self) -> Value | None:
        """The chunk that has come since the last call."""
        with self._lock:
            chunk, self._chunk = self._chunk, None
            return chunk

    @property
    def is_stopped(self) -> bool:
        """Whether the handler refuses everybody until somebody at the machine clears its stop."""
        return self._stopped_ns > 0

    def note_stop(self) -> None:
        """The handler was stopped just now."""
        self._stopped_ns = now_ns()

    def close(self) -> None:
        """Stop asking and give the handler up."""
        self._quit.set()
        if self._thread.is_alive():
            self._thread.join()
        self._handler.release(CLIENT)
        self._record.close()

    def _run(self) -> None:
        last_tick = -self._replan_ticks
        while not self._quit.wait(PAUSE_S):
            tick = self._tick_of()
            look = self._look(tick) if tick - last_tick >= self._replan_ticks else None
            if look is None:
                self.alive_ns = now_ns()
                continue
            last_tick = tick
            if not self._ask(*look):
                self._quit.wait(AFTER_ERROR_S)

    def _look(self, tick: int) -> tuple[Look, int] | None:
        """The newest readings and the time of the oldest of them; None while one is missing or too old to act on."""
        snapshot, now = self._inputs.snapshot(), now_ns()
        state, images = snapshot.state, snapshot.images
        max_state, max_camera = self._max_age_ns
        if state is None or now - state.t_ns > max_state or snapshot.camera_age_ns(now, self._spec.camera_shapes) > max_camera:
            return None
        shown: Any = {name: images[name].value for name in self._spec.camera_shapes}
        values: Any = state.value
        return Look(shown, values, tick=tick), min([state.t_ns, *(images[name].t_ns for name in self._spec.camera_shapes)])

    def _ask(self, look: Look, t_capture_ns: int) -> bool:
        begin_ns = now_ns()
        try:
            answer = self._handler.infer(CLIENT, look)
        except DoorError as error:
            self.errors[error.code] += 1
            if error.code == "stopped":
                self.note_stop()
            if error.code not in _LOST:
                self.alive_ns = now_ns()
            return False
        self.alive_ns = now_ns()
        if begin_ns > self._stopped_ns:
            self._stopped_ns = 0
        assert look.tick is not None
        chunk = ActionChunk(answer.actions, answer.tick, look.tick, t_capture_ns)
        record = to_record(self._record, chunk, self._number, 0, 0, self.alive_ns - begin_ns)
        record["context_number"] = answer.context_number
        record["context_tick"] = -1 if answer.context_number < 0 else answer.tick - answer.context_age_ticks
        self._number += 1
        with self._lock:
            self._chunk = record
        return True

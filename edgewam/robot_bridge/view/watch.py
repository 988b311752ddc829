"""What the live page shows, gathered from the records of a run: a glance now, counts so far, and the last seconds of motion.

It reads and counts only.  Counts begin with the oldest log row that the ring still held when the page's process started.
"""

from __future__ import annotations

import base64
import io
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.counting.histogram import LATENESS_EDGES_MS, CoarseCounts
from edgewam.robot_bridge.records.shm_record import Value
from edgewam.robot_bridge.records.wires import ROLES, Wires

HISTORY_S = 10.0  # of motion, for a page that has just been opened
LATE = 0.1  # of a period, as in the report
MAX_SIDE = 320  # pictures on the page are made smaller than this, to keep the stream thin
_JPEG_QUALITY = 80
_DIGITS = 4  # of an angle on the page: 0.0001 rad is less than a pixel


class Watch:
    """Call `update` at the page's rate; `glance` is what it found."""

    def __init__(self, config: Mapping[str, Any], wires: Wires) -> None:
        self._wires = wires
        self._hz = float(config["control_hz"])
        self._cameras = list(config["wires"]["camera_shapes"])
        self._roles = [role for role in config.get("roles", ROLES) if role in ROLES]
        self._next_row = self._last_tick = -1
        self._newest: Value | None = None
        self._frame: Value | None = None
        self._frame_version = 0
        self._pictures: tuple[int, dict[str, str]] = (0, {})
        self.history: deque[list[Any]] = deque(maxlen=round(HISTORY_S * self._hz))
        self._counts = dict.fromkeys(("sent", "missed", "late", "held", "rejected", "clamped", "violations", "unseen"), 0)
        self._held_by_cause: dict[str, int] = {}
        self._rejected_by_cause: dict[str, int] = {}
        self._lateness = CoarseCounts(LATENESS_EDGES_MS)
        self.glance: dict[str, Any] = {}

    def update(self) -> list[list[Any]]:
        """Take in what is new; returns the new points [tick, mode, state [D], command [D]] of the traces."""
        points = self._drain()
        if (newer := self._wires["frame"].read(self._frame_version)) is not None:
            self._frame_version, self._frame = newer
        time_ns = now_ns()
        statuses = {role: found[1] for role in self._roles if (found := self._wires[f"status_{role}"].read()) is not None}
        io_status = statuses.get("io")
        mode = Mode.INIT if io_status is None else Mode(int(io_status["mode"]))
        self.glance = {
            "mode": mode.name,
            "cause": _name(Cause, 0 if io_status is None else int(io_status["cause"])),
            "seconds": round(int(io_status["tick"]) / self._hz, 1) if io_status is not None else 0.0,
            "silent_ms": {
                role: _ms(time_ns - int(statuses[role]["heartbeat_ns"])) if role in statuses else None for role in self._roles
            },
            "ages_ms": self._ages(time_ns),
            "counts": self._counts,
            "held_by_cause": self._held_by_cause,
            "rejected_by_cause": self._rejected_by_cause,
            "lateness": self._lateness.to_json(),
            "recorder": _recorder(statuses.get("recorder")) if "recorder" in self._roles else None,
        }
        return points

    def _drain(self) -> list[list[Any]]:
        status = self._wires["status_io"].read()
        end = int(status[1]["count"]) if status is not None else 0
        is_first = self._next_row < 0
        rows, lost = self._wires.log.read(max(0, self._next_row), end)
        self._counts["unseen"] += 0 if is_first else lost
        self._next_row = end
        if not len(rows):
            return []
        self._count(rows, lost)
        points = [
            [int(row["tick"]), int(row["mode"]), row["state"].round(_DIGITS).tolist(), row["command"].round(_DIGITS).tolist()]
            for row in rows[-(self.history.maxlen or 0) :]
        ]
        points = [[tick, mode, *map(_finite, pair)] for tick, mode, *pair in points]
        self.history.extend(points)
        self._newest = rows[-1].copy()
        return points

    def _count(self, rows: Value, lost: int) -> None:
        counts = self._counts
        counts["sent"] += len(rows)
        before = rows["tick"][0] - 1 if self._last_tick < 0 or lost else self._last_tick
        counts["missed"] += int(rows["tick"][-1] - before) - len(rows)
        self._last_tick = int(rows["tick"][-1])
        lateness = rows["sent_ns"] - rows["deadline_ns"]
        counts["late"] += int((lateness > LATE * 1e9 / self._hz).sum())
        self._lateness.add(lateness)
        clamps = rows["range_clamps"] | rows["step_clamps"] | rows["acceleration_clamps"]
        counts["clamped"] += int((clamps != 0).sum())
        counts["violations"] += int(rows["is_violation"].sum())
        held, refused = rows[rows["mode"] == Mode.HOLD], rows[rows["reject"] != Reject.NONE]
        counts["held"] += len(held)
        counts["rejected"] += len(refused)
        for kind, found, into in (
            (Cause, held["cause"], self._held_by_cause),
            (Reject, refused["reject"], self._rejected_by_cause),
        ):
            for code in found.tolist():
                name = _name(kind, code)
                into[name] = into.get(name, 0) + 1

    def _ages(self, time_ns: int) -> dict[str, float | None]:
        """How old is what the arm acts on: of the newest command's observation and context, the state, and each camera now."""
        row, frame = self._newest, self._frame
        ages: dict[str, float | None] = dict.fromkeys(("observation", "context", "state"))
        if row is not None and row["chunk_id"] >= 0:
            ages["observation"] = _ms(int(row["sent_ns"]) - int(row["t_capture_ns"]))
            if row["context_number"] >= 0:
                ages["context"] = round(1e3 * int(row["tick"] - row["context_tick"]) / self._hz, 1)
        if (state := self._wires["state"].read()) is not None:
            ages["state"] = _ms(time_ns - int(state[1]["t_ns"]))
        for index, camera in enumerate(self._cameras):
            ages[camera] = None if frame is None else _ms(time_ns - int(frame["t_camera_ns"][index]))
        return ages

    def lost_cameras(self) -> list[str]:
        """Cameras of which the newest frame holds an old or black picture."""
        return [] if self._frame is None else [name for i, name in enumerate(self._cameras) if self._frame["is_lost"][i]]

    def pictures(self) -> dict[str, str]:
        """Camera name -> small JPEG as base64; made once per frame."""
        if self._frame is not None and self._pictures[0] != self._frame_version:
            self._pictures = (self._frame_version, {name: _jpeg(self._frame[name]) for name in self._cameras})
        return self._pictures[1]

    def png(self, camera: str) -> bytes | None:
        """The newest picture of a camera, lossless and whole; None when there is none."""
        if self._frame is None or camera not in self._cameras:
            return None
        return _encoded(Image.fromarray(self._frame[camera]), "PNG")


def _recorder(status: Value | None) -> dict[str, Any]:
    if status is None:
        return {"ticks": 0, "lost": 0, "has_ended": False}
    return {"ticks": int(status["count"]), "lost": int(status["lost"]), "has_ended": bool(status["cause"])}


def _jpeg(image: Value) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return base64.b64encode(_encoded(picture, "JPEG", quality=_JPEG_QUALITY)).decode()


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _finite(values: list[float]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values]


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 1)


def _name(kind: type[Cause] | type[Reject], code: int) -> str:
    try:
        return kind(code).name
    except ValueError:
        return str(code)

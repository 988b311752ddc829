"""Feeds a recording's observations to a policy again, in the recorded order, and finds the first action that differs.

Refreshes are planned from the frames that they were planned from, chunks are computed from the frames, contexts and prefixes that
they were computed from.  Where the recording lost one of these, the chunks that depend on it are counted and not compared.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import EdgewamError
from edgewam.core.records import Observation
from edgewam.robot_bridge.control.delay import committed
from edgewam.robot_bridge.policy import Policy, SplitPolicy
from edgewam.robot_bridge.recorder.messages import Frame
from edgewam.robot_bridge.recorder.reader import Recording
from edgewam.robot_bridge.records.shm_record import Value

EXACT = 0.0  # the same bundle on the same machine with the same libraries computes the same bits
OTHER_MACHINE = 1e-3  # rad; other kernels sum in another order, and a servo with 12 bits per turn resolves 1.5e-3
FRAMES_KEPT = 512  # 20 s at 25 Hz: no context is older
BYTES_KEPT = 2 << 30  # of them: three times what that many frames of three 480x640 cameras take
_LOW = (1 << 32) - 1

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """The first action that is off by more than the tolerance.  tick: since the epoch; row and joint within the chunk.

    reason: "value", "shape", or the policy's own words when it refused to act.
    """

    tick: int
    chunk_id: int
    row: int
    joint: int
    recorded: float | None
    replayed: float | None
    reason: str = "value"


@dataclass
class Replay:
    """chunks = compared + no_frame + broken + malformed, of those that were recorded.

    no_frame: the frame is not in the recording.  broken: the memory or the context that it needs could not be rebuilt;
    broken_from is the tick of the first one (the next episode starts anew).  malformed: it never was a chunk of numbers.
    max_deviation: over all compared actions, rad.
    """

    tolerance: float
    chunks: int = 0
    compared: int = 0
    exact: int = 0
    no_frame: int = 0
    broken: int = 0
    malformed: int = 0
    broken_from: int | None = None
    refreshes: int = 0
    max_deviation: float = 0.0
    first: Difference | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def replay(recording: Recording, policy: Policy, tolerance: float = EXACT) -> Replay:
    """Run a policy over a recording.

    Raises:
        EdgewamError: the policy does not know the recorded prompt.
    """
    player = _Player(recording, policy, tolerance)
    for name, item in recording.entries():
        if name == "frame":
            player.see_frame(item)
        elif name == "context":
            player.contexts[int(item["number"])] = item
        elif name == "chunk":
            player.chunk(item)
    return player.result


class _Broken(Exception):
    """Something that the policy's state depends on is not in the recording."""


class _Player:
    def __init__(self, recording: Recording, policy: Policy, tolerance: float) -> None:
        config = recording.run["config"]
        self._policy = policy
        self._prompt, self._first_seed = config["prompt"], int(config["seed"])
        self._ticks_per_row = int(config.get("ticks_per_row", 1))
        self._has_contexts = config.get("planner") == "process"  # else the engine refreshed by itself and published no records
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._num_bytes = 0  # of their messages
        self.contexts: dict[int, Value] = {}
        self.result = Replay(tolerance)
        self._last: Value | None = None  # the chunk before this one
        self._context = -1  # number of the context that the policy holds
        self._is_broken = False

    def see_frame(self, frame: Frame) -> None:
        """Keep it for a while."""
        number = int(frame.header["number"])
        if (before := self._frames.pop(number, None)) is not None:
            self._num_bytes -= before.num_bytes
        self._frames[number] = frame
        self._num_bytes += frame.num_bytes
        while len(self._frames) > FRAMES_KEPT or self._num_bytes > BYTES_KEPT:
            self._num_bytes -= self._frames.popitem(last=False)[1].num_bytes

    def chunk(self, value: Value) -> None:
        """Compute a recorded chunk again and compare."""
        result = self.result
        result.chunks += 1
        before, self._last = self._last, value
        is_first = _begins_anew(before, value)
        if is_first:
            self._policy.reset(self._prompt, self._first_seed + int(value["episode"]))
            self._is_broken = False
        frame = self._frames.get(int(value["frame_number"]))
        try:
            if not self._is_broken:
                self._prepare(before, value, is_first, has_frame=frame is not None)
        except _Broken:
            self._is_broken = True
        if self._is_broken:
            result.broken += 1
            result.broken_from = int(value["start_tick"]) if result.broken_from is None else result.broken_from
        elif frame is None:
            result.no_frame += 1
        elif value["dtype"].item() != b"<f4" or not 0 < value["rows"] <= len(value["actions"]):
            self._act(value, frame, before)  # it may have moved the policy's state
            result.malformed += 1
        else:
            self._compare(value, self._act(value, frame, before))

    def _prepare(self, before: Value | None, value: Value, is_first: bool, has_frame: bool) -> None:
        """Bring the policy to the context that the chunk was computed with."""
        number = int(value["context_number"])
        has_all_chunks = bool(value["id"] & _LOW == 1 or (before is not None and value["id"] == before["id"] + 1))
        if number < 0:  # it refreshes inside `infer`: every chunk counts
            if not (has_all_chunks and has_frame):
                raise _Broken
            return
        # what the last episode's chunks were computed with is no concern of this one
        done = int(before["context_number"]) if is_first and before is not None else self._context
        begin = max(done + 1, number & ~_LOW)
        if number - begin > FRAMES_KEPT:
            raise _Broken
        for each in range(begin, number + 1):
            record = self.contexts.get(each)
            if record is not None and record["episode"] != value["episode"]:
                continue
            if each == number:
                self._plan(int(value["episode"]), int(value["context_tick"]), record)
            elif record is not None:
                self._plan(int(value["episode"]), int(record["tick"]), record)
            elif not self._may_be_unknown(each, is_first and has_all_chunks):
                raise _Broken
        self._context = number
        for old in [each for each in self.contexts if each < number]:
            del self.contexts[old]

    def _may_be_unknown(self, number: int, is_first: bool) -> bool:
        """Whether a context that nothing recorded names has no part in this episode's memory.

        A planner process numbers from 1.  An engine begins an episode with the first context it gets, so what is unknown before
        that was the last episode's.
        """
        return number & _LOW == 0 if self._has_contexts else is_first

    def _plan(self, episode: int, tick: int, record: Value | None) -> None:
        self.result.refreshes += 1
        found = [f for f in self._frames.values() if f.header["tick"] == tick and f.header["episode"] == episode]
        if record is not None:  # it knows more precisely
            found = [frame for frame in found if _oldest_capture_ns(frame.header) == record["t_capture_ns"]]
        if not found:
            raise _Broken
        self._policy.plan(self._observation(found[-1]))

    def _observation(self, frame: Frame) -> Observation:
        header = frame.header
        tick = int(header["episode_tick"]) // self._ticks_per_row
        return Observation(frame.images(), header["state"].copy(), tick, _oldest_capture_ns(header))

    def _act(self, value: Value, frame: Frame, before: Value | None) -> Rows | str:
        """The actions [rows, D], or why there are none."""
        observation = self._observation(frame)
        try:
            if value["context_number"] < 0:
                return self._policy.infer(observation).actions
            if not value["prefix_rows"]:
                return self._policy.act(observation).actions
            if not isinstance(self._policy, SplitPolicy):
                return "This policy takes no prefix, and the recorded one was given one."
            return self._policy.act(observation, self._prefix(value, before)).actions
        except EdgewamError as error:
            return str(error)

    def _prefix(self, value: Value, before: Value | None) -> Rows:
        """The rows that the chunk before it commanded, as the engine took them."""
        rows = int(value["prefix_rows"])
        if before is None or before["id"] + 1 != value["id"]:
            return np.array(value["actions"][:rows])  # lost; a policy gives its prefix back
        actions = before["actions"][: int(before["rows"])]
        return committed(actions, int(before["start_tick"]), int(value["start_tick"]), rows, self._ticks_per_row)

    def _compare(self, value: Value, replayed: Rows | str) -> None:
        result = self.result
        result.compared += 1
        recorded = value["actions"][: int(value["rows"])]
        start, every, number = int(value["start_tick"]), int(value["ticks_per_row"]), int(value["id"])
        if isinstance(replayed, str) or replayed.shape != recorded.shape:
            reason = replayed if isinstance(replayed, str) else f"shape {list(replayed.shape)}, not {list(recorded.shape)}"
            result.first = result.first or Difference(start, number, 0, 0, None, None, reason)
            return
        same = (recorded == replayed) | (np.isnan(recorded) & np.isnan(replayed))
        result.exact += bool(same.all())
        deviation = np.where(same, 0.0, np.abs(recorded.astype(np.float64) - replayed.astype(np.float64)))
        deviation = np.where(np.isnan(deviation), np.inf, deviation)
        result.max_deviation = max(result.max_deviation, float(deviation.max()))
        off = np.argwhere(deviation > result.tolerance)
        if len(off) and result.first is None:
            row, joint = off[0].tolist()
            values = float(recorded[row, joint]), float(replayed[row, joint])
            result.first = Difference(start + row * every, number, row, joint, *values)


def _begins_anew(before: Value | None, value: Value) -> bool:
    """A new episode, or a process with an empty memory after a restart: its numbers have another generation."""
    if before is None or before["episode"] != value["episode"]:
        return True
    name = "context_number" if value["context_number"] >= 0 else "id"
    return bool(before[name] >> 32 != value[name] >> 32)


def _oldest_capture_ns(header: Value) -> int:
    """As engine and planner stamp an observation (`frames.Frames.t_capture_ns`)."""
    stamps = header["t_camera_ns"]
    return int(stamps.min()) if len(stamps) and stamps.all() else int(header["t_ns"])

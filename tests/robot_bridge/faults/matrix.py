"""The fault matrix: one row per fault, what is done, and what the bridge must do about it.

`tick`: the fault in simulated time, exact to the tick (world.py).  `run`: the same with real processes (rig.py).  `door`: against
the serving core (doors.py).  A row may have several; the expectation is one.  Rows marked `is_fast` also run with real processes in
`make test`; `make soak` runs everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgewam.robot_bridge.run import RunSettings
from tests.robot_bridge.faults import injectors
from tests.robot_bridge.faults.judge import ENDS, RECOVERS, STOPS, UNAFFECTED
from tests.robot_bridge.faults.world import BEGIN, HORIZON, PERIOD_NS, Spoiler, World

# ticks until HOLD at 50 Hz with the default settings
CHUNK_ENDS = HORIZON + 1  # the last good chunk reaches so far
STATE_OLD = 4  # max_state_age_s 0.06 is three periods
CAMERA_OLD = 12  # max_camera_age_s 0.2 is ten periods, a picture is two long
ENGINE_GONE = 51  # engine_lost_s 1.0


FIRST_ANSWER = 2  # ticks from a fault's begin to the first answer after it


@dataclass(frozen=True)
class Fault:
    """One row.  hold_within: ticks until HOLD, None: no tick of HOLD.  cause: of the first tick of it, one of these.

    counted: what must have been counted, by the names of `Seen.counted`.  outcome: one of judge.py's.
    """

    name: str
    injected: str
    hold_within: int | None
    outcome: str
    cause: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()
    tick: Spoiler | None = None


def _chunk(kind: str, ticks: int = 48) -> Spoiler:
    spoil = injectors.CHUNKS[kind]
    return Spoiler("answer", lambda world, tick, answer: spoil(answer), ticks)


def _changed(point: str, change: Callable[[object], None], ticks: int = 48) -> Spoiler:
    def spoil(world: World, tick: int, value: object) -> object:
        change(value)
        return value

    return Spoiler(point, spoil, ticks)


def _nothing(point: str, ticks: int = 48, total: int = 320, settings: RunSettings | None = None) -> Spoiler:
    return Spoiler(point, lambda world, tick, value: None, ticks, total, settings)


def _stalled(ticks: int) -> Spoiler:
    """One answer takes longer; what it would have looked at meanwhile is not answered at all."""

    def spoil(world: World, tick: int, answer: object) -> None:
        if tick == BEGIN + FIRST_ANSWER:
            world.due[tick + ticks] = answer

    return Spoiler("answer", spoil, max(ticks, FIRST_ANSWER + 1))


def _state_nan(value) -> None:
    value["state"][3] = float("nan")


def _state_frozen(value) -> None:
    value["t_ns"] -= 5 * PERIOD_NS


def _half_written(name: str, ticks: int = 48) -> Spoiler:
    """The writer dies in the middle of its first write; nobody writes again for a while."""
    is_dead = []

    def spoil(world: World, tick: int, value: object) -> None:
        if not is_dead:
            is_dead.append(tick)
            injectors.leave_half_written(world.wires[name], value)

    return Spoiler(name, spoil, ticks)


def _damaged(name: str) -> Spoiler:
    def spoil(world: World, tick: int, value: object) -> None:
        world.wires[name].write(value)
        injectors.damage(world.wires[name])

    return Spoiler(name, spoil)


NO_CHUNK = ("no_chunk", "rejects", "engine_lost")

MATRIX = (
    Fault("state NaN", "one joint of the robot's report is NaN", STATE_OLD, RECOVERS, ("stale_state",), tick=_changed("state", _state_nan)),
    Fault("state stale", "reports keep coming, stamped 100 ms ago", STATE_OLD, RECOVERS, ("stale_state",), tick=_changed("state", _state_frozen)),
    Fault("state missing", "the driver publishes nothing", STATE_OLD, RECOVERS, ("stale_state",), tick=_nothing("state")),
    Fault("chunk NaN", "one number of every chunk is NaN", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:not_finite",), _chunk("nan")),
    Fault("chunk Inf", "the last row has -Inf", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:not_finite",), _chunk("inf")),
    Fault("chunk jump", "one joint is 0.9 rad off", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:jump",), _chunk("jump")),
    Fault("chunk too narrow", "5 of 14 joints", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:shape",), _chunk("narrow")),
    Fault("chunk empty", "no rows", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:shape",), _chunk("empty")),
    Fault("chunk too long", "160 rows", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:shape",), _chunk("long")),
    Fault("chunk dtype", "float64", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:dtype",), _chunk("dtype")),
    Fault("chunk of the future", "t0 lies 40 ticks ahead", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:future",), _chunk("future")),
    Fault("chunk of the past", "t0 lies 40 ticks back", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:expired",), _chunk("expired")),
    Fault("chunk of an old picture", "observed 2 s ago", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:stale",), _chunk("old")),
    Fault("chunk id negative", "number -7", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:replayed",), _changed("chunk", injectors.negative_id)),
    Fault("chunk id replayed", "number 1 again and again", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("reject:replayed",), _changed("chunk", injectors.replayed_id)),
    Fault("state record torn", "writer killed in the middle of a write", STATE_OLD, RECOVERS, ("stale_state",), ("torn_reads",), _half_written("state")),
    Fault("state record damaged", "a byte flips after every write", STATE_OLD, RECOVERS, ("stale_state",), ("torn_reads",), _damaged("state")),
    Fault("chunk record torn", "writer killed in the middle of a write", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("torn_reads",), _half_written("chunk")),
    Fault("chunk record damaged", "a byte flips after every write", CHUNK_ENDS, RECOVERS, NO_CHUNK, ("torn_reads",), _damaged("chunk")),
    Fault("engine stalls 50 ms", "one chunk comes three ticks late", None, UNAFFECTED, tick=_stalled(3)),
    Fault("engine stalls 500 ms", "one chunk comes 25 ticks late", CHUNK_ENDS, RECOVERS, NO_CHUNK, tick=_stalled(25), counted=("reject:expired",)),
    Fault(
        "engine stalls for ever", "no chunk any more", CHUNK_ENDS, STOPS, NO_CHUNK,
        tick=_nothing("answer", 1000, 300, RunSettings(max_hold_s=2.0)),
    ),
)  # fmt: skip
_ = ENDS, CAMERA_OLD, ENGINE_GONE

"""The fault matrix: one row per fault, what is done, and what the bridge must do about it.

`tick`: the fault in simulated time, exact to the tick (world.py).  `run`: with real processes (rig.py).  `door`: against a door
with the serving core behind it (doors.py).  A row may have several; what is expected is the same.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.robot_bridge.faults import doors, scenes, spoilers
from tests.robot_bridge.faults.judge import ENDS, RECOVERS, STOPS, UNAFFECTED
from tests.robot_bridge.faults.rig import Evidence, Incident, nothing, send
from tests.robot_bridge.faults.world import HORIZON, MAX_CONTEXT_AGE, Spoiler

# ticks until HOLD at 50 Hz with the default settings
AT_CHUNK_END = HORIZON + 1  # the last good chunk reaches so far
STATE_OLD = 4  # max_state_age_s 0.06 is three periods
CAMERA_OLD = 13  # max_camera_age_s 0.2 is ten periods; a picture is shown for two
ENGINE_GONE = 52  # engine_lost_s 1.0
CONTEXT_OLD = MAX_CONTEXT_AGE + AT_CHUNK_END

NO_CHUNK, CAMERA, STATE = ("no_chunk",), ("camera",), ("stale_state",)
NO_ENGINE, NO_PLANNER = ("no_chunk", "engine_lost"), ("old_context", "no_chunk")
ANY = (*NO_ENGINE, *NO_PLANNER, *STATE, *CAMERA, "recovering")


@dataclass(frozen=True)
class Fault:
    """One row.

    name: "what: how".  hold_within: ticks until HOLD, None: no tick of HOLD.  outcome: one of these of judge.py; a row that may
    stay unaffected need not hold.  cause: of the first tick of HOLD, one of these.  counted: must be, by the names of `Seen`.
    check: what else must be true of a run with real processes.  is_fast: runs with real processes in `make test` too.
    """

    name: str
    injected: str
    hold_within: int | None
    outcome: tuple[str, ...]
    cause: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()
    tick: Spoiler | None = None
    run: Incident | None = None
    door: Callable[[str], str] | None = None
    check: Callable[[Evidence], list[str]] = field(default=scenes.nothing_more)
    is_fast: bool = False


def _camera(how: str, injected: str, tick: Spoiler | None, run: Incident, *counted: str) -> Fault:
    return Fault(f"camera: {how}", injected, CAMERA_OLD, (RECOVERS,), CAMERA, counted, tick, run)


def _chunk(how: str, injected: str, reject: str, tick: Spoiler, run: Incident) -> Fault:
    return Fault(f"chunk: {how}", injected, AT_CHUNK_END, (RECOVERS,), NO_CHUNK, (f"reject:{reject}",), tick, run)


def _torn(name: str, how: str, injected: str, within: int, cause: tuple[str, ...], tick: Spoiler) -> Fault:
    return Fault(f"record {name}: {how}", injected, within, (RECOVERS,), cause, ("torn_reads",), tick)


def _door(how: str, injected: str, door: Callable[[str], str]) -> Fault:
    return Fault(f"door: {how}", injected, None, (UNAFFECTED,), door=door)


MATRIX: tuple[Fault, ...] = (
    _camera("drop", "one camera gives no images any more", spoilers.frozen(1), Incident("camera_absent")),
    _camera("all drop", "reading any camera raises", spoilers.silent("frame"), Incident("camera_drop")),
    _camera("freeze", "the same frame with its old stamp", spoilers.frozen(0), Incident("camera_freeze", is_real=True)),
    _camera("wrong shape", "half of the rows", None, Incident("camera_shape"), "lost_images:cam_wrist"),
    _camera("wrong dtype", "float32", None, Incident("camera_dtype"), "lost_images:cam_wrist"),
    _camera("black", "every pixel 0", None, Incident("camera_black"), "lost_images:cam_wrist"),
    _camera("late", "one camera's images are 200 ms old", spoilers.late(0.2), Incident("camera_late", is_real=True)),
    Fault(
        "camera process: SIGKILL", "the process is killed", CAMERA_OLD, (UNAFFECTED, RECOVERS), CAMERA, ("restarts:camera",),
        run=Incident(begin=send("camera", signal.SIGKILL), end=nothing),
    ),
    Fault(
        "state: NaN", "one joint of the robot's report is NaN", STATE_OLD, (RECOVERS,), STATE,
        tick=spoilers.state_nan(), run=Incident("state_nan"),
    ),
    Fault(
        "state: wrong dim", "5 numbers for 14 joints, for 0.3 s", STATE_OLD, (RECOVERS,), STATE, ("robot_errors",),
        run=Incident("state_dim", end_s=1.6, is_real=True),
    ),
    Fault(
        "state: wrong dim for good", "5 numbers for 14 joints, from now on", STATE_OLD, (ENDS,), STATE,
        run=Incident("state_dim", end_s=10.0, seconds=12.0, is_real=True),
    ),
    Fault(
        "state: stale", "reports keep coming, stamped 100 ms ago", STATE_OLD, (RECOVERS,), STATE,
        tick=spoilers.state_old(0.1), run=Incident("state_late", end_s=1.5),
    ),
    Fault("state: missing", "the driver publishes nothing", STATE_OLD, (RECOVERS,), STATE, tick=spoilers.silent("state")),
    Fault(
        "engine: stalls 50 ms", "one chunk comes three ticks late", None, (UNAFFECTED,),
        tick=spoilers.stalled(3), run=Incident("stall_50", end_s=1.35),
    ),
    Fault(
        "engine: stalls 500 ms", "one chunk comes 25 ticks late", AT_CHUNK_END, (RECOVERS,), NO_ENGINE,
        tick=spoilers.stalled(25), run=Incident("stall_500", end_s=1.5),
    ),
    Fault(
        "engine: stalls for good", "no chunk any more; nobody restarts the engine", AT_CHUNK_END, (STOPS,), NO_ENGINE,
        tick=spoilers.silent("answer", 1000, 300, max_hold_s=2.0),
    ),
    Fault(
        "engine: hangs", "a call that never returns", AT_CHUNK_END, (RECOVERS,), NO_ENGINE, ("restarts:engine",),
        run=Incident("stall_forever", end_s=1.7, seconds=8.0, settings={"heartbeat_timeout_s": 1.5}),
    ),
    Fault(
        "engine: silent", "no sign of life, though chunks come", ENGINE_GONE, (RECOVERS,), ("engine_lost",),
        tick=spoilers.silent("status", 80),
    ),
    Fault(
        "engine: SIGKILL", "the process is killed", AT_CHUNK_END, (RECOVERS,), NO_ENGINE, ("restarts:engine",),
        run=Incident("", send("engine", signal.SIGKILL), nothing, before=scenes.slow_start), is_fast=True,
    ),
    Fault(
        "engine: fails again and again", "every call raises", AT_CHUNK_END, (ENDS,), NO_ENGINE, ("restarts:engine",),
        run=Incident("raise", end_s=20.0, seconds=25.0),
    ),
    Fault(
        "planner: stale", "chunks go on with the context of long ago", CONTEXT_OLD, (RECOVERS,), NO_PLANNER,
        ("reject:old_context",), tick=spoilers.old_context(96),
    ),
    Fault(
        "planner: SIGKILL", "the process is killed", CONTEXT_OLD, (UNAFFECTED, RECOVERS), NO_PLANNER, ("restarts:planner",),
        run=Incident("", send("planner", signal.SIGKILL), nothing, settings={"planner": "process"}, before=scenes.slow_start),
    ),
    Fault(
        "planner: hangs", "a refresh that never returns", CONTEXT_OLD, (RECOVERS,), NO_PLANNER, ("restarts:planner",),
        run=Incident("plan_forever", end_s=1.7, seconds=8.0, settings={"planner": "process", "heartbeat_timeout_s": 1.5}),
    ),
    _chunk("NaN", "one number is NaN", "not_finite", spoilers.answer("nan"), Incident("nan")),
    _chunk("Inf", "the last row has -Inf", "not_finite", spoilers.answer("inf"), Incident("inf")),
    _chunk("jump", "one joint is 0.9 rad off", "jump", spoilers.answer("jump"), Incident("jump", end_s=1.7)),
    _chunk("out of range", "every joint 3 rad off", "limits", spoilers.answer("beyond"), Incident("beyond")),
    _chunk("too narrow", "5 of 14 joints", "shape", spoilers.answer("narrow"), Incident("narrow")),
    _chunk("empty", "no rows", "shape", spoilers.answer("empty"), Incident("empty")),
    _chunk("wrong H", "160 rows", "shape", spoilers.answer("long"), Incident("long")),
    _chunk("dtype", "float64", "dtype", spoilers.answer("dtype"), Incident("dtype")),
    _chunk("negative id", "number -7", "replayed", spoilers.negative_id(), Incident("id_negative")),
    _chunk("replayed id", "number 1 again and again", "replayed", spoilers.replayed_id(), Incident("id_replayed")),
    _chunk("t0 in the future", "it begins 40 ticks ahead", "future", spoilers.answer("future"), Incident("future")),
    _chunk("t0 in the past", "it begins 40 ticks back", "expired", spoilers.answer("expired"), Incident("expired")),
    _chunk("old picture", "observed 2 s ago", "stale", spoilers.answer("old"), Incident("old")),
    Fault(
        "chunk: bad for good", "NaN in every chunk from now on", AT_CHUNK_END, (STOPS,), NO_CHUNK, ("reject:not_finite",),
        tick=spoilers.answer("nan", 1000, 400), run=Incident("nan", end_s=30.0, seconds=7.0, settings={"max_hold_s": 2.0}),
    ),
    _torn("state", "torn", "writer killed in the middle of a write", STATE_OLD, STATE, spoilers.half_written("state")),
    _torn("state", "damaged", "a byte flips after every write", STATE_OLD, STATE, spoilers.damaged("state")),
    _torn("chunk", "torn", "writer killed in the middle of a write", AT_CHUNK_END, NO_CHUNK, spoilers.half_written("chunk")),
    _torn("chunk", "damaged", "a byte flips after every write", AT_CHUNK_END, NO_CHUNK, spoilers.damaged("chunk")),
    _torn("cameras", "torn", "writer killed in the middle of a write", CAMERA_OLD, CAMERA, spoilers.half_written("cameras")),
    Fault(
        "record chunk: writer killed", "the engine dies in the middle of its write", AT_CHUNK_END, (RECOVERS,), NO_ENGINE,
        ("restarts:engine", "torn_reads"),
        run=Incident("torn", end_s=1.6, before=scenes.slow_start), is_fast=True,
    ),
    Fault(
        "clock: stepped by an hour", "time.time() jumps 1 h ahead, then 1 h back, in every process", None, (UNAFFECTED,),
        run=Incident(
            begin=scenes.step_clock(3600), end=scenes.step_clock(-3600), seconds=3.4, environment=scenes.stepped_clock()
        ),
        check=scenes.clock_was_stepped, is_fast=True,
    ),
    Fault(
        "io: SIGSTOP 300 ms", "the process is stopped and continued", AT_CHUNK_END, (UNAFFECTED, RECOVERS),
        ANY, ("missed",),
        run=Incident(begin=send("io", signal.SIGSTOP), end=send("io", signal.SIGCONT), end_s=1.6),
        check=scenes.skips_and_never_bursts,
    ),
    Fault(
        "io: SIGKILL", "the process is killed", None, (ENDS,),
        run=Incident(begin=send("io", signal.SIGKILL), end=nothing, seconds=8.0),
        check=scenes.lease_stops_the_robot, is_fast=True,
    ),
    Fault(
        "driver: SIGSTOP 300 ms", "the process is stopped and continued", STATE_OLD, (RECOVERS,), STATE,
        run=Incident(begin=send("driver", signal.SIGSTOP), end=send("driver", signal.SIGCONT), end_s=1.6),
    ),
    Fault(
        "driver: SIGKILL", "the process is killed", STATE_OLD, (ENDS,), (*STATE, "request"),
        run=Incident(begin=send("driver", signal.SIGKILL), end=nothing, seconds=12.0), check=scenes.says_who_died("driver"),
    ),
    Fault(
        "supervisor: SIGKILL", "the parent of all is killed", None, (ENDS,),
        run=Incident(begin=send("supervisor", signal.SIGKILL), end=nothing, seconds=12.0),
        check=scenes.orphans_come_to_rest, is_fast=True,
    ),
    Fault(
        "machine: CPU burners", "two busy loops per core at nice 0", AT_CHUNK_END, (UNAFFECTED, RECOVERS),
        ANY,
        run=Incident(begin=scenes.burn, end=scenes.cool, end_s=4.0, seconds=6.0), check=scenes.few_ticks_are_missed,
    ),
    Fault(
        "recorder: disk full", "no byte more can be written", None, (UNAFFECTED,),
        run=Incident(begin=scenes.fill_the_disk, end=nothing, settings={"record": scenes.RECORDING}),
        check=scenes.losses_are_told,
    ),
    Fault(
        "recorder: SIGKILL", "the process is killed", None, (UNAFFECTED,), counted=("restarts:recorder",),
        run=Incident(begin=send("recorder", signal.SIGKILL), end=nothing, settings={"record": scenes.RECORDING}),
        check=scenes.a_new_part_was_begun,
    ),
    Fault(
        "shared memory: unlinked", "everything in /dev/shm that could be ours is looked for", None, (UNAFFECTED,),
        run=Incident(begin=scenes.look_for_names, end=nothing), check=scenes.memory_had_no_name,
    ),
    _door("garbage", "random bytes, before and inside of the protocol", doors.garbage),
    _door("oversize", "a frame above the limit", doors.oversize),
    _door("truncated", "half of a valid request", doors.truncated),
    _door("slow loris", "eight connections that send a byte now and then", doors.slow_loris),
    _door("100 connects", "a hundred connections that say nothing", doors.hundred_connects),
    _door("disconnect mid-chunk", "the controller vanishes while its chunk is computed", doors.disconnect),
    _door("wrong token", "a token that is wrong, empty, or missing", doors.wrong_token),
)  # fmt: skip

"""The io process: owns the control clock and the safety filter, sends one command per tick, and outlives all others.

It imports neither torch nor the robot nor a policy; all it knows of the robot are numbers.  When its supervisor is gone it
latches STOP, brakes and goes on sending the held pose for `orphan_s`, so that the robot's own lease runs out on an arm at rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.robot_bridge.clock import NS, Sweep, become_real_time, now_ns, sleep_until, ticks
from edgewam.robot_bridge.control.controller import Controller
from edgewam.robot_bridge.control.decision import Decision, Health, Sensed
from edgewam.robot_bridge.control.orders import OrderReader
from edgewam.robot_bridge.processes.child import Link
from edgewam.robot_bridge.records.shm_record import Value

PRIORITY = 60
NEVER_NS = 1 << 62  # age of what has never come
READS = ("state", "chunk", "cameras", "status_engine", "requests")


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Control for `config["num_ticks"]` ticks from the epoch, then brake and leave; returns permissions and counts."""
    period_ns, orphan_ns = round(NS / config["control_hz"]), round(config["orphan_s"] * NS)
    loop = _Loop(config, link)  # what is wrong with the configuration is said before anybody is ready
    granted = become_real_time(PRIORITY)
    link.report()
    while not (epoch_ns := link.epoch_ns):
        if link.is_stopping:
            return {"real_time": granted, "torn_reads": 0, "silent_ticks": 0}
        sleep_until(now_ns() + 5_000_000)
    leave_ns: int | None = None
    sweep = Sweep()
    for tick, deadline_ns, woken_ns in ticks(epoch_ns, period_ns):
        is_orphan, is_over = link.is_orphan, tick >= config["num_ticks"]
        if is_over and loop.is_at_rest:
            break
        loop.tick(tick, deadline_ns, woken_ns, is_orphan, is_over)
        sweep.if_due()
        if is_orphan and leave_ns is None:
            leave_ns = woken_ns + orphan_ns
        if leave_ns is not None and woken_ns >= leave_ns:
            break
        if link.is_quitting and loop.is_at_rest:
            break
    return {"real_time": granted, "torn_reads": loop.torn_reads, "silent_ticks": loop.silent_ticks}


def age_ns(now: int, stamp: int) -> int:
    """Time since a stamp that another process wrote: never negative, and it fits an int64 whatever was written."""
    return min(max(now - stamp, 0), NEVER_NS)


class _Loop:
    """The records around a `Controller`."""

    def __init__(self, config: Mapping[str, Any], link: Link) -> None:
        self._link = link
        self._controller = Controller(config)
        self._orders = OrderReader()
        self._records = {name: link.wires[name] for name in READS}
        self._versions = dict.fromkeys(READS, 0)
        self._newest: dict[str, Value] = {}
        self._has_cameras = self._records["cameras"].blank()["t_camera_ns"].size > 0
        self._command = link.wires["command"]
        self._outgoing = self._command.blank()
        self._log = link.wires.log
        self._num_rows = 0
        self.silent_ticks = 0  # in which nothing was to be sent
        self._status: dict[str, Any] = {}

    @property
    def torn_reads(self) -> int:
        """Reads that found half-written or damaged bytes; each kept the value before it."""
        return sum(record.torn for record in self._records.values())

    @property
    def is_at_rest(self) -> bool:
        """Nothing is left to brake."""
        return self._controller.is_at_rest

    def _read(self, name: str) -> Value | None:
        """A value that has come since the last call, which is also kept in `_newest`."""
        newer = self._records[name].read(self._versions[name])
        if newer is None:
            return None
        self._versions[name], self._newest[name] = newer
        return newer[1]

    def tick(self, tick: int, deadline_ns: int, woken_ns: int, is_orphan: bool, is_over: bool) -> None:
        """Read, decide, send, log.  Once the run is over the arm is only braked, and that is not logged: it is no part of it."""
        received = self._read("chunk")
        for name in ("state", "cameras", "status_engine", "requests"):
            self._read(name)
        network_stops = int(self._newest["requests"]["stops"]) if "requests" in self._newest else 0
        orders = self._orders.read(self._link.control, network_stops, is_orphan, is_over)
        now = now_ns()
        health, sensed = self._health(now), self._sensed()
        decision = self._controller.step(tick, now, sensed, received, orders, health)
        if decision.command is not None:
            outgoing = self._outgoing
            outgoing["tick"], outgoing["episode"], outgoing["target"] = tick, self._controller.episode, decision.command
            outgoing["is_live"], outgoing["t_sent_ns"] = decision.is_live, (sent_ns := now_ns())
            self._command.write(outgoing)
            if not is_over:
                self._write_log((tick, deadline_ns, woken_ns, sent_ns), decision, received, health)
        if not is_over:
            self.silent_ticks += decision.command is None
            self._status = {
                "count": self._num_rows,
                "tick": tick,
                "mode": decision.mode,
                "cause": decision.cause,
                "applied_id": self._controller.applied_id,
                "delay_ticks": self._controller.delay_ticks,
            }
        self._link.report(**self._status)  # a sign of life also while it brakes, which an acceleration limit may make long

    def _sensed(self) -> Sensed | None:
        state = self._newest.get("state")
        return None if state is None else Sensed(state["state"], int(state["episode"]), int(state["t_ns"]))

    def _health(self, now: int) -> Health:
        cameras, engine = self._newest.get("cameras"), self._newest.get("status_engine")
        if not self._has_cameras:
            camera_age = 0
        else:
            camera_age = NEVER_NS if cameras is None else age_ns(now, int(cameras["t_camera_ns"].min()))
        return Health(camera_age, NEVER_NS if engine is None else age_ns(now, int(engine["heartbeat_ns"])))

    def _write_log(self, times: tuple[int, int, int, int], decision: Decision, received: Value | None, health: Health) -> None:
        row, state, chunk = self._log.row(self._num_rows), self._newest["state"], decision.chunk
        row["tick"], row["deadline_ns"], row["woken_ns"], row["sent_ns"] = times
        row["episode"], row["mode"], row["cause"] = self._controller.episode, decision.mode, decision.cause
        row["is_received"], row["reject"] = received is not None, decision.reject
        row["infer_ns"] = 0 if received is None else received["infer_ns"]
        row["chunk_id"] = -1 if chunk is None else chunk["id"]
        for name in ("t_capture_ns", "t_frame_ns", "t_begin_ns", "observation_tick"):
            row[name] = 0 if chunk is None else chunk[name]
        row["t_chunk_ns"] = 0 if chunk is None else chunk["t_sent_ns"]
        for name in ("context_tick", "context_number"):
            row[name] = -1 if chunk is None else chunk[name]
        row["row"], row["num_blended"], row["is_seam"] = decision.row, decision.num_blended, decision.is_seam
        row["state"], row["state_t_ns"] = state["state"], state["t_ns"]
        row["applied_tick"], row["applied_ns"] = state["applied_tick"], state["applied_ns"]
        row["camera_age_ns"] = health.camera_age_ns
        row["range_clamps"], row["step_clamps"] = decision.range_clamps, decision.step_clamps
        row["acceleration_clamps"], row["workspace"] = decision.acceleration_clamps, decision.workspace
        row["is_anchor"], row["is_violation"], row["command"] = decision.is_anchor, decision.is_violation, decision.command
        self._num_rows += 1

"""The io process: owns the control clock and the safety filter, sends one command per tick, and outlives all others.

It imports neither torch nor the robot nor a policy; all it knows of the robot are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewam.robot_bridge.child import Link
from edgewam.robot_bridge.clock import NS, become_real_time, now_ns, sleep_until
from edgewam.robot_bridge.controller import Controller, Decision, Sensed
from edgewam.robot_bridge.shm_record import SharedRecord, Value

PRIORITY = 60
LATEST_START = 0.5  # a tick that would begin later than this part of its period is skipped: the next one is too near


def run(config: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Control for `config["num_ticks"]` ticks from the epoch, then brake and leave; returns permissions and torn reads."""
    period_ns = round(NS / config["control_hz"])
    granted = become_real_time(PRIORITY)
    link.report()
    while not (epoch_ns := link.epoch_ns):
        if link.is_stopping:
            return {"real_time": granted, "torn_reads": 0}
        sleep_until(now_ns() + 5_000_000)
    loop = _Loop(config, link)
    tick, braking_left = 0, int(config["ramp_ticks"]) + 1
    while tick < config["num_ticks"] and braking_left:
        deadline_ns = epoch_ns + tick * period_ns
        woken_ns = sleep_until(deadline_ns)
        if woken_ns - deadline_ns > LATEST_START * period_ns:
            tick = _next_tick(woken_ns - epoch_ns, period_ns)
            continue
        stop = link.is_stopping
        loop.tick(tick, deadline_ns, stop)
        braking_left -= stop
        tick += 1
    return {"real_time": granted, "torn_reads": loop.torn_reads}


def _next_tick(elapsed_ns: int, period_ns: int) -> int:
    """The next tick that can still be started in time, after a late waking."""
    return (elapsed_ns + period_ns - round(LATEST_START * period_ns)) // period_ns


class _Loop:
    """The records around a `Controller`."""

    def __init__(self, config: Mapping[str, Any], link: Link) -> None:
        self._link = link
        self._controller = Controller(config)
        self._state, self._chunk = link.wires["state"], link.wires["chunk"]
        self._command = link.wires["command"]
        self._outgoing = self._command.blank()
        self._log = link.wires.log
        self._row = 0
        self._versions = {"state": 0, "chunk": 0}
        self._sensed: Sensed | None = None

    @property
    def torn_reads(self) -> int:
        return self._state.torn + self._chunk.torn

    def _newest(self, name: str, record: SharedRecord) -> Value | None:
        newer = record.read(self._versions[name])
        if newer is None:
            return None
        self._versions[name] = newer[0]
        return newer[1]

    def tick(self, tick: int, deadline_ns: int, stop: bool) -> None:
        """Read, decide, send, log."""
        if (state := self._newest("state", self._state)) is not None:
            self._sensed = Sensed(state["state"], int(state["episode"]), int(state["t_ns"]))
        received = self._newest("chunk", self._chunk)
        decision = self._controller.step(tick, now_ns(), self._sensed, received, stop=stop, estop=self._link.is_estop)
        if decision.command is not None:
            outgoing = self._outgoing
            outgoing["tick"], outgoing["episode"], outgoing["target"] = tick, self._controller.episode, decision.command
            outgoing["t_sent_ns"] = sent_ns = now_ns()
            self._command.write(outgoing)
            self._write_log(tick, deadline_ns, sent_ns, decision, received)
        self._link.report(count=self._row, tick=tick, mode=decision.mode)

    def _write_log(self, tick: int, deadline_ns: int, sent_ns: int, decision: Decision, received: Value | None) -> None:
        row = self._log.row(self._row)
        row["tick"], row["deadline_ns"], row["sent_ns"] = tick, deadline_ns, sent_ns
        row["episode"], row["mode"], row["cause"] = self._controller.episode, decision.mode, decision.cause
        row["is_received"], row["reject"] = received is not None, decision.reject
        row["infer_ns"] = 0 if received is None else received["infer_ns"]
        row["chunk_id"] = -1 if decision.chunk is None else decision.chunk["id"]
        row["t_capture_ns"] = 0 if decision.chunk is None else decision.chunk["t_capture_ns"]
        row["row"] = decision.row
        row["range_clamps"], row["step_clamps"] = decision.range_clamps, decision.step_clamps
        row["is_violation"], row["command"] = decision.is_violation, decision.command
        self._row += 1

"""The fault matrix: whatever breaks, no command leaves that could hurt, and the arm holds, recovers or stops as the row says."""

from __future__ import annotations

import pytest

from edgewam.robot_bridge import io_process
from tests.robot_bridge.faults.judge import complaints, judge
from tests.robot_bridge.faults.matrix import MATRIX, Fault
from tests.robot_bridge.faults.robot import SPEC
from tests.robot_bridge.faults.world import BEGIN, World


@pytest.mark.parametrize("fault", [fault for fault in MATRIX if fault.tick], ids=lambda fault: fault.name)
def test_a_fault_in_simulated_time(fault: Fault, monkeypatch):
    world = World(fault.tick, lambda clock: monkeypatch.setattr(io_process, "now_ns", clock))
    try:
        rows = world.run()
        seen = judge(rows, BEGIN, SPEC, {"torn_reads": world.loop.torn_reads})
    finally:
        world.close()
    assert not complaints(seen, fault.hold_within, fault.cause, fault.counted, [fault.outcome])

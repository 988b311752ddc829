"""The fault matrix: whatever breaks, no command leaves that could hurt, and the arm holds, recovers or stops as the row says."""

from __future__ import annotations

import json

import pytest

from benchmarks.marks import with_block
from tests.robot_bridge.faults import doors, table
from tests.robot_bridge.faults.matrix import MATRIX, Fault
from tests.robot_bridge.faults.play import in_real_time, in_simulated_time

ACCELERATION = 12.0  # rad/s^2: the limit of speed is reached in a quarter of a second


def rows(level: str, is_fast: bool | None = None) -> list:
    """The rows that have a level, as parameters."""
    chosen = [fault for fault in MATRIX if getattr(fault, level) and is_fast in (None, fault.is_fast)]
    return [pytest.param(fault, id=fault.name) for fault in chosen]


@pytest.mark.parametrize("fault", rows("tick"))
def test_a_fault_in_simulated_time(fault: Fault):
    _, found = in_simulated_time(fault)
    assert not found


@pytest.mark.parametrize(("schedule", "acceleration"), [("ensemble", None), ("crossfade", None), ("replace", ACCELERATION)])
@pytest.mark.parametrize("fault", rows("tick"))
def test_other_schedules_and_an_acceleration_limit_change_nothing_about_it(fault: Fault, schedule, acceleration):
    _, found = in_simulated_time(fault, schedule, acceleration)
    assert not found


@pytest.mark.parametrize("door", doors.names())
@pytest.mark.parametrize("fault", rows("door"))
def test_a_fault_at_a_door(fault: Fault, door: str):
    assert fault.door is not None
    assert fault.door(door)


@pytest.mark.parametrize("fault", rows("run", is_fast=True))
def test_a_fault_with_real_processes(fault: Fault, tmp_path):
    _, found = in_real_time(fault, tmp_path)
    assert not found


@pytest.mark.soak
@pytest.mark.parametrize("fault", rows("run", is_fast=False))
def test_every_other_fault_with_real_processes(fault: Fault, tmp_path):
    _, found = in_real_time(fault, tmp_path)
    assert not found


def test_the_page_shows_the_committed_results_of_exactly_these_rows():
    results = json.loads((table.RESULTS / table.DEVICE / f"{table.NAME}.json").read_text())
    assert set(results) == {fault.name for fault in MATRIX}, "run python3 -m tests.robot_bridge.faults.table"
    text = table.DOC.read_text()
    assert with_block(text, table.NAME, table.table_of(results)) == text


def test_every_row_is_played_somewhere_and_has_a_name_of_its_own():
    assert all(fault.tick or fault.run or fault.door for fault in MATRIX)
    names = [fault.name for fault in MATRIX]
    assert len(set(names)) == len(names)

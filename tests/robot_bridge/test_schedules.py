"""Who follows whom: targets by time, and how one chunk takes over from another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.modes import Mode
from edgewam.robot_bridge.control.scheduling import SCHEDULES, open_schedule
from edgewam.robot_bridge.control.scheduling.crossfade import Crossfade
from edgewam.robot_bridge.control.scheduling.ensemble import MAX_CHUNKS, Ensemble
from edgewam.robot_bridge.control.scheduling.replace import Replace
from edgewam.robot_bridge.control.scheduling.timed_rows import TimedRows
from edgewam.robot_bridge.counting.smoothness import smoothness
from tests.robot_bridge.bench import CONFIG, RECORD, STEP, Bench, ramp


def rows(start, values, ticks_per_row=1):
    value = RECORD.blank()
    value["start_tick"], value["rows"], value["ticks_per_row"] = start, len(values), ticks_per_row
    value["actions"][: len(values), 0] = values
    return TimedRows(value)


def joint(target):
    return None if target is None else float(target.pose[0])


def test_rows_are_read_by_time_and_nothing_is_extrapolated():
    chunk = rows(10, [0.0, 0.1, 0.3])
    assert [None if (p := chunk.at(t)) is None else round(float(p[0]), 6) for t in range(9, 14)] == [None, 0.0, 0.1, 0.3, None]
    assert chunk.last_tick == 12


def test_a_slow_policy_is_interpolated_between_its_rows():
    chunk = rows(10, [0.0, 0.2, 0.4], ticks_per_row=2)
    values = [None if (p := chunk.at(t)) is None else round(float(p[0]), 6) for t in range(10, 16)]
    assert values == [0.0, 0.1, 0.2, 0.3, 0.4, None], "the last row is the last tick: what comes after it is not known"
    assert [chunk.row(t) for t in range(10, 15)] == [0, 0, 1, 1, 2]


@given(st.integers(1, 5), st.integers(2, 10), st.floats(-1, 1), st.floats(-0.1, 0.1))
def test_a_straight_line_is_the_same_line_at_every_row_rate(ticks_per_row, length, offset, slope):
    chunk = rows(0, offset + slope * ticks_per_row * np.arange(length), ticks_per_row)
    for tick in range(chunk.last_tick + 1):
        assert chunk.at(tick)[0] == pytest.approx(offset + slope * tick, abs=1e-6)


def test_replace_follows_the_newest_chunk_at_once():
    schedule = Replace()
    assert schedule.target(0) is None
    schedule.add(rows(0, [0.0] * 8), 0)
    schedule.add(rows(2, [0.5] * 8), 4)
    target = schedule.target(4)
    assert joint(target) == 0.5 and target.num_blended == 1 and target.newest.row(4) == 2
    assert schedule.target(10) is None


def test_ensembling_weighs_the_oldest_chunk_most():
    schedule = Ensemble(decay=0.5)
    for start, value in ((0, 0.0), (2, 0.3), (4, 0.9)):
        schedule.add(rows(start, [value] * 8), start)
    weights = np.exp(-0.5 * np.arange(3))
    target = schedule.target(5)
    assert joint(target) == pytest.approx(float(weights @ [0.0, 0.3, 0.9] / weights.sum()), abs=1e-6)
    assert target.num_blended == 3 and target.newest.start == 4
    last_two = schedule.target(8)  # the first one has ended
    assert joint(last_two) == pytest.approx(float((0.3 + np.exp(-0.5) * 0.9) / (1 + np.exp(-0.5))), abs=1e-6)
    assert joint(schedule.target(11)) == pytest.approx(0.9) and schedule.target(12) is None


def test_a_cross_fade_is_linear_over_its_ticks():
    schedule = Crossfade(ticks=4)
    schedule.add(rows(0, [0.0] * 20), 0)
    schedule.add(rows(3, [1.0] * 20), 5)
    targets = [schedule.target(tick) for tick in range(5, 11)]
    np.testing.assert_allclose([joint(target) for target in targets], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], atol=1e-6)
    assert [target.num_blended for target in targets] == [2, 2, 2, 2, 1, 1]


def test_a_cross_fade_that_meets_another_has_no_step():
    schedule = Crossfade(ticks=4)
    schedule.add(rows(0, [0.0] * 30), 0)
    schedule.add(rows(5, [1.0] * 30), 5)
    values = []
    for tick in range(5, 14):
        if tick == 7:
            schedule.add(rows(7, [0.0] * 30), 7)
        values.append(joint(schedule.target(tick)))
    assert np.abs(np.diff([0.0, *values])).max() <= 0.2 + 1e-6 and values[-1] == 0.0


def test_a_cross_fade_ends_with_the_newest_chunk_whatever_older_ones_had_meant_to_do():
    schedule = Crossfade(ticks=4)
    schedule.add(rows(0, [0.0] * 30), 0)
    schedule.add(rows(5, [1.0] * 3), 5)
    assert schedule.target(7) is not None and schedule.target(8) is None


@given(
    st.sampled_from(SCHEDULES),
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12)), min_size=1, max_size=40
    ),
)
def test_every_strategy_mixes_only_what_chunks_say_about_this_tick_and_keeps_few(name, walk):
    schedule, tick, given_chunks = open_schedule({**CONFIG, "schedule": name}), 0, []
    for gap, values in walk:
        tick += gap
        chunk = rows(tick, values)
        given_chunks.append(chunk)
        schedule.add(chunk, tick)
        target = schedule.target(tick)
        said = [float(c.at(tick)[0]) for c in given_chunks if c.at(tick) is not None]
        assert target.newest is chunk and min(said) - 1e-9 <= joint(target) <= max(said) + 1e-9
        assert 1 <= target.num_blended <= len(said)
        assert len(getattr(schedule, "_chunks", [])) <= MAX_CHUNKS
    schedule.clear()
    assert schedule.target(tick) is None


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(EdgewamError, match="replace, ensemble, crossfade, rtc"):
        open_schedule({**CONFIG, "schedule": "newest"})


def jumpy_run(name):
    """A wave at 5 Hz replanning whose chunks disagree by alternating offsets; the seams' jerk and the largest step."""
    bench = Bench(schedule=name).started()
    seams, before = [], 0
    for tick in range(1, 200):
        received = None
        if tick % 8 == 1:
            offset = 0.03 if tick // 8 % 2 else -0.03
            values = 0.3 * np.sin(2 * np.pi * (tick + np.arange(16)) / 100) + offset
            received = bench.chunk(np.stack([values, np.full(16, 0.5)], 1).astype(np.float32), prefix_rows=16)
        decision = bench.step(received)
        assert decision.mode is Mode.RUN
        if decision.is_seam:
            seams.append(len(bench.commands) - 1)
        assert decision.num_blended >= 1 and before <= int(decision.chunk["id"])
        before = int(decision.chunk["id"])
    assert len(seams) == 24, "every chunk but the first takes over from another"
    return smoothness(bench.commands, seams, STEP * 50, 50.0).seam_jerk


def test_blending_smooths_the_seams_of_chunks_that_disagree():
    jerk = {name: jumpy_run(name) for name in SCHEDULES}
    assert jerk["crossfade"] < 0.7 * jerk["replace"] and jerk["ensemble"] < 0.7 * jerk["replace"], jerk
    assert jerk["rtc"] == jerk["replace"], "it is the policy that makes the rows agree"


def test_chunks_from_before_a_hold_are_not_mixed_into_what_comes_after_it():
    for name in ("ensemble", "crossfade"):
        bench = Bench(schedule=name).running(np.tile(np.float32([0.0, 0.5]), (64, 1)))
        bench.step(sensed=False)
        bench.step(bench.chunk(ramp(0.1, 0, 32)))
        decision = bench.step(bench.chunk(ramp(0.1, 0, 32)))
        assert decision.mode is Mode.RUN and decision.num_blended == 1
        bench.step()
        assert bench.step().command[0] == pytest.approx(0.1)


def test_a_hundred_hertz_loop_follows_a_fifty_hertz_policy_row_by_row():
    bench = Bench(ticks_per_row=2, control_hz=100.0).started()
    values = 0.02 * np.arange(16)
    bench.step(bench.chunk(np.stack([values, np.full(16, 0.5)], 1).astype(np.float32), ticks_per_row=2))
    decisions = [bench.step() for _ in range(31)]
    np.testing.assert_allclose([d.command[0] for d in decisions[:30]], 0.01 * np.arange(1, 31), atol=1e-6)
    assert decisions[29].mode is Mode.RUN and decisions[29].row == 15 and decisions[30].mode is Mode.HOLD

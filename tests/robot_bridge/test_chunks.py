"""What is wrong with a chunk is found before it may move anything, and the one in use goes on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewam.robot_bridge.control.chunks import Reject, Rules, check
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.records.wires import MAX_ROWS
from tests.robot_bridge.bench import CONFIG, RECORD, Bench, ramp

STILL = np.tile(np.float32([0.0, 0.5]), (16, 1))
FAR_OUT = [[2.1, 0.5]] * 16  # the range of joint 0 is [-1, 1]; half of it more is still clamped


@pytest.mark.parametrize(
    ("fields", "reject"),
    [
        ({"ticks_per_row": 2}, Reject.BAD_TIME),
        ({"ticks_per_row": 0}, Reject.BAD_TIME),
        ({"ticks_per_row": -1}, Reject.BAD_TIME),
        ({"prefix_rows": 17}, Reject.BAD_TIME),
        ({"prefix_rows": -1}, Reject.BAD_TIME),
        ({"observation_tick": -50}, Reject.STALE),
        ({"observation_tick": np.iinfo(np.int64).min}, Reject.STALE),
        ({"start_tick": np.iinfo(np.int64).min}, Reject.EXPIRED),
        ({"start_tick": np.iinfo(np.int64).max}, Reject.FUTURE),
        ({"context_number": 3, "context_tick": -20}, Reject.OLD_CONTEXT),
        ({"context_number": -1, "context_tick": -20}, Reject.NONE),
        ({"context_number": 3, "context_tick": -10}, Reject.NONE),
        ({"rows": 2**31 - 1}, Reject.SHAPE),
        ({"rows": -1}, Reject.SHAPE),
        ({"dtype": b"\xff" * 8}, Reject.DTYPE),
        ({"fill": 3e38}, Reject.LIMITS),
    ],
)
def test_senseless_claims_are_refused(fields, reject):
    bench = Bench(max_context_age_ticks=12).running(STILL)
    decision = bench.step(bench.chunk(STILL, **fields))  # tick 2
    assert decision.reject is reject and decision.mode is Mode.RUN


def test_the_age_of_a_context_counts_to_the_beginning_of_the_chunk():
    bench = Bench(max_context_age_ticks=12).running(STILL)
    bench.tick = 14
    assert bench.step(bench.chunk(STILL, start=10, context_number=1, context_tick=-2)).reject is Reject.NONE
    assert bench.step(bench.chunk(STILL, start=11, context_number=1, context_tick=-2)).reject is Reject.OLD_CONTEXT


def test_without_a_bound_the_age_of_a_context_is_the_engine_s_own_matter():
    bench = Bench().running(STILL)
    assert bench.step(bench.chunk(STILL, context_number=1, context_tick=-10_000)).reject is Reject.NONE


def test_running_out_of_chunks_because_of_an_old_context_is_told_apart():
    bench = Bench(max_context_age_ticks=4).running(STILL[:2])
    old = {"context_number": 1, "context_tick": -10}
    assert bench.step(bench.chunk(STILL, **old)).mode is Mode.RUN
    assert bench.step(bench.chunk(STILL, **old)).cause is Cause.OLD_CONTEXT
    assert bench.step().cause is Cause.OLD_CONTEXT


def test_a_first_action_far_out_of_range_is_refused_in_every_mode_and_one_near_it_is_clamped():
    assert Bench().started().step(None).mode is Mode.READY
    bench = Bench().started()
    assert bench.step(bench.chunk(FAR_OUT)).reject is Reject.LIMITS
    assert bench.step(bench.chunk([[0.1, 1.4]] * 16)).reject is Reject.NONE
    late = np.array([[2.5, 0.5]] * 4 + [[0.1, 0.5]] * 12, np.float32)
    assert bench.step(bench.chunk(late, start=bench.tick - 4)).reject is Reject.NONE, "rows that are past are nobody's business"


def test_too_many_bad_chunks_in_a_row_latch_stop_although_the_one_in_use_is_good():
    bench = Bench(max_rejects=3).running(np.repeat(STILL, 4, 0))
    for _ in range(2):
        assert bench.step(bench.chunk(FAR_OUT)).mode is Mode.RUN
    bench.step(bench.chunk(STILL))
    for _ in range(2):
        assert bench.step(bench.chunk(FAR_OUT)).mode is Mode.RUN
    decision = bench.step(bench.chunk(FAR_OUT))
    assert (decision.mode, decision.cause) == (Mode.STOP, Cause.REJECTS)


def test_rtc_refuses_a_chunk_that_was_given_less_than_has_gone_by():
    bench = Bench(schedule="rtc").running(np.tile(STILL, (4, 1)))
    bench.tick = 10
    late = bench.step(bench.chunk(ramp(0, 0.001), start=7, prefix_rows=2))
    assert late.reject is Reject.BAD_PREFIX and late.mode is Mode.RUN
    assert bench.controller.delay_ticks == 3, "so that the engine learns how long it takes"
    assert bench.step(bench.chunk(ramp(0, 0.001), start=8, prefix_rows=3)).reject is Reject.NONE
    assert bench.step(bench.chunk(ramp(0, 0.001), start=8, prefix_rows=16)).reject is Reject.NONE


def test_rtc_needs_no_prefix_where_there_is_no_motion_to_continue():
    bench = Bench(schedule="rtc").started()
    assert bench.step(bench.chunk(STILL, start=0)).mode is Mode.RUN
    plain = Bench().running(STILL)
    plain.tick = 5
    assert plain.step(plain.chunk(STILL, start=3)).reject is Reject.NONE, "only rtc asks for prefixes"


def test_a_refused_number_may_come_again_and_an_accepted_one_may_not():
    bench = Bench().running(STILL)
    assert bench.step(bench.chunk(STILL, number=7, age_ns=-1)).reject is Reject.FUTURE
    assert bench.step(bench.chunk(STILL, number=7)).reject is Reject.NONE
    assert bench.step(bench.chunk(STILL, number=7)).reject is Reject.REPLAYED


RULES = Rules.from_config({**CONFIG, "max_context_age_ticks": 48})


@given(st.binary(min_size=RECORD.layout.itemsize, max_size=RECORD.layout.itemsize))
def test_random_bytes_are_refused_and_never_raise(data):
    value = np.frombuffer(data, RECORD.layout).reshape(())
    assert check(value, RULES, tick=100, now_ns=10**12, episode=0, last_id=-1) is not Reject.NONE


WIDE = st.sampled_from([-(2**63), -(2**31), -65, -1, 0, 1, 2, 63, 64, 65, 2**31, 2**63 - 1])
NARROW = st.sampled_from([-(2**31), -1, 0, 1, 2, 64, 65, 2**31 - 1])
WIDE_NAMES = ("episode", "start_tick", "observation_tick", "t_capture_ns", "context_tick", "context_number")
FIELDS = {
    **{name: WIDE for name in WIDE_NAMES},
    **{name: NARROW for name in ("rows", "columns", "ticks_per_row", "prefix_rows")},
    "fill": st.sampled_from([0.0, 0.5, -3e38, float("nan"), float("inf")]),
}


@given(st.fixed_dictionaries({}, optional=FIELDS), st.sampled_from(["replace", "rtc"]))
def test_extreme_numbers_never_raise_in_a_running_controller(fields, schedule):
    bench = Bench(max_context_age_ticks=12, schedule=schedule).running(STILL)
    decision = bench.step(bench.chunk(STILL, **fields))
    assert not decision.is_violation and np.isfinite(decision.command).all()
    assert -(2**31) <= bench.controller.delay_ticks < 2**31


def test_the_longest_chunk_is_good():
    bench = Bench().running(STILL)
    assert bench.step(bench.chunk(np.tile(STILL, (4, 1))[:MAX_ROWS])).reject is Reject.NONE


def test_numbers_of_reasons_are_those_of_old_logs():
    assert [reason.name for reason in Reject][:10] == [
        *("NONE", "SHAPE", "DTYPE", "NOT_FINITE", "REPLAYED", "OTHER_EPISODE", "FUTURE", "EXPIRED", "STALE", "JUMP")
    ]
    assert list(map(int, Reject)) == list(range(len(Reject)))

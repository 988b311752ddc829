"""Engine and planner over real records, one look at a time: who refreshes when, which context a chunk has, what is refused."""

from itertools import pairwise

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control.modes import Mode
from tests.robot_bridge import fakes
from tests.robot_bridge.split import PERIOD_NS, Bench, Split


@pytest.fixture
def bench():
    benches = []

    def make(**config):
        benches.append(Bench(**config))
        return benches[-1]

    yield make
    for each in benches:
        each.close()


def begun(bench, policy, **config):
    """A bench with an engine that is warm and has seen the epoch."""
    made = bench(**config)
    engine = made.engine(policy)
    made.frame(0)
    engine.step()
    made.start()
    return made, engine


def test_the_first_frame_warms_up_and_only_frames_after_the_epoch_are_answered(bench):
    policy, made = Split(), bench()
    engine = made.engine(policy)
    assert not engine.step() and not engine._frames.is_warm
    made.frame(0, t_ns=made.epoch_ns - 5 * PERIOD_NS)
    engine.step()
    assert engine._frames.is_warm and policy.planned == [0] and made.chunk() is None
    made.start()
    made.frame(0, t_ns=made.epoch_ns - 2 * PERIOD_NS)
    engine.step()
    assert made.chunk() is None
    made.frame(0)
    engine.step()
    chunk = made.chunk()
    assert chunk["start_tick"] == 0 and policy.resets[-1] == ("reach", 7)


def test_a_chunk_says_when_and_from_what_it_was_made(bench):
    made, engine = begun(bench, Split())
    for tick, episode, start in ((0, 0, 0), (8, 0, 0), (2, 3, 40)):
        made.frame(tick, episode, start)
        engine.step()
    chunk = made.chunk()
    assert (chunk["episode"], chunk["start_tick"], chunk["observation_tick"], chunk["frame_number"]) == (3, 42, 42, 4)
    assert chunk["t_capture_ns"] == made.epoch_ns + 42 * PERIOD_NS - 5 and chunk["t_frame_ns"] == chunk["t_capture_ns"] + 8
    assert chunk["t_frame_ns"] < chunk["t_begin_ns"] <= chunk["t_sent_ns"] and chunk["infer_ns"] >= 0
    assert (chunk["context_tick"], chunk["context_number"], chunk["prefix_rows"], chunk["ticks_per_row"]) == (42, 1, 0, 1)


def test_the_engine_refreshes_by_the_tick_of_the_frame_and_after_the_chunk(bench):
    policy = Split()
    made, engine = begun(bench, policy)
    contexts = []
    for tick in range(0, 100, 2):
        made.frame(tick)
        engine.step()
        if (chunk := made.chunk()) is not None:
            contexts.append((int(chunk["start_tick"]), int(chunk["context_tick"]), int(chunk["context_number"])))
    # the first plan is waited for; a later one begins when the chunk of its frame is out, and serves the next one
    assert policy.planned[1:] == [0, 32, 64, 96]
    assert contexts == [
        (0, 0, 0), (8, 0, 0), (16, 0, 0), (24, 0, 0), (32, 0, 0), (40, 32, 1), (48, 32, 1), (56, 32, 1), (64, 32, 1),
        (72, 64, 2), (80, 64, 2), (88, 64, 2), (96, 64, 2),
    ]  # fmt: skip


def test_frames_that_were_skipped_do_not_delay_the_next_refresh(bench):
    policy = Split()
    made, engine = begun(bench, policy)
    for tick in (0, 10, 39, 60, 73):
        made.frame(tick)
        engine.step()
    assert policy.planned[1:] == [0, 39, 73]


def test_a_refresh_in_the_background_never_holds_a_chunk_up(bench):
    policy = Split(in_background=True)
    made, engine = begun(bench, policy)
    made.frame(0)
    engine.step()
    assert made.chunk() is None, "the first context is under way"
    policy.finish()
    engine.step()
    assert made.chunk()["context_tick"] == 0, "the frame that waited is answered"
    for tick in (8, 16, 24, 32, 40):
        made.frame(tick)
        engine.step()
        assert made.chunk()["context_tick"] == 0
    policy.finish()
    made.frame(48)
    engine.step()
    chunk = made.chunk()
    assert (chunk["context_tick"], chunk["start_tick"]) == (32, 48)


def test_where_no_context_serves_nothing_is_published_and_the_next_frame_tries_again(bench):
    made, engine = begun(bench, Split(offset_trained=False))
    made.frame(0)
    engine.step()
    assert made.chunk() is not None
    for tick in (8, 10, 12, 14):
        made.frame(tick)
        engine.step()
    assert made.chunk() is None and engine._counts["refused"] == 4 and engine._refusal == "age 14 has no chunk"
    made.frame(16)
    engine.step()
    assert made.chunk()["start_tick"] == 16


def test_other_errors_leave_the_process(bench):
    policy = Split()
    made, engine = begun(bench, policy)
    policy.act = lambda observation, prefix=None: 1 / 0
    made.frame(0)
    with pytest.raises(ZeroDivisionError):
        engine.step()


def test_a_restarted_engine_goes_on_above_its_predecessor(bench):
    made = bench(generation=2)
    engine = made.engine(Split())
    made.start()
    made.frame(50)
    engine.step()
    chunk = made.chunk()
    assert chunk["id"] == (2 << 32) + 1 and chunk["context_number"] == 2 << 32 and chunk["start_tick"] == 50


def test_a_policy_without_a_context_refreshes_inside_infer(bench):
    made, engine = begun(bench, fakes.slow_wave())
    made.frame(8)
    engine.step()
    chunk = made.chunk()
    assert (chunk["context_tick"], chunk["context_number"]) == (-1, -1) and engine._refresh.name == "blocking"
    with pytest.raises(EdgewamError, match="no context"):
        made.engine(fakes.slow_wave(), planner="process")
    with pytest.raises(EdgewamError, match="planner 'engine'"):
        made.planner(fakes.slow_wave())
    with pytest.raises(EdgewamError, match="refresh_ticks"):
        made.engine(fakes.slow_wave(), refresh_ticks=32)


@pytest.mark.parametrize("ticks", [0, 65])
def test_a_refresh_rate_that_no_horizon_covers_is_refused(bench, ticks):
    with pytest.raises(EdgewamError, match="from 1 to 64"):
        bench().engine(Split(), refresh_ticks=ticks)


def test_without_offsets_the_refresh_rate_stays_on_the_grid(bench):
    with pytest.raises(EdgewamError, match="multiple of 16"):
        bench().engine(Split(offset_trained=False), refresh_ticks=24)


def test_a_slower_policy_counts_its_own_ticks_and_its_chunks_keep_the_control_tick(bench):
    policy = Split()
    made, engine = begun(bench, policy, ticks_per_row=2)
    starts = []
    for tick in (0, 9, 16, 62, 64, 72):
        made.frame(tick, episode_start=100)
        engine.step()
        if (chunk := made.chunk()) is not None:
            starts.append((int(chunk["start_tick"]), int(chunk["context_tick"]), int(chunk["ticks_per_row"])))
            assert chunk["actions"][0, 0] * 1e6 == pytest.approx(tick // 2 + 1000 * ((chunk["context_tick"] - 100) // 2))
    assert policy.planned[1:] == [0, 32], "32 policy ticks are 64 control ticks"
    assert starts == [(100, 100, 2), (109, 100, 2), (116, 100, 2), (162, 100, 2), (164, 100, 2), (172, 164, 2)]


# with a planner process


def pair(bench, policy=None, **config):
    """A bench with a warm engine and a warm planner after the epoch."""
    made = bench(planner="process", **config)
    policies = (policy or Split(), Split())
    engine, planner = made.engine(policies[0]), made.planner(policies[1])
    made.frame(0)
    engine.step()
    planner.step()
    made.start()
    return made, engine, planner, policies


def test_the_planner_refreshes_by_ticks_and_the_engine_takes_what_has_come(bench):
    made, engine, planner, (acting, planning) = pair(bench)
    contexts = []
    for tick in range(0, 80, 4):
        made.frame(tick)
        engine.step()  # before the planner has looked: it is the slower one
        planner.step()
        engine.step()
        if (chunk := made.chunk()) is not None:
            contexts.append((int(chunk["start_tick"]), int(chunk["context_tick"])))
    assert planning.planned[1:] == [0, 32, 64] and acting.planned == [0], "the engine planned to warm up and never again"
    assert contexts == [(0, 0), (8, 0), (16, 0), (24, 0), (32, 0), (40, 32), (48, 32), (56, 32), (64, 32), (72, 64)]


def test_a_context_record_says_when_and_from_what_it_was_made(bench):
    made, _, planner, _ = pair(bench)
    made.frame(6, episode=2, episode_start=300)
    planner.step()
    context = made.context()
    assert (context["episode"], context["number"], context["tick"]) == (2, 1, 306)
    assert context["t_capture_ns"] == made.epoch_ns + 306 * PERIOD_NS - 5 and context["plan_ns"] > 0
    assert bytes(context["data"][: context["length"]]) == b'{"tick": 6, "number": 2}'


def test_without_a_planner_chunks_end_with_the_age_of_the_context_and_come_back_with_a_new_one(bench):
    made, engine, planner, _ = pair(bench)
    made.frame(0)
    planner.step()
    ticks = []
    for tick in range(0, 120, 8):
        made.frame(tick)
        engine.step()
        ticks += [tick] if made.chunk() is not None else []
    assert ticks == [0, 8, 16, 24, 32, 40, 48, 56, 64] and engine._counts["old_context"] == 6
    reborn = made.planner(Split(), generation=1)
    made.frame(120)
    reborn.step()
    engine.step()
    chunk = made.chunk()
    assert chunk["context_tick"] == 120 and chunk["context_number"] == (1 << 32) + 1
    assert reborn._begins_empty and not planner._begins_empty


def test_the_bound_on_the_age_is_the_runs(bench):
    made, engine, planner, _ = pair(bench, max_context_age_ticks=16)
    made.frame(0)
    planner.step()
    for tick in (16, 24):
        made.frame(tick)
        engine.step()
    assert made.chunk()["start_tick"] == 16 and engine._counts["old_context"] == 1


def test_an_engine_waits_for_the_first_context_of_an_episode_and_keeps_an_early_one(bench):
    made, engine, planner, _ = pair(bench)
    made.frame(0)
    planner.step()
    engine.step()
    assert made.chunk()["context_tick"] == 0
    made.frame(0, episode=1, episode_start=50)
    planner.step()  # sees the new episode first
    made.frame(2, episode=1, episode_start=50)
    engine.step()
    chunk = made.chunk()
    assert (chunk["episode"], chunk["start_tick"], chunk["context_tick"]) == (1, 52, 50)
    made.frame(0, episode=2, episode_start=90)
    engine.step()
    assert made.chunk() is None and engine._counts["refused"] == 0, "the context of another episode serves nothing"
    planner.step()
    engine.step()
    assert made.chunk()["context_tick"] == 90


def test_a_restarted_engine_uses_the_context_that_is_there(bench):
    made, _, planner, _ = pair(bench)
    made.frame(0)
    planner.step()
    reborn = made.engine(Split(), generation=1)
    made.frame(24)
    reborn.step()
    assert made.chunk()["context_tick"] == 0


def test_a_torn_context_is_skipped_and_the_old_one_goes_on(bench):
    made, engine, planner, _ = pair(bench)
    made.frame(0)
    planner.step()
    engine.step()
    made.chunk()
    made.frame(32)
    planner.step()
    made.wires["context"]._payload[60] ^= 1  # a byte that no longer fits the checksum
    engine.step()
    assert made.chunk()["context_tick"] == 0 and engine._refresh._record.torn == 1


def test_a_context_that_does_not_fit_its_record_is_refused_with_the_way_out(bench):
    made, _, planner, (_, planning) = pair(bench)
    planning.export_context = lambda: bytes(1 << 21)
    made.frame(0)
    with pytest.raises(EdgewamError, match="max_context_bytes=2097152"):
        planner.step()


# real-time chunking


def test_real_time_chunking_is_refused_for_weights_that_never_saw_a_prefix(bench):
    for policy in (Split(), fakes.slow_wave()):
        with pytest.raises(EdgewamError, match="train and distil with max_prefix, or choose"):
            bench(schedule="rtc").engine(policy)


def test_chunks_continue_what_the_newest_one_will_still_command(bench):
    policy = Split(prefix_trained=True)
    made, engine = begun(bench, policy, schedule="rtc")
    sent = []
    for tick, delay in ((0, 0), (8, 0), (16, 3), (24, 2), (32, 2)):
        if sent:
            made.io(sent[-1]["id"], delay)
        made.frame(tick)
        engine.step()
        sent.append(made.chunk())
    # nothing measured: as many as training allows; then the delay of the second chunk, the first one's does not count
    assert [int(chunk["prefix_rows"]) for chunk in sent] == [0, 8, 3, 3, 3]
    for before, after in pairwise(sent):
        rows, start = int(after["prefix_rows"]), int(after["start_tick"] - before["start_tick"])
        np.testing.assert_array_equal(after["actions"][:rows], before["actions"][start : start + rows])


def test_a_robot_that_holds_gets_no_prefix(bench):
    policy = Split(prefix_trained=True)
    made, engine = begun(bench, policy, schedule="rtc")
    made.frame(0)
    engine.step()
    made.io(made.chunk()["id"], 0, Mode.HOLD)
    made.frame(8)
    engine.step()
    assert made.chunk()["prefix_rows"] == 0
    made.io(1, 0)
    made.frame(0, episode=1, episode_start=16)
    engine.step()
    assert made.chunk()["prefix_rows"] == 0, "another episode's motion is nothing to go on with"


def test_an_answer_that_is_not_finite_is_never_a_prefix(bench):
    policy = Split(prefix_trained=True)
    made, engine = begun(bench, policy, schedule="rtc")
    act = policy.act
    for tick in (0, 8, 16):

        def spoilt(observation, prefix=None, tick=tick):
            chunk = act(observation, prefix)
            chunk.actions[:] = np.nan if tick == 8 else chunk.actions
            return chunk

        policy.act = spoilt
        made.frame(tick)
        engine.step()
        chunk = made.chunk()
        made.io(chunk["id"], 2)
    assert np.isfinite(chunk["actions"]).all() and chunk["prefix_rows"] == 0 and np.isfinite(policy.prefixes[-1]).all()

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.data.sampler import WindowSampler
from edgewam.data.windows import WindowLayout
from tests.data.synthetic import numbers_only

LENGTHS = [150, 90, 201]
ALL = {(episode, start) for episode, length in enumerate(LENGTHS) for start in range(length)}


def sampler(lengths=LENGTHS, **options):
    return WindowSampler(numbers_only(lengths), WindowLayout(), **{"batch_size": 4, "seed": 3, **options})


def pairs(batch):
    return list(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))


def batches_of(one, epoch=0):
    return [one.global_batch(epoch, position) for position in range(one.num_batches(epoch))]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_an_epoch_visits_every_window():
    one = sampler()
    seen = {pair for batch in batches_of(one) for pair in pairs(batch)}
    assert seen == ALL
    assert one.num_windows == len(ALL)
    # only the last batch of each history length may repeat windows
    assert one.num_batches(0) * 4 - len(ALL) < 4 * 7


def test_order_is_a_function_of_seed_epoch_and_position():
    first, second = batches_of(sampler(batch_size=50)), sampler(batch_size=50)
    # asked for in another order
    assert all(same(first[i], second.global_batch(0, i)) for i in reversed(range(len(first))))
    other_seed, other_epoch = sampler(seed=4, batch_size=50).global_batch(0, 0), second.global_batch(1, 0)
    assert pairs(other_seed) != pairs(first[0]) != pairs(other_epoch)


def test_epochs_follow_each_other_without_end():
    one = sampler(batch_size=50)
    counts = [one.num_batches(epoch) for epoch in range(3)]
    places = [(epoch, position) for epoch in range(3) for position in range(counts[epoch])]
    assert [one.place(index) for index in range(sum(counts))] == places
    assert sampler(batch_size=50).place(sum(counts) - 1) == places[-1]  # the first question may be about a late one


@pytest.mark.parametrize("rows", [[slice(0, 8)], [slice(0, 4), slice(4, 8)], [slice(0, 2), slice(2, 5), slice(5, 8)]])
def test_rows_of_a_batch_are_those_of_the_whole_one(rows):
    one = sampler(batch_size=8)
    whole = one.global_batch(0, 5)
    parts = [one.global_batch(0, 5, some) for some in rows]
    assert [pair for part in parts for pair in pairs(part)] == pairs(whole)
    assert {part.valid_len for part in parts} == {whole.valid_len}
    np.testing.assert_array_equal(np.concatenate([part.actions for part in parts]), whole.actions)


def test_a_batch_repeats_no_window_where_there_are_enough():
    one = sampler([400, 290, 301], batch_size=12)  # every history length occurs more than twelve times
    seen = set()
    for batch in batches_of(one):
        assert len(set(pairs(batch))) == 12
        seen |= set(pairs(batch))
    assert len(seen) == 400 + 290 + 301


def test_offsets_and_spacings_are_spread_and_leave_a_real_action():
    one = sampler()
    batches = batches_of(one)
    assert {int(value) for batch in batches for value in batch.offset} == set(range(16))
    assert {int(value) for batch in batches for value in batch.history_spacing} == {32, 64}
    assert {batch.valid_len for batch in batches} == set(range(7))
    assert not any(batch.action_is_pad[:, 0].any() for batch in batches)


def test_a_layout_without_history_or_offset_draws_neither():
    layout = WindowLayout(horizon=64, max_offset=0, num_video_frames=9, num_history=0, history_spacings=())
    batch = WindowSampler(numbers_only(LENGTHS), layout, 8, 0).global_batch(0, 0)
    assert batch.offset.tolist() == [0] * 8
    assert (batch.valid_len, batch.history_steps.shape) == (0, (8, 0))


def test_strides_and_episode_choice_restrict_the_windows():
    one = sampler(start_stride=8, episodes=[2, 0])
    seen = {pair for batch in batches_of(one) for pair in pairs(batch)}
    assert seen == {(e, s) for e, s in ALL if e != 1 and s % 8 == 0}


def test_groups_smaller_than_a_batch_repeat_themselves():
    one = WindowSampler(numbers_only([3]), WindowLayout(), 8, 0)
    assert one.num_batches(0) == 1
    assert sorted(set(pairs(one.global_batch(0, 0)))) == [(0, 0), (0, 1), (0, 2)]


def test_bad_settings_are_refused():
    for bad in ({"batch_size": 0}, {"start_stride": 0}):
        with pytest.raises(ContractError, match="Bad sampler"):
            sampler(**bad)
    with pytest.raises(ContractError, match=r"0\.\.2"):
        sampler(episodes=[3])
    with pytest.raises(ContractError, match=r"0\.\.2"):
        sampler(episodes=[])

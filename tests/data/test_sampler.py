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


def take(source, count):
    iterator = iter(source)
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_an_epoch_visits_every_window():
    one = sampler()
    seen = {pair for position in range(one.num_batches(0)) for pair in pairs(one.batch_at(0, position))}
    assert seen == ALL
    assert one.num_windows == len(ALL)
    # only the last batch of each history length may repeat windows
    assert one.num_batches(0) * 4 - len(ALL) < 4 * 7


def test_order_is_a_function_of_seed_epoch_and_position():
    first, second = take(sampler(), 30), take(sampler(), 30)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    other_seed, other_epoch = sampler(seed=4).batch_at(0, 0), sampler().batch_at(1, 0)
    assert pairs(other_seed) != pairs(first[0]) != pairs(other_epoch)


def test_epochs_follow_each_other_without_end():
    one = sampler(batch_size=50)
    count = one.num_batches(0)
    batches = take(one, count + 2)
    assert (one.epoch, one.position) == (1, 2)
    assert same(batches[count], one.batch_at(1, 0))


@pytest.mark.parametrize("place", [0, 7, 13])
def test_resume_continues_exactly(place):
    whole = take(sampler(batch_size=50), 20)
    before = sampler(batch_size=50)
    take(before, place)
    after = sampler(batch_size=50)
    after.load_state(before.state())
    assert all(same(a, b) for a, b in zip(take(after, 20 - place), whole[place:], strict=True))


def test_resume_with_another_order_names_what_changed():
    state = sampler().state()
    with pytest.raises(ContractError, match="batch_size changed"):
        sampler(batch_size=8).load_state(state)
    with pytest.raises(ContractError, match="dataset changed"):
        WindowSampler(numbers_only([150, 90, 202]), WindowLayout(), 4, 3).load_state(state)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_disjoint_and_cover_everything(world_size):
    lengths = [400, 290, 301]  # every history length occurs more often than a batch of all ranks is large
    ranks = [sampler(lengths, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({one.num_batches(0) for one in ranks}) == 1
    seen = set()
    for position in range(ranks[0].num_batches(0)):
        together = [pair for one in ranks for pair in pairs(one.batch_at(0, position))]
        assert len(set(together)) == 4 * world_size
        seen |= set(together)
    assert seen == {(episode, start) for episode, length in enumerate(lengths) for start in range(length)}


def test_history_length_is_the_same_on_all_ranks():
    ranks = [sampler(rank=rank, world_size=2) for rank in range(2)]
    for position in range(ranks[0].num_batches(0)):
        assert ranks[0].batch_at(0, position).valid_len == ranks[1].batch_at(0, position).valid_len


def test_offsets_and_spacings_are_spread_and_leave_a_real_action():
    one = sampler()
    batches = [one.batch_at(0, position) for position in range(one.num_batches(0))]
    assert {int(value) for batch in batches for value in batch.offset} == set(range(16))
    assert {int(value) for batch in batches for value in batch.history_spacing} == {32, 64}
    assert {batch.valid_len for batch in batches} == set(range(7))
    assert not any(batch.action_is_pad[:, 0].any() for batch in batches)


def test_a_layout_without_history_or_offset_draws_neither():
    layout = WindowLayout(horizon=64, max_offset=0, num_video_frames=9, num_history=0, history_spacings=())
    batch = WindowSampler(numbers_only(LENGTHS), layout, 8, 0).batch_at(0, 0)
    assert batch.offset.tolist() == [0] * 8
    assert (batch.valid_len, batch.history_steps.shape) == (0, (8, 0))


def test_strides_and_episode_choice_restrict_the_windows():
    one = sampler(start_stride=8, episodes=[2, 0])
    seen = {pair for position in range(one.num_batches(0)) for pair in pairs(one.batch_at(0, position))}
    assert seen == {(e, s) for e, s in ALL if e != 1 and s % 8 == 0}


def test_groups_smaller_than_a_batch_repeat_themselves():
    one = WindowSampler(numbers_only([3]), WindowLayout(), 8, 0)
    assert one.num_batches(0) == 1
    assert sorted(set(pairs(one.batch_at(0, 0)))) == [(0, 0), (0, 1), (0, 2)]


def test_bad_settings_are_refused():
    for bad in ({"batch_size": 0}, {"rank": 2, "world_size": 2}, {"start_stride": 0}):
        with pytest.raises(ContractError, match="Bad sampler"):
            sampler(**bad)
    with pytest.raises(ContractError, match=r"0\.\.2"):
        sampler(episodes=[3])
    with pytest.raises(ContractError, match=r"0\.\.2"):
        sampler(episodes=[])

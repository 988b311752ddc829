import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.data.windows import WindowLayout, fast_wam_layout, libero_layout, make_windows, offset_layout, released_layout
from tests.data.synthetic import numbers_only

LAYOUT = WindowLayout()


def window(dataset, layout=LAYOUT, episode=0, start=0, offset=0, spacing=64):
    return make_windows(dataset, layout, *(np.array([value], np.int64) for value in (episode, start, offset, spacing)))


def test_default_window_has_the_sizes_of_offset_training():
    batch = window(numbers_only([300]), start=10)
    assert (LAYOUT.num_steps, LAYOUT.num_chunks, LAYOUT.num_latents) == (97, 5, 4)
    assert batch.video_steps.shape == (1, 13)
    assert batch.actions.shape == (1, 80, 14)
    assert batch.proprio.shape == (1, 5, 14)
    assert batch.history_steps.shape == (1, 6)
    assert not batch.image_is_pad.any() and not batch.action_is_pad.any()


def test_released_window_has_65_steps_and_no_offset():
    layout = released_layout()
    batch = window(numbers_only([300]), layout, start=10)
    assert (layout.num_steps, layout.num_chunks, layout.num_latents, layout.max_offset) == (65, 4, 3, 0)
    assert batch.video_steps.tolist() == [list(range(10, 75, 8))]
    assert batch.action_steps.tolist() == [list(range(10, 74))]
    assert batch.chunk_steps.tolist() == [[10, 26, 42, 58]]
    # chunk observations are then the clip's own frames 0, 2, 4, 6
    assert batch.video_steps[0, [0, 2, 4, 6]].tolist() == batch.chunk_steps[0].tolist()
    assert batch.video_temporal_ids.tolist() == [[1, 5, 9]]


def test_offset_layout_has_history_at_the_planners_horizon():
    layout = offset_layout()
    assert (layout.num_steps, layout.num_chunks, layout.max_offset, layout.history_spacings) == (97, 5, 15, (96,))
    assert window(numbers_only([300]), layout, start=200, spacing=96).history_steps.tolist() == [[0, 0, 0, 0, 8, 104]]


def test_fast_wam_window_has_one_chunk_a_frame_every_four_steps_and_no_history():
    layout = fast_wam_layout()
    assert layout == libero_layout()
    assert (layout.num_steps, layout.num_chunks, layout.num_latents) == (33, 1, 3)
    batch = window(numbers_only([50]), layout, start=10, spacing=1)
    assert batch.video_steps.tolist() == [list(range(10, 43, 4))]
    assert batch.action_steps.tolist() == [list(range(10, 42))]
    assert batch.chunk_steps.tolist() == [[10]]
    assert (batch.history_steps.shape, batch.history_temporal_ids.shape, batch.valid_len) == ((1, 0), (1, 0), 0)
    assert batch.video_temporal_ids.tolist() == [[2, 6, 10]]
    late = window(numbers_only([50]), layout, start=40, spacing=1)
    assert late.image_is_pad.tolist() == [[False] * 3 + [True] * 6]
    assert late.latent_is_pad.tolist() == [[False, False, True]]
    assert np.flatnonzero(~late.action_is_pad[0]).tolist() == list(range(10))


def test_offset_moves_actions_and_chunks_but_not_the_clip():
    dataset = numbers_only([300])
    still, moved = window(dataset, start=20), window(dataset, start=20, offset=11)
    assert moved.video_steps.tolist() == still.video_steps.tolist() == [list(range(20, 117, 8))]
    assert moved.action_steps.tolist() == [list(range(31, 111))]
    assert moved.chunk_steps.tolist() == [[31, 47, 63, 79, 95]]
    assert moved.history_steps.tolist() == still.history_steps.tolist()


def test_values_are_those_of_the_steps_of_that_episode():
    batch = window(numbers_only([50, 300]), episode=1, start=20, offset=3)
    np.testing.assert_allclose(batch.actions[0, :, 0], -(1 + batch.action_steps[0] / 1000), rtol=1e-6)
    np.testing.assert_allclose(batch.proprio[0, :, 5], 1 + batch.chunk_steps[0] / 1000, rtol=1e-6)


def test_past_the_end_steps_stay_at_the_last_one_and_are_marked():
    batch = window(numbers_only([100, 7]), start=90, offset=5)
    assert batch.action_steps[0, :6].tolist() == [95, 96, 97, 98, 99, 99]
    assert np.flatnonzero(~batch.action_is_pad[0]).tolist() == [0, 1, 2, 3, 4]
    assert batch.video_steps[0].tolist() == [90, 98] + [99] * 11
    assert np.flatnonzero(~batch.image_is_pad[0]).tolist() == [0, 1]
    assert batch.chunk_steps[0].tolist() == [95, 99, 99, 99, 99]
    np.testing.assert_allclose(batch.actions[0, 10, 0], -0.099, rtol=1e-6)


def test_a_latent_is_padding_when_all_its_frames_are():
    # frames at 60, 68, 76, 84, 92 are real, 100 and later are not: latent 1 has frames 1..4, latent 2 has 5..8
    batch = window(numbers_only([100]), start=60)
    assert batch.latent_is_pad.tolist() == [[False, False, True, True]]
    # with one step more, frame 5 is real and latent 2 with it
    assert window(numbers_only([101]), start=60).latent_is_pad.tolist() == [[False, False, False, True]]


def test_temporal_ids_count_strides_of_the_episode_clock():
    batch = window(numbers_only([300]), start=21)
    assert batch.latent_steps.tolist() == [[21, 53, 85, 117]]
    assert batch.video_temporal_ids.tolist() == [[2, 6, 10, 14]]


def test_temporal_ids_do_not_stop_at_the_end_of_the_episode():
    assert window(numbers_only([30]), start=21).video_temporal_ids.tolist() == [[2, 6, 10, 14]]


def test_history_is_right_aligned_oldest_first():
    batch = window(numbers_only([300]), start=150, spacing=64)
    assert batch.valid_len == 2
    assert batch.history_steps.tolist() == [[0, 0, 0, 0, 22, 86]]
    assert batch.history_temporal_ids.tolist() == [[0, 0, 0, 0, 2, 10]]


def test_history_holds_at_most_six_frames_and_starts_at_step_zero():
    dataset = numbers_only([300])
    assert window(dataset, start=31, spacing=32).valid_len == 0
    first = window(dataset, start=32, spacing=32)
    assert (first.valid_len, first.history_steps[0, -1]) == (1, 0)
    full = window(dataset, start=250, spacing=32)
    assert full.valid_len == 6
    assert full.history_steps.tolist() == [[58, 90, 122, 154, 186, 218]]


def test_unequal_history_lengths_are_no_batch():
    dataset = numbers_only([300])
    with pytest.raises(ContractError, match="one history length"):
        make_windows(dataset, LAYOUT, *np.array([[0, 0], [10, 100], [0, 0], [64, 64]]))


def test_choices_outside_episode_or_layout_are_refused():
    dataset = numbers_only([30])
    for bad in ({"start": 30}, {"start": -1}, {"offset": 16}, {"offset": -1}):
        with pytest.raises(ContractError, match="inside their episode"):
            window(dataset, **bad)


def test_layouts_that_do_not_fit_are_refused():
    with pytest.raises(ContractError, match="multiple of chunk"):
        WindowLayout(horizon=81)
    with pytest.raises(ContractError, match="multiple of 4"):
        WindowLayout(num_video_frames=12)
    with pytest.raises(ContractError, match="within the clip"):
        WindowLayout(max_offset=17)

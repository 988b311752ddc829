import json

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError
from edgewam.data.stats import STD_FLOOR, measure_stats, read_stats, write_stats
from tests.data.synthetic import numbers_only


def test_mean_and_std_are_those_of_the_chosen_episodes():
    dataset = numbers_only([200, 300])
    stats = measure_stats(dataset, [1])
    np.testing.assert_allclose(stats.state.mean, dataset.states(1).astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats.state.std, dataset.states(1).astype(np.float64).std(0), rtol=1e-6)
    np.testing.assert_allclose(stats.action.mean, -stats.state.mean, rtol=1e-6)
    assert measure_stats(dataset).state.std[0] > 0.4, "both episodes together differ by one"


def test_joints_that_hardly_move_get_the_floor():
    stats = measure_stats(numbers_only([5]))  # std 1.4e-3
    np.testing.assert_array_equal(stats.state.std, np.full(14, STD_FLOOR, np.float32))
    assert STD_FLOOR == 1e-2


def test_file_has_the_released_form_and_round_trips(tmp_path):
    stats = measure_stats(numbers_only([200, 300]))
    write_stats(tmp_path / "dataset_stats.json", stats)
    data = json.loads((tmp_path / "dataset_stats.json").read_text())
    assert {name: {key: set(entry) for key, entry in value.items()} for name, value in data.items()} == {
        "state": {"default": {"global_mean", "global_std"}},
        "action": {"default": {"global_mean", "global_std"}},
    }
    again = read_stats(tmp_path / "dataset_stats.json")
    for name in ("state", "action"):
        np.testing.assert_array_equal(getattr(again, name).mean, getattr(stats, name).mean)
        np.testing.assert_array_equal(getattr(again, name).std, getattr(stats, name).std)


def test_further_entries_of_released_files_are_ignored(tmp_path):
    entry = {"global_mean": [0.0, 1.0], "global_std": [1.0, 2.0], "global_min": [0, 0], "stepwise_mean": [[0.0, 0.0]]}
    (tmp_path / "s.json").write_text(json.dumps({"state": {"default": entry}, "action": {"default": entry}, "num_transition": 3}))
    assert read_stats(tmp_path / "s.json").action.std.tolist() == [1.0, 2.0]


def one_entry(mean, std):
    return '{"state": {"default": {"global_mean": ' + mean + ', "global_std": ' + std + "}}}"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": {}}', one_entry("[0]", "[0, 1]"), one_entry("[NaN]", "[1]")])
def test_unusable_files_are_refused_by_name(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"s\.json.*dataset_stats\.json of these weights"):
        read_stats(tmp_path / "s.json")

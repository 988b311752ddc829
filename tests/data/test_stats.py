import json

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.core.observation import Normalizer
from edgewam.data.stats import STD_FLOOR, DatasetStats, measure_stats, read_stats, released_form, write_stats
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


RELEASED = {
    "global_mean": [0.0, 1.0], "global_std": [1.0, 2.0], "global_min": [-2.0, 0.5], "global_max": [6.0, 0.50005],
    "global_q01": [-1.0, 0.5], "global_q99": [5.0, 0.5], "stepwise_min": [[-2.0, 0.5]], "stepwise_mean": [[0.0, 1.0]],
}  # fmt: skip


def released(tmp_path, key="default", **changes):
    data = {"state": {key: RELEASED | changes}, "action": {key: RELEASED}, "num_episodes": 3, "num_transition": 3}
    (tmp_path / "s.json").write_text(json.dumps(data))
    return tmp_path / "s.json"


def test_min_max_maps_the_limits_to_one_and_only_shifts_what_stands_still(tmp_path):
    action = read_stats(released(tmp_path), mode="min/max").action
    values = np.array([[-2.0, 0.5], [6.0, 0.5], [2.0, 0.75], [90.0, 0.5]], np.float32)
    expected = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.25], [5.0, 0.0]], np.float32)
    np.testing.assert_array_equal(action.forward(values), expected)
    np.testing.assert_array_equal(action.backward(expected[:3]), values[:3])
    assert (action.scale.dtype, action.offset.dtype, action.forward(values).dtype) == (np.float32,) * 3
    assert action.std.tolist() == [4.0, 1.0], "one normalised unit"
    np.testing.assert_allclose((values[:3] - action.mean) / action.std, expected[:3], atol=1e-6)


def test_released_files_are_read_by_z_score_unless_told_otherwise(tmp_path):
    assert read_stats(released(tmp_path)).action.limits is None
    assert read_stats(released(tmp_path, key="joints")).state.std.tolist() == [1.0, 2.0]


def test_a_min_max_file_of_ours_says_so_and_round_trips(tmp_path):
    stats = measure_stats(numbers_only([200, 300]), mode="min/max")
    assert stats.state.forward(np.float32([[0.0] * 14, [1.299] * 14]))[:, 0].tolist() == pytest.approx([-1, 1])
    write_stats(tmp_path / "dataset_stats.json", stats)
    again = read_stats(tmp_path / "dataset_stats.json")
    for name in ("state", "action"):
        np.testing.assert_array_equal(getattr(again, name).scale, getattr(stats, name).scale)
        np.testing.assert_array_equal(getattr(again, name).offset, getattr(stats, name).offset)


def test_mixed_modes_are_not_written(tmp_path):
    mixed = DatasetStats(measure_stats(numbers_only([9])).state, measure_stats(numbers_only([9]), mode="min/max").action)
    with pytest.raises(ContractError, match="both by z-score or both by min/max"):
        write_stats(tmp_path / "s.json", mixed)


def test_measured_file_has_every_entry_that_released_policies_use(tmp_path):
    dataset = numbers_only([200, 300])
    form = released_form(dataset)
    assert (form["num_episodes"], form["num_transition"]) == (2, 500)
    (tmp_path / "s.json").write_text(json.dumps(form))
    for mode in ("z-score", "min/max"):
        found, measured = read_stats(tmp_path / "s.json", mode), measure_stats(dataset, mode=mode)
        np.testing.assert_array_equal(found.action.scale, measured.action.scale)
        np.testing.assert_array_equal(found.state.offset, measured.state.offset)
    entry = form["state"]["default"]
    assert entry["global_min"][0] < entry["global_q01"][0] < entry["global_mean"][0] < entry["global_q99"][0]


def test_statistics_of_another_robot_are_refused():
    stats = measure_stats(numbers_only([9]))
    stats.check(numbers_only([9]))
    short = DatasetStats(Normalizer(stats.state.mean[:8], stats.state.std[:8]), stats.action)
    with pytest.raises(ContractError, match=r"'in-memory' has 14 numbers in a state, those of 'p' 8\. Give data of the same"):
        short.check(numbers_only([9]), "those of 'p'")


def test_data_of_another_rate_is_refused_where_the_rate_is_known():
    dataset = numbers_only([9])
    dataset.check_fits("'p'", 14, 14)
    dataset.check_fits("'p'", 14, 14, fps=50)
    with pytest.raises(ContractError, match=r"'in-memory' has 50 control steps a second, 'p' 25\."):
        dataset.check_fits("'p'", 14, 14, fps=25)


@pytest.mark.parametrize(
    ("changes", "mode"),
    [({"global_max": [6.0]}, "min/max"), ({"global_max": [-3.0, 1.0]}, "min/max"), ({"global_std": [-1.0, 1.0]}, "z-score"),
     ({}, "q01/q99")],
)  # fmt: skip
def test_values_that_cannot_normalise_are_refused(tmp_path, changes, mode):
    with pytest.raises(ArtifactError, match=r"s\.json.*dataset_stats\.json of these weights"):
        read_stats(released(tmp_path, **changes), mode)


def test_several_keys_without_a_default_are_named(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"state": {"arm": RELEASED, "hand": RELEASED}, "action": {"arm": RELEASED}}))
    with pytest.raises(ArtifactError, match="'state' has the keys arm, hand and no 'default'"):
        read_stats(tmp_path / "s.json")


def one_entry(mean, std):
    return '{"state": {"default": {"global_mean": ' + mean + ', "global_std": ' + std + "}}}"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": {}}', one_entry("[0]", "[0, 1]"), one_entry("[NaN]", "[1]")])
def test_unusable_files_are_refused_by_name(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"s\.json.*dataset_stats\.json of these weights"):
        read_stats(tmp_path / "s.json")

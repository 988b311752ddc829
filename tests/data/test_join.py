"""Several datasets as one: every episode is where it was, and tasks take turns."""

import json
import shutil

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.data.dataset import Dataset
from edgewam.data.episode_store import EpisodeStore
from edgewam.data.join import JOIN, join
from edgewam.data.lerobot_v3 import write_dataset
from edgewam.data.schema import Schema
from tests.data.synthetic import CAMERAS, JOINTS, SCHEMA, TASKS, dataset_of, episode

LONGER = Schema("fake_arm", 50, 25, CAMERAS, JOINTS, tuple(f"peg_{i}" for i in range(9)))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("join")
    first = dataset_of(root / "first", [episode(12 + i, i) for i in range(4)])
    return first, dataset_of(root / "second", [episode(30, 10, TASKS[1]), episode(9, 11, TASKS[1])])


def test_every_episode_is_read_as_from_its_own_dataset(parts, tmp_path):
    joined = join(tmp_path / "both", [part.path for part in parts])
    assert joined.num_episodes == 6 and set(joined.tasks) == set(TASKS)
    order = [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]  # two among four, evenly
    for number, (part, own) in enumerate(order):
        assert joined.task(number) == parts[part].task(own)
        for read in ("states", "actions", "environment_states"):
            assert np.array_equal(getattr(joined, read)(number), getattr(parts[part], read)(own))
        for camera in CAMERAS:
            assert np.array_equal(joined.frames(number, camera, [0, 7]), parts[part].frames(own, camera, [0, 7]))
        assert joined.seeds[number] == parts[part].seeds[own]
    assert joined.lengths.sum() == sum(part.lengths.sum() for part in parts)
    assert not list((tmp_path / "both").rglob("*.mp4")), "nothing is copied"
    assert Dataset.open(tmp_path / "both").digest == joined.digest not in [part.digest for part in parts]


def test_environment_states_keep_what_all_have(parts, tmp_path):
    store = EpisodeStore(tmp_path / "parts", LONGER, {})
    one = episode(10, 3)
    wide = np.concatenate([one.environment_states, one.environment_states[:, :2]], 1)
    store.add(7, type(one)(one.states, one.actions, one.images, one.task, wide))
    write_dataset(tmp_path / "longer", LONGER, store.episodes(), {})
    joined = join(tmp_path / "mixed", [parts[0].path, tmp_path / "longer"])
    assert joined.environment_states(0).shape[1] == 7
    assert joined.features["observation.environment_state"]["shape"] == [7]


def test_datasets_that_do_not_fit_or_have_changed_are_refused(parts, tmp_path):
    first = parts[0].path
    with pytest.raises(EdgewamError, match="at least two datasets, each once"):
        join(tmp_path / "same", [first, first])
    slower = Schema(SCHEMA.robot_type, 50, 50, CAMERAS, JOINTS, SCHEMA.environment_names)
    store = EpisodeStore(tmp_path / "parts", slower, {})
    store.add(1, episode(10, 3))
    write_dataset(tmp_path / "other", slower, store.episodes(), {})
    with pytest.raises(EdgewamError, match=r"50 frames a second.*Join datasets of one robot"):
        join(tmp_path / "refused", [first, tmp_path / "other"])
    assert not (tmp_path / "refused").exists()

    shutil.copytree(first, tmp_path / "copy")
    join(tmp_path / "list", [tmp_path / "copy", parts[1].path])
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(ArtifactError, match="does not exist"):
        Dataset.open(tmp_path / "list")
    shutil.copytree(parts[1].path, tmp_path / "copy")
    with pytest.raises(ArtifactError, match="is not the dataset"):
        Dataset.open(tmp_path / "list")
    assert len(json.loads((tmp_path / "list" / JOIN).read_text())["datasets"]) == 2

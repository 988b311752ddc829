import dataclasses
import errno
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError, ContractError, EdgewamError, PluginError
from edgewam.data import episode_store
from edgewam.data.collect import MAX_FAILURES_IN_A_ROW, PolicySource, collect
from edgewam.data.dataset import Dataset, open_demonstrations
from edgewam.data.episode_store import EpisodeStore
from edgewam.data.join import join
from edgewam.robot_bridge.policy import constant_policy
from tests.data.fake_demonstrator import MOMENTS, FakeDemonstrator, collect_with_fake
from tests.data.synthetic import SCHEMA, episode, store_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "set"
    collect_with_fake(out, 4)
    return Dataset.open(out)


def test_failed_demonstrations_are_dropped_and_counted(tmp_path):
    demonstrator, seen = FakeDemonstrator(), []
    report = collect_with_fake(tmp_path / "set", 4, demonstrator, progress=seen.append)
    dataset = Dataset.open(tmp_path / "set")
    assert demonstrator.recorded == [10, 11, 12, 13, 14, "closed"]
    assert dataset.seeds == [10, 11, 13, 14]
    assert (report.num_kept, report.num_dropped, report.num_recorded_now) == (4, 1, 4)
    assert [(p.num_kept, p.num_dropped) for p in seen] == [(1, 0), (2, 0), (2, 1), (3, 1), (4, 1)]
    assert seen[-1].left_s == 0 and seen[0].left_s > 0
    provenance = dataset.provenance
    assert (provenance["first_seed"], provenance["last_seed"], provenance["num_dropped"]) == (10, 14, 1)
    assert [provenance[name] for name in ("robot", "task", "style")] == ["fake_arm", "reach", "plain"]
    assert (report.task, report.style) == ("reach", "plain") and "numpy" in provenance["versions"]
    assert not (tmp_path / "set.parts").exists()


RAISED = PolicySource("tests.data.test_collect.raised_arms", {}, "digest of the bundle")

LIFTED = np.float32([0.0, -1.2, 1.0, 0.0, -0.3, 0.0, 1.0] * 2)


def raised_arms():
    """A policy that lifts both arms, which is nobody's task."""
    return constant_policy(LIFTED)


def test_a_policy_s_failures_are_kept_with_what_it_really_did(tmp_path):
    report = collect(tmp_path / "set", 1, 7, policy=RAISED)
    assert (report.style, report.num_kept, report.num_dropped) == ("policy", 1, 0)
    dataset = Dataset.open(tmp_path / "set")
    assert dataset.provenance["policy"] == "digest of the bundle" and dataset.provenance["noise_rad"] == 0.0
    actions, states = dataset.actions(0), dataset.states(0)
    np.testing.assert_array_equal(actions, np.tile(LIFTED, (300, 1)))
    off = np.abs(states[:, :6] - LIFTED[:6]).max(1)
    assert off[-1] < 0.05 < off[0], "the arms went where the policy sent them"
    assert collect(tmp_path / "set", 1, 7, policy=RAISED).num_recorded_now == 0
    with pytest.raises(ArtifactError, match="already a dataset"):
        collect(tmp_path / "set", 1, 7, policy=dataclasses.replace(RAISED, digest="another bundle"))


@pytest.mark.parametrize("joined", [False, True])
def test_a_policy_s_episodes_are_refused_as_demonstrations(uninterrupted, tmp_path, joined):
    assert open_demonstrations(uninterrupted.path).digest == uninterrupted.digest
    played = tmp_path / "played"
    collect_with_fake(played, 1, policy=RAISED)
    assert Dataset.open(played).num_episodes == 1
    if joined:
        played = join(tmp_path / "joined", [uninterrupted.path, played]).path
    with pytest.raises(ArtifactError, match=r"a policy played.*edgewam distill"):
        open_demonstrations(played)


def test_a_policy_has_no_style(tmp_path):
    with pytest.raises(EdgewamError, match="no style"):
        collect(tmp_path / "set", 1, 7, style="plain", policy=RAISED)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_collection_ends_as_the_same_dataset(uninterrupted, tmp_path, moment):
    out = tmp_path / "set"
    command = [sys.executable, "-m", "tests.data.fake_demonstrator", str(out), "4", moment]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if moment == "before the parts are removed":
        assert Dataset.open(out).digest == uninterrupted.digest
    else:
        with pytest.raises(ArtifactError, match="unfinished collection"):
            Dataset.open(out)
    report = collect_with_fake(out, 4)
    assert report.num_recorded_now < 4, "complete episodes are kept"
    assert (report.num_kept, report.num_dropped) == (4, 1)
    assert Dataset.open(out).digest == uninterrupted.digest
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "nothing is left behind"


def test_a_finished_collection_is_not_recorded_again(uninterrupted):
    report = collect_with_fake(uninterrupted.path, 4)
    assert (report.num_kept, report.num_dropped, report.num_recorded_now) == (4, 1, 0)


def test_a_dataset_made_otherwise_is_never_overwritten(uninterrupted):
    with pytest.raises(ArtifactError, match=r"already a dataset of 4 episodes.*another output"):
        collect_with_fake(uninterrupted.path, 5)
    with pytest.raises(ArtifactError, match="already a dataset"):
        collect_with_fake(uninterrupted.path, 4, style="multimodal")


def test_fewer_episodes_than_stored_take_the_first_seeds(tmp_path):
    class Interrupted(FakeDemonstrator):
        def record(self, seed):
            if seed == 14:
                raise KeyboardInterrupt
            return super().record(seed)

    with pytest.raises(KeyboardInterrupt):
        collect_with_fake(tmp_path / "set", 4, Interrupted())
    assert collect_with_fake(tmp_path / "set", 2).num_recorded_now == 0
    assert Dataset.open(tmp_path / "set").seeds == [10, 11]


def test_other_settings_may_not_continue_a_collection(tmp_path):
    EpisodeStore(tmp_path / "set.parts", SCHEMA, {"style": "plain", "noise_rad": 0.03})
    with pytest.raises(ArtifactError, match=r"settings\.style: plain -> multimodal"):
        EpisodeStore(tmp_path / "set.parts", SCHEMA, {"style": "multimodal", "noise_rad": 0.03})
    other = dataclasses.replace(SCHEMA, camera_hz=50)
    with pytest.raises(ArtifactError, match=r"schema\.camera_hz: 25 -> 50"):
        EpisodeStore(tmp_path / "set.parts", other, {"style": "plain", "noise_rad": 0.03})


def test_two_collections_do_not_share_a_store(tmp_path):
    store = EpisodeStore(tmp_path / "set.parts", SCHEMA, {})
    with store.locked(), pytest.raises(ArtifactError, match="Another process"), store.locked():
        pass


def test_an_expert_that_always_fails_is_an_error(tmp_path):
    demonstrator = FakeDemonstrator()
    demonstrator.record = lambda seed: None
    with pytest.raises(EdgewamError, match=f"{MAX_FAILURES_IN_A_ROW} demonstrations in a row failed"):
        collect_with_fake(tmp_path / "set", 1, demonstrator)


def test_a_full_disk_says_what_to_do_and_keeps_episodes(tmp_path, monkeypatch):
    encode, calls = episode_store.encode_video, []

    def full(path, frames, fps):
        calls.append(path)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        encode(path, frames, fps)

    monkeypatch.setattr(episode_store, "encode_video", full)
    with pytest.raises(ArtifactError, match=r"No space left.*run the same command again"):
        collect_with_fake(tmp_path / "set", 4)
    assert collect_with_fake(tmp_path / "set", 4).num_recorded_now == 3


@pytest.mark.parametrize("column", ["states", "actions", "environment_states"])
def test_nan_is_refused_with_seed_column_and_step(tmp_path, column):
    values = getattr(episode(), column).copy()
    values[7, 2] = np.nan
    feature = {"states": "observation.state", "actions": "action", "environment_states": "observation.environment_state"}[column]
    store = store_of(tmp_path / "parts", [episode()])
    with pytest.raises(ContractError, match=rf"seed 55, column '{feature}'.*step 7, dimension 2"):
        store.add(55, dataclasses.replace(episode(), **{column: values}))
    assert [one.seed for one in store.episodes()] == [100]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((22, 14), np.float32)}, "column 'action'.*float32.23, 14"),
        ({"states": np.zeros((23, 14))}, "column 'observation.state'.*got float64"),
        ({"environment_states": None}, "column 'observation.environment_state'.*got nothing"),
        ({"images": {}}, "column 'observation.images.cam_high'.*got nothing"),
        ({"images": {"cam_high": np.zeros((23, 48, 32, 3), np.uint8)}}, "cam_high.*uint8.23, 32, 48, 3"),
        ({"task": "  "}, "no task text"),
    ],
)
def test_wrong_shapes_are_refused_with_the_column(tmp_path, change, message):
    with pytest.raises(ContractError, match=message):
        EpisodeStore(tmp_path / "parts", SCHEMA, {}).add(1, dataclasses.replace(episode(), **change))


def test_unknown_robot_and_style_list_what_exists(tmp_path):
    with pytest.raises(PluginError, match=r"Available: .*aloha_sim"):
        collect(tmp_path / "set", 1, 0, robot="aloha_simm")
    pytest.importorskip("mujoco", reason="needs edgewam[sim]")
    with pytest.raises(EdgewamError, match="plain, multimodal"):
        collect(tmp_path / "set", 1, 0, style="fast")
    assert list(tmp_path.iterdir()) == []


def test_bad_counts_are_refused(tmp_path):
    with pytest.raises(EdgewamError, match="at least 1 episode"):
        collect(tmp_path / "set", 0, 0)


def test_the_simulated_expert_is_recorded_as_the_cameras_saw_it(tmp_path):
    pytest.importorskip("mujoco", reason="needs edgewam[sim]")
    from edgewam.robot_bridge.robots import aloha_demos, aloha_sim

    collect(tmp_path / "set", 1, 300001)
    dataset = Dataset.open(tmp_path / "set")
    simulator = aloha_sim.make()
    shown = aloha_demos.rollout(simulator, dataset.seeds[0])
    simulator.close()
    np.testing.assert_array_equal(dataset.states(0), shown.states)
    np.testing.assert_array_equal(dataset.actions(0), shown.actions)
    np.testing.assert_array_equal(dataset.environment_states(0), shown.poses)
    for camera in dataset.cameras:
        steps = np.array([0, 1, 99, 100, 101, int(dataset.lengths[0]) - 1])
        frames = dataset.frames(0, camera, steps).astype(np.float64)
        truth = shown.images[camera].astype(np.float64)
        # 36 dB; 38 dB was the worst frame of a whole episode
        assert ((frames - truth[steps // shown.image_every]) ** 2).mean((1, 2, 3)).max() < 16.5
        # the arm moves at step 100: its picture is nearer to what the camera saw then than to the pictures around
        distances = [((frames[3] - truth[delivery]) ** 2).mean() for delivery in (49, 50, 51)]
        assert np.argmin(distances) == 1


def test_a_task_is_recorded_with_its_prompt_and_the_poses_of_its_things(tmp_path):
    pytest.importorskip("mujoco", reason="needs edgewam[sim]")
    from edgewam.robot_bridge.robots.aloha_task import load_task

    report = collect(tmp_path / "set", 1, 300001, task="insertion")
    dataset, task = Dataset.open(tmp_path / "set"), load_task("insertion")
    assert (report.task, report.style) == ("insertion", "plain")
    assert [dataset.provenance[name] for name in ("task", "style")] == ["insertion", "plain"]
    assert dataset.task(0) == task.prompt
    assert dataset.environment_states(0).shape == (dataset.lengths[0], 14)
    with pytest.raises(ArtifactError, match="already a dataset"):
        collect(tmp_path / "set", 1, 300001)
    with pytest.raises(EdgewamError, match=r"Unknown task 'juggle'\. Available: insertion, transfer_cube"):
        collect(tmp_path / "other", 1, 300001, task="juggle")

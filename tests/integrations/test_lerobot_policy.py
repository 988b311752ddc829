"""The LeRobot policy plug-in: LeRobot's tensors become edgewam's observations, and chunks come back row by row.

LeRobot is a test double here; test_lerobot_real.py does the same with the real one.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgewam.core.records import CAMERAS, ActionChunk
from edgewam.runtime.factory import open_policy
from tests.integrations.conftest import PLUGIN

BUNDLE = PLUGIN.parents[1] / "edgewam/assets/small/bundle"
TASK = "pick up the cube with the right hand and hand it over to the left hand"
ROWS = 16


class FakePolicy:
    """Rows that say which tick and row they are; keeps what it was asked."""

    prefix_trained, offset_trained, context_tick = False, True, None
    refresh_ticks, chunk_size, horizon = 32, ROWS, 80

    def __init__(self):
        self.resets, self.seen, self.prefixes, self.plans = [], [], [], []

    def reset(self, prompt, seed):
        self.resets.append((prompt, seed))

    def infer(self, observation):
        return self.act(observation)

    def plan(self, observation):
        self.plans.append(observation.tick)
        self.context_tick = observation.tick

    def act(self, observation, prefix=None):
        self.seen.append(observation)
        self.prefixes.append(prefix)
        actions = np.tile(observation.tick + np.arange(ROWS)[:, None] / 100, (1, 3)).astype(np.float32)
        return ActionChunk(actions, observation.tick, observation.tick)


@pytest.fixture
def made(plugin, monkeypatch):
    """make(**options) -> the LeRobot policy over a FakePolicy, and that one."""

    def make(**options):
        fake = FakePolicy()
        modeling = plugin("modeling_edgewam")
        monkeypatch.setattr(modeling, "open_engine", lambda config: plugin("engines").Engine(fake))
        config = plugin("configuration_edgewam").EdgewamConfig(**{"bundle": "somewhere", **options})
        return modeling.EdgewamPolicy(config, dataset_stats=None), fake

    return make


def batch(value=0.5, size=(4, 6), task=(TASK,)):
    image = torch.full((1, 3, *size), value)
    return {"observation.state": torch.tensor([[0.1, 0.2, 0.3]]), "observation.images.front": image, "task": list(task)}


def test_lerobot_finds_the_type_by_the_package_name(plugin):
    import lerobot_policy_edgewam
    from lerobot.configs.policies import PreTrainedConfig

    assert PreTrainedConfig.choices["edgewam"] is lerobot_policy_edgewam.EdgewamConfig
    modeling = plugin("modeling_edgewam")  # the name LeRobot derives from configuration_edgewam
    assert modeling.EdgewamPolicy.config_class is lerobot_policy_edgewam.EdgewamConfig
    assert modeling.EdgewamPolicy.name == "edgewam"


def test_actions_are_handed_out_row_by_row_and_chunks_asked_for_by_time(made):
    policy, fake = made(n_action_steps=3)
    actions = [policy.select_action(batch()) for _ in range(7)]
    assert all(action.shape == (1, 3) and action.dtype == torch.float32 for action in actions)
    assert [observation.tick for observation in fake.seen] == [0, 3, 6]
    np.testing.assert_allclose([float(action[0, 0]) for action in actions], [0, 0.01, 0.02, 3, 3.01, 3.02, 6], rtol=1e-6)


def test_images_become_bytes_in_rows_under_the_bundle_s_names(made):
    policy, fake = made(cameras={"front": "cam_high"})
    ramp = torch.arange(256).repeat(3, 1).reshape(1, 3, 16, 16) / 255
    policy.select_action(batch() | {"observation.images.front": ramp, "observation.images.wrist": ramp[0]})
    images = fake.seen[0].images
    assert set(images) == {"cam_high", "wrist"}
    for image in images.values():
        assert image.shape == (16, 16, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        np.testing.assert_array_equal(image[..., 0].ravel(), np.arange(256))
    np.testing.assert_array_equal(fake.seen[0].state, np.array([0.1, 0.2, 0.3], np.float32))


def test_an_episode_begins_at_the_first_observation_after_reset(made):
    policy, fake = made(seed=7)
    assert fake.resets == []
    policy.select_action(batch())
    policy.reset()
    policy.select_action(batch(task=["stack the cups"]))
    assert fake.resets == [(TASK, 7), ("stack the cups", 8)]
    assert fake.seen[-1].tick == 0


def test_a_given_prompt_wins_over_the_batch_s_task(made):
    policy, fake = made(prompt="wave")
    policy.select_action(batch())
    assert fake.resets[0][0] == "wave"


def test_whole_chunks_are_dated_by_the_clock(made, plugin, monkeypatch):
    policy, fake = made(fps=50.0)
    now = SimpleNamespace(monotonic=lambda: clock[0])
    clock = [100.0]
    monkeypatch.setattr(plugin("modeling_edgewam"), "time", now)
    assert policy.predict_action_chunk(batch()).shape == (1, ROWS, 3)
    for clock[0] in (100.31, 100.3, 101.0):  # never back
        policy.predict_action_chunk(batch())
    assert [observation.tick for observation in fake.seen] == [0, 15, 15, 50]


def test_rtc_is_refused_for_weights_without_prefix_training(made):
    policy, fake = made()
    left = torch.ones(ROWS, 3)
    assert not policy.supports_rtc()
    with pytest.raises(ValueError, match="not trained with action prefixes"):
        policy.predict_action_chunk(batch(), inference_delay=4, prev_chunk_left_over=left)
    assert fake.seen == []
    policy.predict_action_chunk(batch(), inference_delay=0, prev_chunk_left_over=left)  # nothing is given
    policy.predict_action_chunk(batch(), inference_delay=4, prev_chunk_left_over=None)
    assert fake.prefixes == [None, None]


@pytest.mark.parametrize("axes", [2, 3])
def test_rtc_gives_the_rows_that_the_delay_will_consume(made, axes):
    policy, fake = made()
    fake.prefix_trained = True
    left = torch.arange(30.0).reshape(10, 3)
    policy.predict_action_chunk(batch(), inference_delay=4, prev_chunk_left_over=left if axes == 2 else left[None])
    assert policy.supports_rtc()
    np.testing.assert_array_equal(fake.prefixes[0], left[:4].numpy())
    assert fake.plans == [0], "the planner is refreshed when that is due"


def test_a_delay_that_was_not_trained_for_is_refused(made):
    policy, fake = made()
    fake.prefix_trained = True
    with pytest.raises(ValueError, match="A delay of 9 steps is more than this bundle was trained for"):
        policy.predict_action_chunk(batch(), inference_delay=9, prev_chunk_left_over=torch.ones(ROWS, 3))
    assert fake.seen == []


@pytest.mark.parametrize(
    ("fields", "tick", "is_due"),
    [
        ({}, 40, False),
        ({}, 64, True),
        ({"refresh_ticks": 80}, 97, True),
        ({"offset_trained": False}, 48, False),
        ({"offset_trained": False}, 50, True),
        ({"context_tick": None}, 0, True),
    ],
)
def test_with_given_rows_the_planner_is_refreshed_when_it_would_be_without(plugin, fields, tick, is_due):
    fake = FakePolicy()
    fake.context_tick = 32
    for name, value in fields.items():
        setattr(fake, name, value)
    plugin("engines").Engine(fake).infer({}, np.zeros(3), tick, np.zeros((2, 3), np.float32))
    assert bool(fake.plans) is is_due


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"observation.images.front": torch.full((1, 3, 4, 6), 2.0)}, r"must be 0\.\.1"),
        ({"observation.images.front": torch.full((1, 3, 4, 6), float("nan"))}, r"must be 0\.\.1"),
        ({"observation.images.front": torch.zeros(1, 4, 6, 3)}, r"must be \[3, H, W\]"),
        ({"observation.images.front": torch.zeros(2, 3, 4, 6)}, "one episode, give it one at a time"),
        ({"observation.state": torch.zeros(1, 2, 3)}, "must have 1 axes"),
        ({"task": None}, "No instruction"),
        ({"task": ["a", "b"]}, "No instruction"),
    ],
)
def test_a_batch_that_cannot_be_meant_is_refused(made, bad, message):
    policy, fake = made()
    with pytest.raises(ValueError, match=message):
        policy.select_action(batch() | bad)
    assert fake.seen == []


def test_a_batch_without_cameras_is_refused(made):
    policy, _ = made()
    with pytest.raises(ValueError, match=r"needs observation.state and observation.images"):
        policy.select_action({"observation.state": torch.zeros(1, 3), "task": TASK})


def test_more_steps_than_rows_are_refused(made):
    policy, _ = made(n_action_steps=ROWS + 1)
    with pytest.raises(ValueError, match="Choose fewer"):
        policy.select_action(batch())


def test_options_must_name_one_place(plugin):
    config = plugin("configuration_edgewam").EdgewamConfig
    open_engine = plugin("engines").open_engine
    for options in ({}, {"bundle": "x", "server": "y:1"}):
        with pytest.raises(ValueError, match="exactly one"):
            open_engine(config(**options))
    with pytest.raises(ValueError, match="HOST:PORT"):
        open_engine(config(server="localhost"))
    with pytest.raises(ValueError, match="must be positive"):
        config(n_action_steps=0)


def test_a_server_is_asked_for_by_host_port_and_token_file(plugin, monkeypatch):
    from edgewam.robot_bridge import remote

    asked = []
    monkeypatch.setattr(remote, "open_policy", lambda *places, **options: asked.append((places, options)) or FakePolicy())
    options = {"server": "10.0.0.7:8000", "token_file": "token"}
    engine = plugin("engines").open_engine(plugin("configuration_edgewam").EdgewamConfig(**options))
    assert asked == [(("10.0.0.7", 8000), {"token_file": "token"})] and engine.longest_prefix == 0


def test_it_cannot_be_trained_here(made):
    policy, _ = made()
    with pytest.raises(NotImplementedError, match="edgewam train"):
        policy.forward(batch())
    with pytest.raises(NotImplementedError, match="edgewam train"):
        policy.config.get_optimizer_preset()
    assert policy.get_optim_params() == {} and not list(policy.parameters())


def test_the_shipped_bundle_answers_the_same_through_lerobot(plugin):
    from tests.integrations.scene import images_and_state

    images, state = images_and_state()
    config = plugin("configuration_edgewam").EdgewamConfig(bundle=str(BUNDLE), threads=1, n_action_steps=4)
    policy = plugin("modeling_edgewam").EdgewamPolicy(config)
    looks = {f"observation.images.{name}": torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for name, image in images.items()}
    looks |= {"observation.state": torch.from_numpy(state)[None], "task": [TASK]}
    rows = torch.cat([policy.select_action(looks) for _ in range(4)])

    ours = open_policy(str(BUNDLE), threads=1)
    ours.reset(TASK, 0)
    from edgewam.core.records import Observation

    truth = ours.infer(Observation(images, state, 0)).actions
    np.testing.assert_array_equal(rows.numpy(), truth[:4])
    assert set(images) == set(CAMERAS)

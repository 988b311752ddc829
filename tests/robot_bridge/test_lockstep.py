"""How a chunk takes over from the one before, in lockstep: against closed forms of what each schedule commands."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.evaluation.evaluate import evaluate
from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings, run_episode
from tests.robot_bridge import fakes
from tests.robot_bridge.split import Split

LATENCY, EXECUTE = 3, 8


class Levels:
    """Chunk number n asks for 0.01 * n in every row, so that a command tells which chunks were mixed."""

    def reset(self, prompt, seed):
        """Count anew."""
        self._count = 0

    def plan(self, observation):
        """Nothing to refresh."""

    def act(self, observation):
        """The next level."""
        self._count += 1
        actions = np.full((16, 2), 0.01 * (self._count - 1), np.float32)
        return ActionChunk(actions, observation.tick, observation.tick)

    infer = act


@pytest.fixture
def sent(monkeypatch):
    """The commands of the elbow."""
    commands = []
    monkeypatch.setattr(fakes.FakeRobot, "command", lambda self, target: commands.append(float(target[0])))
    return commands


def play(policy, sent, schedule, **settings):
    settings = {"max_ticks": 40, "latency_ticks": LATENCY, "execute_ticks": EXECUTE, "schedule": schedule, **settings}
    result = run_episode(fakes.make(), policy, 0, "reach", LockstepSettings(**settings))
    return result, np.array(sent[-settings["max_ticks"] :])


def arrived(tick):
    """Numbers of the chunks that are there at a tick and have a row for it, oldest first."""
    return [n for n in range(tick // EXECUTE + 1) if n * EXECUTE + LATENCY <= tick < n * EXECUTE + 16]


def test_replace_follows_the_newest_chunk(sent):
    result, commands = play(Levels(), sent, "replace")
    assert result.held_ticks == LATENCY
    np.testing.assert_allclose(commands[LATENCY:], [0.01 * arrived(tick)[-1] for tick in range(LATENCY, 40)], atol=1e-8)


def test_ensemble_weighs_the_oldest_most(sent):
    _, commands = play(Levels(), sent, "ensemble", ensemble_decay=0.5)
    for tick in range(LATENCY, 40):
        levels = 0.01 * np.array(arrived(tick))
        assert commands[tick] == pytest.approx(np.average(levels, weights=np.exp(-0.5 * np.arange(len(levels)))), abs=1e-8)
    assert np.abs(np.diff(commands[LATENCY:])).max() < 0.01


def test_crossfade_reaches_the_new_chunk_in_equal_steps(sent):
    _, commands = play(Levels(), sent, "crossfade", crossfade_ticks=4)
    np.testing.assert_allclose(commands[11:17], [0.002, 0.004, 0.006, 0.008, 0.01, 0.01], atol=1e-8)
    np.testing.assert_allclose(np.diff(commands[LATENCY:]).max(), 0.002, atol=1e-8)


def test_real_time_chunking_goes_on_with_what_is_under_way(sent):
    policy = Split(prefix_trained=True)
    _, commands = play(policy, sent, "rtc", max_ticks=64)
    assert [None if prefix is None else len(prefix) for prefix in policy.prefixes] == [None, *[LATENCY] * 7]
    assert policy.planned == [0, 32], "refreshed as infer would"
    # the rows that were given are the commands of their ticks
    for number, prefix in enumerate(policy.prefixes[1:], 1):
        np.testing.assert_allclose(prefix[:, 0], commands[8 * number : 8 * number + LATENCY], atol=1e-6)


def test_without_latency_real_time_chunking_is_replace(sent):
    _, alone = play(Split(), sent, "replace", latency_ticks=0)
    _, given = play(Split(prefix_trained=True), sent, "rtc", latency_ticks=0)
    np.testing.assert_array_equal(alone, given)


def test_real_time_chunking_is_refused_for_weights_that_cannot(sent):
    for policy in (Levels(), Split()):
        with pytest.raises(EdgewamError, match="never trained to"):
            play(policy, sent, "rtc")
    with pytest.raises(EdgewamError, match="up to 2 rows, and latency_ticks is 3"):
        play(Split(prefix_trained=True, max_prefix=2), sent, "rtc")


def test_an_unknown_schedule_lists_what_there_is():
    with pytest.raises(EdgewamError, match="replace, ensemble, crossfade, rtc"):
        LockstepSettings(schedule="hope")


@pytest.mark.parametrize(
    ("schedule", "more"),
    [
        ("replace", {}),
        ("rtc", {"schedule": "rtc"}),
        ("ensemble", {"schedule": "ensemble", "ensemble_decay": 0.05}),
        ("crossfade", {"schedule": "crossfade", "crossfade_ticks": 4}),
    ],
)
def test_results_are_kept_under_what_decided_them(schedule, more, tmp_path):
    settings = replace(LockstepSettings(), schedule=schedule)
    assert settings.to_json() == {"max_ticks": 300, "latency_ticks": 0, "execute_ticks": 16, **more}
    assert LockstepSettings(**settings.to_json()) == settings


def test_seam_jerk_is_measured_for_every_schedule(tmp_path):
    found = {}
    for schedule in ("replace", "ensemble", "crossfade"):
        path, settings = tmp_path / f"{schedule}.jsonl", LockstepSettings(60, LATENCY, EXECUTE, schedule)
        factory = "tests.robot_bridge.test_lockstep.levels"
        found[schedule] = evaluate(factory, {}, [0], robot=fakes.ROBOT, workers=1, results=path, settings=settings).seam_jerk
        assert json.loads(path.read_text().splitlines()[0])["config"]["settings"]["execute_ticks"] == EXECUTE
    assert found["replace"] > 2 * found["crossfade"] and found["replace"] > found["ensemble"]


def levels() -> Levels:
    """A factory for a worker."""
    return Levels()

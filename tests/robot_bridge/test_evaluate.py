"""Lockstep evaluation: a function of its arguments, resumable, and honest about what it judged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgewam.core.errors import ArtifactError, ContractError, EdgewamError, PluginError
from edgewam.core.records import ActionChunk
from edgewam.robot_bridge.evaluation.compare import compare
from edgewam.robot_bridge.evaluation.evaluate import evaluate
from edgewam.robot_bridge.evaluation.lockstep import EpisodeResult, LockstepSettings, run_episode
from edgewam.robot_bridge.evaluation.results import ResultsFile, read_results
from edgewam.robot_bridge.policy import IMAGES, BlindPolicy, ReplayPolicy, constant_policy, open_policy
from tests.robot_bridge import fakes

SEEING = "tests.robot_bridge.fakes.seeing"


def judged(seeds=range(4), **kwargs):
    kwargs = {"robot": fakes.ROBOT, "workers": 1, "settings": LockstepSettings(max_ticks=60), **kwargs}
    return evaluate(kwargs.pop("factory", SEEING), kwargs.pop("args", {}), seeds, **kwargs)


def played(policy, seed=0, **settings):
    return run_episode(fakes.make(), policy, seed, "reach", LockstepSettings(**{"max_ticks": 60, **settings}))


class Recorder(ReplayPolicy):
    """Commands its own tick number / 1000, so that a robot's log shows which row came when."""

    def __init__(self):
        super().__init__(lambda seed: np.stack([np.arange(500) / 1000, np.full(500, 0.5)], 1))
        self.asked = []

    def infer(self, observation):
        self.asked.append(observation.tick)
        return super().infer(observation)


@pytest.mark.parametrize(("latency", "execute", "held"), [(0, 16, 0), (3, 13, 3), (3, 16, 3 + 3 * 3), (15, 16, 15 + 3 * 15)])
def test_latency_delays_chunks_and_rows_stay_on_their_tick(latency, execute, held, monkeypatch):
    policy, sent = Recorder(), []
    monkeypatch.setattr(fakes.FakeRobot, "command", lambda self, target: sent.append(float(target[0])))
    result = played(policy, max_ticks=64, latency_ticks=latency, execute_ticks=execute)
    assert policy.asked == list(range(0, 64, execute)) and result.chunks == len(policy.asked)
    assert result.held_ticks == held
    followed = [tick for tick in range(64) if sent[tick] == pytest.approx(tick / 1000, abs=1e-6) and (tick or not latency)]
    assert len(followed) == 64 - held


def test_an_engine_cannot_be_slower_than_its_interval():
    with pytest.raises(EdgewamError, match="latency_ticks"):
        LockstepSettings(latency_ticks=16, execute_ticks=16)


def test_success_is_timed_and_ends_the_episode():
    result = played(fakes.seeing(0.04))
    assert result.strict_success and result.reward == 4
    assert result.success_tick == pytest.approx(0.45 / 0.04 + 2, abs=2)
    assert result.strict_tick == result.ticks == result.success_tick + 4


@pytest.mark.parametrize("actions", [np.zeros((16, 3), np.float32), np.zeros(2, np.float32), np.full((4, 2), np.nan, np.float32)])
def test_actions_that_are_no_actions_are_refused(actions):
    policy = constant_policy([0, 0.5])
    policy.infer = lambda o: ActionChunk(actions, o.tick, o.tick)
    with pytest.raises(ContractError):
        played(policy)


def test_the_same_seeds_give_the_same_results_with_any_number_of_workers(tmp_path):
    one = judged(range(6))
    two = judged(range(6), workers=2)
    assert one.episodes == two.episodes
    assert one.strict.successes == 6 and one.strict.rate == 1.0 and one.strict.wilson.low == pytest.approx(0.61, abs=0.01)
    assert one.median_strict_time_s == pytest.approx(np.median([e.strict_tick for e in one.episodes]) / 50)


def test_a_killed_evaluation_continues_where_it_was(tmp_path):
    path = tmp_path / "results.jsonl"
    whole = judged(range(5), results=path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed in the middle of the third episode's line
    new = []
    continued = judged(range(5), results=path, on_episode=lambda episode, done, total: new.append((episode.seed, done, total)))
    assert continued.episodes == whole.episodes
    assert len(new) == 3 and new[-1][1:] == (5, 5)
    assert sorted(path.read_bytes().splitlines()) == sorted(line.strip() for line in lines)
    assert judged(range(5), results=path, factory=SEEING).episodes == whole.episodes


def test_results_of_something_else_are_never_mixed_in(tmp_path):
    path = tmp_path / "results.jsonl"
    judged(range(1), results=path, identity={"bundle": "aa"})
    with pytest.raises(EdgewamError, match="identity"):
        judged(range(2), results=path, identity={"bundle": "bb"})
    with pytest.raises(EdgewamError, match="settings"):
        judged(range(2), results=path, identity={"bundle": "aa"}, settings=LockstepSettings(max_ticks=61))


def test_results_go_on_where_the_same_policy_lies_elsewhere(tmp_path):
    path = tmp_path / "results.jsonl"
    first = judged(range(1), results=path, args={"speed": 0.04}, identity={"speed": "aa"})
    both = judged(range(2), results=path, args={"speed": 0.05}, identity={"speed": "aa"})
    assert both.episodes[0] == first.episodes[0] and len(both.episodes) == 2
    with pytest.raises(EdgewamError, match="policy"):
        judged(range(2), results=path, args={"speed": 0.04, "offset": 1}, identity={"speed": "aa"})


def test_two_evaluations_cannot_write_one_file(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultsFile(path, {"a": 1}), pytest.raises(EdgewamError, match="Another evaluation"):
        ResultsFile(path, {"a": 1})


@pytest.mark.parametrize("text", ["", "hello\n", '{"format": 9, "config": {}}\n', '{"format": 1, "config": {}}\n{"seed": 1}\n'])
def test_a_file_that_is_no_results_file_is_refused(tmp_path, text):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ArtifactError):
        read_results(path)
    with pytest.raises(ArtifactError):
        read_results(tmp_path / "missing.jsonl")


def test_episodes_that_ended_before_a_worker_failed_are_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    judged([0], results=path, factory="tests.robot_bridge.fakes.faulty", args={"fault": "raise", "begin": 400, "end": 500})
    with pytest.raises(EdgewamError, match="the engine is on fire"):
        judged([1], factory="tests.robot_bridge.fakes.faulty", args={"fault": "raise", "begin": 16, "end": 32})
    with pytest.raises(EdgewamError, match="Compile it again"):
        judged([1], factory="tests.robot_bridge.fakes.faulty", args={"fault": "refuse", "begin": 16, "end": 32}, workers=2)
    with pytest.raises(EdgewamError, match="code -9"):
        judged([1, 2], factory="tests.robot_bridge.fakes.faulty", args={"fault": "die", "begin": 16, "end": 32}, workers=2)
    assert len(read_results(path)[1]) == 1


def test_a_policy_that_needs_its_eyes_fails_without_them():
    assert judged(range(4)).strict.rate == 1
    assert judged(range(4), ablate=[IMAGES]).strict.rate == 0
    assert judged(range(4), ablate=["gate"]).strict.rate == 0


def test_ablations_of_unknown_parts_are_refused():
    with pytest.raises(EdgewamError, match="Parts: gate"):
        open_policy(SEEING, {}, ["memory"])
    with pytest.raises(EdgewamError, match="images"):
        open_policy("tests.robot_bridge.fakes.slow_wave", {}, ["memory"])
    blind = open_policy(SEEING, {}, [IMAGES, "gate"])
    assert isinstance(blind, BlindPolicy)


@pytest.mark.parametrize(
    "factory", ["nowhere.at_all", "nodots", "tests.robot_bridge.fakes.missing", "edgewam.core.records.CAMERAS.x"]
)
def test_an_unknown_policy_factory_is_refused(factory):
    with pytest.raises(PluginError):
        open_policy(factory, {})


def test_a_factory_that_returns_no_policy_is_refused():
    with pytest.raises(PluginError, match="infer"):
        open_policy("tests.robot_bridge.fakes.make", {"render": False})


def results_file(path, successes, **config):
    base = {"robot": "r", "robot_options": {}, "prompt": "p", "settings": {"max_ticks": 300}}
    with ResultsFile(path, {**base, **config}) as file:
        for seed, success in successes.items():
            file.add(EpisodeResult(seed, 300, 4, 200, 210 if success else None, 19, 0, 0.02, 0.01))
    return path


def test_a_comparison_pairs_the_seeds(tmp_path):
    first = results_file(tmp_path / "a", {seed: seed not in (3, 4, 5) for seed in range(100)})
    second = results_file(tmp_path / "b", {seed: seed not in (5, 6) for seed in range(1, 120)})
    found = compare(first, second, margin=0.05)
    assert (found.n, found.both, found.only_first, found.only_second, found.neither) == (99, 95, 1, 2, 1)
    assert found.difference == pytest.approx(-1 / 99) and found.p_value == 1.0
    assert found.lower_bound < found.difference
    assert (found.first.strict.successes, found.second.strict.successes, found.first.strict.n) == (96, 97, 99)
    assert (found.first.median_strict_tick, found.first.seam_jerk, found.first.inner_jerk) == (210, 0.02, 0.01)
    assert found.is_non_inferior is (found.lower_bound > -0.05)
    assert compare(first, second, margin=-found.lower_bound + 1e-6).is_non_inferior
    assert not compare(first, second, margin=-found.lower_bound - 1e-6).is_non_inferior


def test_results_that_cannot_be_paired_are_refused(tmp_path):
    first = results_file(tmp_path / "a", {1: True})
    with pytest.raises(EdgewamError, match="seed"):
        compare(first, results_file(tmp_path / "b", {2: True}))
    with pytest.raises(EdgewamError, match="robot"):
        compare(first, results_file(tmp_path / "c", {1: True}, robot="other"))
    with pytest.raises(EdgewamError, match="max_ticks"):
        compare(first, results_file(tmp_path / "d", {1: True}, settings={"max_ticks": 200}))


def test_a_report_is_plain_data():
    json.dumps(judged(range(2)).to_json(), allow_nan=False)


@pytest.mark.parametrize("wrong", [{"seeds": []}, {"workers": 0}, {"robot": "nobody"}])
def test_senseless_requests_are_refused(wrong):
    with pytest.raises(EdgewamError):
        judged(**wrong)

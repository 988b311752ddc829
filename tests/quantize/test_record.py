"""Recording and remembering: bad calibration data are named, and answers from memory are the computed ones."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.core.errors import ContractError
from edgewam.quantize.layers import Scales, find_layers, quantized
from edgewam.quantize.record import RecordingEngine, check_dataset, chosen_episodes
from edgewam.quantize.sensitivity import RememberingEngine, input_shapes, score_with
from edgewam.runtime.engine import run_engine
from tests.quantize.toy import toy_recording, toy_stages


@dataclass
class Episodes:
    """As much of a dataset as the checks look at."""

    rows: np.ndarray
    path: Path = Path("data")
    num_episodes: int = 10
    touched: list[int] = field(default_factory=list)

    def states(self, episode):
        self.touched.append(episode)
        return self.rows


def test_good_data_pass_and_only_the_chosen_episodes_are_read():
    data = Episodes(np.zeros((5, 14), np.float32))
    check_dataset(data, 14, 3)
    assert data.touched == chosen_episodes(data, 3) == [0, 4, 9]


def test_states_with_nan_are_refused_with_their_place():
    rows = np.zeros((5, 14), np.float32)
    rows[3, 2] = np.nan
    with pytest.raises(ContractError, match="episode 0, control step 3"):
        check_dataset(Episodes(rows), 14, 2)


def test_states_of_another_robot_are_refused():
    with pytest.raises(ContractError, match="states of 7 numbers, but the policy takes 14"):
        check_dataset(Episodes(np.zeros((5, 7), np.float32)), 14, 2)


def test_more_episodes_than_there_are_is_refused():
    with pytest.raises(ContractError, match="has 10 episodes; calibration was asked to use 11"):
        check_dataset(Episodes(np.zeros((5, 14), np.float32)), 14, 11)


def arrays(seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"image": (1, 8, 6, 6), "rows": (16, 64)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_recording_keeps_each_different_call_once():
    stage = toy_stages()["net"]
    engine = RecordingEngine(stage)
    for seed in (0, 0, 1):
        run_engine(stage, engine, arrays(seed))
    assert len(engine.calls) == 2
    assert torch.equal(engine.calls[1][1], torch.from_numpy(arrays(1)["rows"]))


def test_recording_refuses_nan_and_names_the_input():
    stage = toy_stages()["net"]
    bad = arrays()
    bad["rows"][0, 0] = np.nan
    with pytest.raises(ContractError, match="input 'rows' of stage 'net'"):
        run_engine(stage, RecordingEngine(stage), bad)


def test_memory_answers_what_was_computed_and_forgets_trials():
    stages = toy_stages()
    stage, layers = stages["net"], find_layers(stages)
    engine = RememberingEngine(stage)
    first = run_engine(stage, engine, arrays())
    engine.is_learning = False
    changed = {("net", "up"): quantized(layers["net", "up"], Scales("int8_dynamic"))}
    seen = []

    def score():
        seen.append(run_engine(stage, engine, arrays())["out"])
        return float(np.abs(seen[-1] - first["out"]).max())

    assert score() == 0.0
    error = score_with(stages, {"net": engine}, changed, score)
    assert error > 0 and score() == 0.0  # the trial is forgotten, and the layer is back
    with pytest.raises(ZeroDivisionError):
        score_with(stages, {"net": engine}, changed, lambda: 1 / 0)
    assert score() == 0.0


def test_each_layer_is_scored_alone():
    stages = toy_stages()
    layers = find_layers(stages)
    engine = RememberingEngine(stages["net"])
    reference = run_engine(stages["net"], engine, arrays())
    engine.is_learning = False

    def score():
        found = run_engine(stages["net"], engine, arrays())
        return float(sum(np.abs(found[name] - reference[name]).sum() for name in found))

    tries = [
        (name, "int8_dynamic", quantized(layer, Scales("int8_dynamic"))) for name, layer in layers.items() if name[1] != "conv"
    ]
    found = [score_with(stages, {"net": engine}, {name: layer}, score) for name, _, layer in tries]
    together = score_with(stages, {"net": engine}, {name: layer for name, _, layer in tries}, score)
    assert min(found) > 0 and together > max(found) * 0.8


def test_shapes_of_inputs_are_those_of_a_recorded_call():
    stages = toy_stages()
    shapes = input_shapes(stages, find_layers(stages), toy_recording(1).calls)
    assert shapes == {("net", "conv"): (1, 8, 6, 6), ("net", "up"): (16, 64), ("net", "down"): (16, 96)}

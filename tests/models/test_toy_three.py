"""The toy family: UniPC tables against the reference, and the programs against a plain python loop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.compile.samples import random_inputs
from edgewam.models import toy_three
from edgewam.models.toy_unipc import COLUMNS, finished_rows, unipc_table
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.pipeline import Pipeline

GOLDEN = Path(__file__).parents[1] / "golden" / "x_wam" / "unipc_coefficients.json"
NUM_ACTION_STEPS = 4


@pytest.fixture(scope="module")
def model() -> toy_three.ToyThree:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return toy_three.build()


@pytest.fixture(scope="module")
def pipeline(model) -> Pipeline:
    stages = toy_three.stages(model)
    programs = toy_three.programs(model, NUM_ACTION_STEPS)
    return Pipeline(programs, stages, {name: TorchEngine(stage) for name, stage in stages.items()})


def prompt_and_noise(pipeline, seed=1):
    programs = pipeline.programs.programs
    return random_inputs(programs["prompt"].inputs, seed), random_inputs(programs["act"].inputs, seed + 1)


def plain_loop(model, text, noise, num_rows):
    """UniPC as it is usually written: named variables, no pipeline, no carries by name."""
    context = model.context(torch.from_numpy(text["text"]))
    x = {name: torch.from_numpy(noise[f"{name}_noise"]) for name in toy_three.STATES}
    last, m1, m2 = ({name: torch.zeros_like(value) for name, value in x.items()} for _ in range(3))
    for rows in torch.from_numpy(toy_three.solver_rows(model.config, NUM_ACTION_STEPS))[:num_rows]:
        velocity = dict(zip(toy_three.STATES, model.velocity(tuple(x.values()), rows[:, 0], context), strict=True))
        for row, name in zip(rows, toy_three.STATES, strict=True):
            c = dict(zip(COLUMNS, row, strict=True))
            m = x[name] - c["sigma"] * velocity[name]
            fixed = c["corr_x"] * x[name] + c["corr_last"] * last[name] + c["corr_m"] * m
            fixed = fixed + c["corr_m1"] * m1[name] + c["corr_m2"] * m2[name]
            x[name] = c["pred_x"] * fixed + c["pred_m"] * m + c["pred_m1"] * m1[name]
            last[name], m2[name], m1[name] = fixed, m1[name], m
    return x


@pytest.mark.parametrize("num_steps", [4, 8, 10, 50])
def test_unipc_tables_equal_the_reference(num_steps):
    reference = json.loads(GOLDEN.read_text())
    assert tuple(reference["columns"]) == COLUMNS
    np.testing.assert_allclose(unipc_table(num_steps), reference["tables"][str(num_steps)], rtol=0, atol=1e-6)


def test_unipc_follows_the_exact_path_when_the_data_prediction_is_constant():
    # a network that always knows the clean sample: the exact solution at noise level s is s/s0 * x0 + (1 - s/s0) * clean
    clean, start = torch.tensor([0.3, -1.2]).double(), torch.tensor([5.0, 2.0]).double()
    for num_steps in (1, 2, 3, 7):
        table = torch.from_numpy(unipc_table(num_steps))
        sigma = [*table[:, 1], torch.tensor(0.0)]
        carries = (start, *(torch.zeros_like(start) for _ in range(3)))
        for row, after in zip(table, sigma[1:], strict=True):
            carries = toy_three.unipc_step(row, carries, (carries[0] - clean) / row[1])
            share = after / sigma[0]
            torch.testing.assert_close(carries[0], share * start + (1 - share) * clean, rtol=0, atol=1e-12)


def test_a_finished_row_changes_no_bit():
    row = torch.from_numpy(finished_rows(1).astype(np.float32))[0]
    carries = tuple(torch.randn(4, 3) for _ in range(4))
    assert torch.equal(toy_three.unipc_step(row, carries, torch.randn(4, 3))[0], carries[0])


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        unipc_table(0)


def test_more_action_than_video_steps_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.12"):
        toy_three.solver_rows(toy_three.ToyThreeConfig(), 13)


@pytest.mark.parametrize("program", ["act", "imagine"])
def test_programs_equal_a_plain_python_loop(model, pipeline, program):
    text, noise = prompt_and_noise(pipeline)
    pipeline.run("prompt", text)
    result = pipeline.run(program, noise)
    with torch.no_grad():
        expected = plain_loop(model, text, noise, NUM_ACTION_STEPS if program == "act" else 12)
    for name in toy_three.STATES:
        np.testing.assert_allclose(result[f"{name}_x"], expected[name].numpy(), rtol=0, atol=1e-6)


def test_an_early_stop_gives_the_actions_of_the_full_run(pipeline):
    text, noise = prompt_and_noise(pipeline)
    pipeline.run("prompt", text)
    early, full = pipeline.run("act", noise), pipeline.run("imagine", noise)
    for name in ("action", "proprio"):
        np.testing.assert_array_equal(early[f"{name}_x"], full[f"{name}_x"])
    assert np.abs(early["video_x"] - full["video_x"]).max() > 0.1  # the video is still noisy when the actions are done


def test_video_is_never_cleaner_than_actions(model):
    rows = toy_three.solver_rows(model.config, NUM_ACTION_STEPS)
    sigma = rows[:, :, COLUMNS.index("sigma")]
    assert (sigma[:, 0] >= sigma[:, 1]).all() and (sigma[:, 1] == sigma[:, 2]).all()


def test_the_prompt_matters_and_outlives_a_run(pipeline):
    text, noise = prompt_and_noise(pipeline)
    pipeline.run("prompt", text)
    first, again = pipeline.run("act", noise), pipeline.run("act", noise)
    pipeline.reset("prompt")
    without = pipeline.run("act", noise)
    np.testing.assert_array_equal(first["action_x"], again["action_x"])
    assert np.abs(first["action_x"] - without["action_x"]).max() > 1e-4

"""Programs with one stage taken out."""

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Loop, Program, Programs, Push, State
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.ablation import bypass
from edgewam.runtime.pipeline import Pipeline


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name, shape, dtype)


class Plus:
    """Adds a number."""

    def __init__(self, number):
        self.number = number

    def bind(self, inputs, outputs):
        return lambda: np.add(inputs["a"], np.float32(self.number), out=outputs["b"])


def pipeline(programs):
    stages = {name: Stage(name, (spec("a", 1),), (spec("b", 1),), Cost(0, 0, 1, 8)) for name in ("edit", "use")}
    return Pipeline(programs, stages, {"edit": Plus(10), "use": Plus(1)})


def call(stage, source, target):
    return Call(stage, {"a": source}, {"b": target})


PROGRAMS = Programs(
    (State(spec("ring", 2, 1), "plan"),),
    {
        "go": Program(
            "go", (spec("x", 1), spec("slot", 1, dtype="int64")), ("y", "z"),
            (call("edit", "x", "edited"), Push("edited", "ring", "slot")),
            Loop((call("use", "edited", "y"),), {"row": "rows"}, 1),
            (call("use", "edited", "z"),),
        ),
    },
    {"rows": np.zeros((1, 1), np.float32)},
)  # fmt: skip


def test_readers_of_a_bypassed_stage_get_its_source():
    inputs = {"x": np.array([5], np.float32), "slot": np.array([1])}
    whole, cut = pipeline(PROGRAMS), pipeline(bypass(PROGRAMS, "edit", output="edited", source="x"))
    assert {name: value.item() for name, value in whole.run("go", inputs).items()} == {"y": 16, "z": 16}
    assert {name: value.item() for name, value in cut.run("go", inputs).items()} == {"y": 6, "z": 6}
    assert (whole.state("ring")[1].item(), cut.state("ring")[1].item()) == (15, 5)


def test_a_stage_that_nobody_calls_cannot_be_bypassed():
    with pytest.raises(ContractError, match="No program calls a stage 'router'"):
        bypass(PROGRAMS, "router", output="edited", source="x")

"""Programs are checked before they run: names, specs, order and one writer per state."""

import json
from dataclasses import replace

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Loop, Program, Programs, Push, State
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec

COST = Cost(0, 0, 1, 0)
X, DELTA = TensorSpec("x", (4,)), TensorSpec("delta", (1,))
STEP = Stage("step", (X, DELTA), (TensorSpec("x_next", (4,)),), COST)
STEP_CALL = Call("step", {"x": "x", "delta": "delta"}, {"x_next": "x"})
STAGES = {"step": STEP}


def example(**changes):
    program = Program("act", (X,), ("x",), loop=Loop((STEP_CALL,), {"delta": "deltas"}, 2))
    owner = Programs((), {"act": program}, {"deltas": np.zeros((3, 1), np.float32)})
    return replace(owner, **changes)


def with_loop(**changes):
    owner = example()
    program = owner.programs["act"]
    return replace(owner, programs={"act": replace(program, loop=replace(program.loop, **changes))})


def test_a_carry_has_one_name_in_and_out():
    example().check(STAGES)


def test_json_round_trip_keeps_everything():
    ring = State(TensorSpec("ring", (6, 4)), "plan")
    push = Program("plan", (X, TensorSpec("slot", (1,), "int64")), (), finish=(Push("x", "ring", "slot"),))
    owner = example(states=(ring,), programs={**example().programs, "plan": push})
    owner.check(STAGES)
    assert Programs.from_json(json.loads(json.dumps(owner.to_json())), owner.constants).to_json() == owner.to_json()
    assert Stage.from_json(json.loads(json.dumps(STEP.to_json()))) == STEP


def test_missing_constants_are_named():
    with pytest.raises(ContractError, match="deltas"):
        Programs.from_json(example().to_json(), {})


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (with_loop(num_rows=4), "shorter than 4 rows"),
        (with_loop(rows={}), "'delta' before it is written"),
        (with_loop(calls=(replace(STEP_CALL, stage="stop"),)), "Available: step"),
        (with_loop(calls=(replace(STEP_CALL, inputs={"x": "x"}),)), "bind exactly"),
        (with_loop(calls=(replace(STEP_CALL, outputs={"x_next": "delta"}),)), "writes"),
        (with_loop(calls=(replace(STEP_CALL, outputs={"x_next": "deltas"}),)), "constant"),
        (example(constants={"deltas": np.zeros((3, 2), np.float32)}), r"float32\[1\]"),
        (replace(example(), programs={"act": replace(example().programs["act"], outputs=("y",))}), "never writes"),
    ],
)
def test_wrong_wiring_is_refused(owner, message):
    with pytest.raises(ContractError, match=message):
        owner.check(STAGES)


def test_a_state_has_one_writer():
    state = State(TensorSpec("x", (4,)), "chunk")
    program = replace(example().programs["act"], inputs=())
    owner = example(states=(state,), programs={"a": program, "b": replace(program, name="b")})
    with pytest.raises(ContractError, match="one writer"):
        owner.check(STAGES)


def test_specs_refuse_wrong_arrays():
    X.check(np.zeros(4, np.float32))
    with pytest.raises(ContractError, match=r"'x' must be float32\[4\], got float64\[4\]"):
        X.check(np.zeros(4))
    with pytest.raises(ContractError, match="dtype"):
        TensorSpec("x", (1,), "complex64")

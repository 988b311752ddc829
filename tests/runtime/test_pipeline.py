"""The pipeline: carries, tables, rings, state lifetimes, refusals; with NumPy engines, so that nothing else is tested."""

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Loop, Program, Programs, Push, State
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.engine import EngineOptions, allocate, run_engine
from edgewam.runtime.pipeline import Pipeline

COST = Cost(0, 0, 1, 0)


class NumpyEngine:
    """A stage in NumPy that writes its outputs early, before it has read all inputs, as a real engine may."""

    def __init__(self, stage, function):
        self.stage, self.function, self.num_calls = stage, function, 0

    def bind(self, inputs, outputs):
        def call():
            self.num_calls += 1
            for array in outputs.values():
                array.fill(np.nan)
            results = dict(zip((s.name for s in self.stage.outputs), self.function(**inputs), strict=True))
            for name, array in outputs.items():
                array[...] = results[name]

        return call


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name, shape, dtype)


def make(programs, *stages):
    declared = {name: Stage(name, tuple(ins), tuple(outs), COST) for name, ins, outs, _ in stages}
    engines = {name: NumpyEngine(declared[name], function) for name, _, _, function in stages}
    return Pipeline(programs, declared, engines), engines


STEP = ("step", [spec("x", 3), spec("rate")], [spec("y", 3), spec("twice", 3)], lambda x, rate: (x * rate + 1, 2 * x))


def looped(num_rows=3, table=(2.0, 3.0, 5.0)):
    call = Call("step", {"x": "x", "rate": "rate"}, {"y": "x"})
    program = Program("go", (spec("x", 3),), ("x",), (), Loop((call,), {"rate": "rates"}, num_rows))
    return Programs((), {"go": program}, {"rates": np.array(table, np.float32)})


def test_a_loop_runs_once_per_row_and_carries_by_name():
    pipeline, engines = make(looped(), STEP)
    x = np.array([1, 0, -1], np.float32)
    result = pipeline.run("go", {"x": x})
    np.testing.assert_array_equal(result["x"], ((x * 2 + 1) * 3 + 1) * 5 + 1)
    assert engines["step"].num_calls == 3


def test_fewer_rows_stop_early():
    pipeline, _ = make(looped(num_rows=1), STEP)
    np.testing.assert_array_equal(pipeline.run("go", {"x": np.ones(3, np.float32)})["x"], np.full(3, 3.0))


def test_results_and_inputs_belong_to_the_caller():
    pipeline, _ = make(looped(), STEP)
    x = np.ones(3, np.float32)
    first = pipeline.run("go", {"x": x})["x"]
    kept = first.copy()
    pipeline.run("go", {"x": 7 * x})
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x, np.ones(3))


def test_a_run_writes_where_the_last_one_wrote():
    pipeline, _ = make(looped(), STEP)
    buffer = pipeline._plans["go"][0].outputs["x"].host
    for value in (1, 2):
        result = pipeline.run("go", {"x": np.full(3, value, np.float32)})["x"]
        np.testing.assert_array_equal(buffer, result)


MEMORY = (
    ("encode", [spec("image", 2)], [spec("kv", 2)], lambda image: (image * 10,)),
    ("read", [spec("memory", 3, 2), spec("count", 1)], [spec("sum", 2), spec("next", 1)],
     lambda memory, count: (memory.sum(0), count + 1)),
)  # fmt: skip


def remembering():
    plan = Program(
        "plan", (spec("image", 2), spec("slot", 1, dtype="int64")), (),
        (Call("encode", {"image": "image"}, {"kv": "kv"}), Push("kv", "memory", "slot")),
    )  # fmt: skip
    act = Program("act", (), ("sum",), (Call("read", {"memory": "memory", "count": "count"}, {"sum": "sum", "next": "count"}),))
    states = (State(spec("memory", 3, 2), "plan"), State(spec("count", 1), "chunk"))
    return Programs(states, {"plan": plan, "act": act})


def push(pipeline, value, slot):
    pipeline.run("plan", {"image": np.full(2, value, np.float32), "slot": np.array([slot], np.int64)})


def test_a_ring_keeps_what_was_pushed_until_its_slot_is_reused():
    pipeline, _ = make(remembering(), *MEMORY)
    for value, slot in ((1, 0), (2, 1), (3, 2), (4, 0)):
        push(pipeline, value, slot)
    np.testing.assert_array_equal(pipeline.run("act", {})["sum"], [90, 90])
    np.testing.assert_array_equal(pipeline.state("memory")[:, 0], [40, 20, 30])


def test_reset_zeroes_one_lifetime():
    pipeline, _ = make(remembering(), *MEMORY)
    push(pipeline, 1, 0)
    pipeline.run("act", {})
    pipeline.reset("chunk")
    assert pipeline.state("count")[0] == 0 and pipeline.state("memory").any()
    pipeline.reset()
    assert not pipeline.state("memory").any()


def test_set_state_checks_and_writes():
    pipeline, _ = make(remembering(), *MEMORY)
    pipeline.set_state("memory", np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(pipeline.run("act", {})["sum"], [3, 3])
    with pytest.raises(ContractError, match="memory"):
        pipeline.set_state("memory", np.ones((2, 2), np.float32))
    with pytest.raises(ContractError, match="Available: memory, count"):
        pipeline.set_state("memori", np.ones((3, 2), np.float32))
    with pytest.raises(ContractError, match="Available"):
        pipeline.state("memori")


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_outside_the_ring_is_refused_before_anything_runs(slot):
    pipeline, engines = make(remembering(), *MEMORY)
    with pytest.raises(ContractError, match=r"0\.\.2"):
        push(pipeline, 1, slot)
    assert engines["encode"].num_calls == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "missing \\['x'\\]"),
        ({"x": np.ones(3, np.float32), "y": np.ones(1)}, "unknown \\['y'\\]"),
        ({"x": np.ones(4, np.float32)}, "float32\\[3\\], got float32\\[4\\]"),
        ({"x": np.ones(3)}, "got float64"),
    ],
)
def test_wrong_inputs_are_refused_with_what_is_expected(inputs, message):
    pipeline, _ = make(looped(), STEP)
    with pytest.raises(ContractError, match=message):
        pipeline.run("go", inputs)


def test_an_unknown_program_lists_what_there_is():
    pipeline, _ = make(looped(), STEP)
    with pytest.raises(ContractError, match="Available: go"):
        pipeline.run("stop", {})


def test_a_stage_without_engine_is_refused():
    stage = Stage("step", tuple(STEP[1]), tuple(STEP[2]), COST)
    with pytest.raises(ContractError, match="no engine"):
        Pipeline(looped(), {"step": stage}, {})


def test_a_table_row_cannot_be_read_before_the_loop_nor_written():
    read = Program(
        "go", (spec("x", 3),), ("x",), (Call("step", {"x": "x", "rate": "rate"}, {"y": "x"}),),
        Loop((), {"rate": "rates"}, 1),
    )  # fmt: skip
    with pytest.raises(ContractError, match="before the loop"):
        make(Programs((), {"go": read}, {"rates": np.ones(2, np.float32)}), STEP)
    call = Call("step", {"x": "x", "rate": "rate"}, {"y": "row"})
    write = Program("go", (spec("x", 3),), ("x",), (), Loop((call,), {"rate": "rates", "row": "rows"}, 1))
    constants = {"rates": np.ones(2, np.float32), "rows": np.ones((2, 3), np.float32)}
    with pytest.raises(ContractError, match="writes the table row 'row'"):
        make(Programs((), {"go": write}, constants), STEP)


def test_the_hook_sees_every_step_and_only_when_set():
    pipeline, _ = make(remembering(), *MEMORY)
    seen = []
    pipeline.on_stage = lambda name, nanoseconds: seen.append((name, nanoseconds))
    push(pipeline, 1, 0)
    pipeline.on_stage = None
    push(pipeline, 1, 0)
    assert [name for name, _ in seen] == ["encode", "push memory"]
    assert all(nanoseconds >= 0 for _, nanoseconds in seen)


def test_host_buffers_refuse_dtypes_that_numpy_lacks():
    with pytest.raises(ContractError, match="bfloat16"):
        allocate(spec("k", 2, dtype="bfloat16"))


def test_no_threads_are_refused():
    with pytest.raises(ContractError, match="at least 1"):
        EngineOptions(threads=0)


def test_run_engine_gives_every_output():
    stage = Stage("step", tuple(STEP[1]), tuple(STEP[2]), COST)
    result = run_engine(stage, NumpyEngine(stage, STEP[3]), {"x": np.ones(3, np.float32), "rate": np.array(4, np.float32)})
    np.testing.assert_array_equal(result["y"], np.full(3, 5.0))
    np.testing.assert_array_equal(result["twice"], np.full(3, 2.0))

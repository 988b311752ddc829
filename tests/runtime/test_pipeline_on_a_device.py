"""The pipeline where work is asynchronous: ports, graphs that are verified, a background program beside the urgent one."""

import numpy as np
import pytest
import torch

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Loop, Program, Programs, Push, State
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.memory import CaptureError
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.torch_memory import TorchMemory
from tests.runtime.fake_device import DeviceEngine, FakeDevice

COST = Cost(0, 0, 1, 0)


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name, shape, dtype)


# a planner in two layer groups that fill one context, a ring of what it planned, and a chunk that reads the context
STAGES = (
    ("look", [spec("image", 2)], [spec("seen", 2)], lambda image: (image + 1,)),
    ("low", [spec("seen", 2), spec("memory", 3, 4, 2)], [spec("h", 2), spec("kv", 2, 2)],
     lambda seen, memory: (seen * 2, np.stack([seen, memory.sum((0, 1))]))),
    ("high", [spec("h", 2)], [spec("kv", 2, 2)], lambda h: (np.stack([h, -h]),)),
    ("step", [spec("x", 2), spec("context", 4, 2), spec("rate")], [spec("next", 2)],
     lambda x, context, rate: (x * rate + context.sum(0),)),
)  # fmt: skip

PLAN = Program(
    "plan", (spec("image", 2), spec("slot", 1, dtype="int64")), (),
    (
        Call("look", {"image": "image"}, {"seen": "seen"}),
        Call("low", {"seen": "seen", "memory": "memory"}, {"h": "h", "kv": "context[0:2]"}),
        Call("high", {"h": "h"}, {"kv": "context[2:4]"}),
        Push("context", "memory", "slot"),
    ),
)  # fmt: skip
ACT = Program(
    "act", (spec("x", 2),), ("x",), (),
    Loop((Call("step", {"x": "x", "context": "context", "rate": "rate"}, {"next": "x"}),), {"rate": "rates"}, 3),
)  # fmt: skip
PROGRAMS = Programs(
    (State(spec("context", 4, 2), "plan"), State(spec("memory", 3, 4, 2), "plan")),
    {"plan": PLAN, "act": ACT},
    {"rates": np.array([2, 3, 5], np.float32)},
)


def make(device, overlap=True):
    declared = {name: Stage(name, tuple(ins), tuple(outs), COST) for name, ins, outs, _ in STAGES}
    engines = {name: DeviceEngine(declared[name], function, device) for name, _, _, function in STAGES}
    return Pipeline(PROGRAMS, declared, engines, device, overlap)


def image(value, slot=0):
    return {"image": np.full(2, value, np.float32), "slot": np.array([slot])}


def chunk(value=1.0):
    return {"x": np.full(2, value, np.float32)}


def expected_chunk(context, x=1.0):
    total = context.sum(0)
    for rate in (2, 3, 5):
        x = x * rate + total
    return x


def context_of(value, memory):
    seen = np.full(2, value + 1, np.float32)
    return np.stack([seen, memory.sum((0, 1)), 2 * seen, -2 * seen])


def episode(pipeline, plans=5):
    """Plans and chunks in turns; returns all answers."""
    answers = []
    for number in range(plans):
        pipeline.run("plan", image(number, number % 3))
        answers += [pipeline.run("act", chunk(number))["x"] for _ in range(2)]
    return np.array(answers)


def truth(plans=5):
    memory, answers = np.zeros((3, 4, 2), np.float32), []
    for number in range(plans):
        context = context_of(number, memory)
        memory[number % 3] = context
        answers += [expected_chunk(context, number)] * 2
    return np.array(answers)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_streams_graphs_and_back_buffers_change_no_answer(overlap, captured):
    pipeline = make(FakeDevice(), overlap)
    if captured:
        assert pipeline.capture("plan", image(9)) == pipeline.capture("act", chunk(9)) == "bitwise"
    np.testing.assert_array_equal(episode(pipeline), truth())


def test_a_chunk_beside_a_refresh_reads_the_old_context_and_the_next_one_the_new():
    pipeline = make(FakeDevice())
    pipeline.run("plan", image(1))
    old, memory = pipeline.state("context"), pipeline.state("memory")
    pipeline.start("plan", image(2, 1))
    np.testing.assert_array_equal(pipeline.run("act", chunk())["x"], expected_chunk(old))
    pipeline.finish("plan")
    np.testing.assert_array_equal(pipeline.state("context"), context_of(2, memory))
    np.testing.assert_array_equal(pipeline.run("act", chunk())["x"], expected_chunk(context_of(2, memory)))


def test_a_refresh_never_overwrites_what_a_running_chunk_reads():
    pipeline = make(FakeDevice())
    pipeline.run("plan", image(1))
    old = pipeline.state("context")
    pipeline.start("act", chunk())  # reads the front buffer, but only when it is waited for
    pipeline.run("plan", image(2, 1))  # goes to the back and is swapped in
    pipeline.start("plan", image(3, 2))  # would overwrite what the chunk still has to read
    np.testing.assert_array_equal(pipeline.finish("act")["x"], expected_chunk(old))
    pipeline.finish("plan")


def test_without_a_back_buffer_programs_do_not_run_beside_each_other():
    pipeline = make(FakeDevice(), overlap=False)
    pipeline.start("plan", image(1))
    with pytest.raises(ContractError, match="'act' cannot start while plan runs"):
        pipeline.start("act", chunk())
    with pytest.raises(ContractError, match="reset is not possible"):
        pipeline.reset()
    pipeline.finish("plan")
    with pytest.raises(ContractError, match="was not started"):
        pipeline.finish("plan")


def test_the_background_program_is_one_graph_per_layer_group_and_the_urgent_one_a_single_graph():
    device = FakeDevice()
    pipeline = make(device, overlap=False)
    pipeline.capture("act", chunk())
    assert device.num_graphs == 1 and pipeline.captured == ("act",)
    launched = device.num_launches
    pipeline.run("act", chunk())
    assert device.num_launches == launched + 1  # upload, three steps and download in one launch
    pipeline.capture("plan", image(0))
    assert device.num_graphs == 1 + 5  # two uploads, three stages; the push looks at its slot and stays outside


def test_a_background_program_can_be_one_graph_when_it_is_asked_for():
    device = FakeDevice()
    pipeline = make(device, overlap=False)
    assert pipeline.capture("plan", image(9), one_graph=True) == "bitwise"
    assert device.num_graphs == 1  # uploads and stages; the push stays outside


def test_a_program_is_done_when_its_stream_has_nothing_left():
    pipeline = make(FakeDevice())
    pipeline.start("plan", image(1))
    assert not pipeline.is_done("plan")
    pipeline.memory.synchronize()
    assert pipeline.is_done("plan")
    pipeline.finish("plan")
    with pytest.raises(ContractError, match="was not started"):
        pipeline.is_done("plan")


def test_capturing_leaves_the_state_as_it_was():
    pipeline = make(FakeDevice())
    episode(pipeline)
    before = pipeline.state("context"), pipeline.state("memory")
    pipeline.capture("plan", image(7, 1))
    np.testing.assert_array_equal(pipeline.state("context"), before[0])
    np.testing.assert_array_equal(pipeline.state("memory"), before[1])


def test_a_capture_that_fails_says_why_and_leaves_single_calls():
    pipeline = make(FakeDevice(forbid=True))
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        pipeline.capture("act", chunk())
    assert pipeline.captured == ()
    np.testing.assert_array_equal(episode(pipeline), truth())


def test_a_graph_that_replays_nothing_new_is_not_accepted():
    device = FakeDevice(stale=True)
    pipeline = make(device)
    pipeline.run("plan", image(1))
    with pytest.raises(CaptureError, match=r"off by .* of its maximum"):
        pipeline.capture("act", {"x": np.array([3, 4], np.float32)})  # right for these inputs, and for no others
    np.testing.assert_array_equal(pipeline.run("act", chunk())["x"], expected_chunk(pipeline.state("context")))


def test_stages_are_observed_one_by_one_also_after_capture():
    pipeline = make(FakeDevice())
    pipeline.capture("act", chunk())
    seen, launched = [], pipeline.memory.num_launches
    pipeline.on_stage = lambda name, nanoseconds: seen.append((name, nanoseconds >= 0))
    pipeline.run("plan", image(1))
    assert pipeline.memory.num_launches == launched  # it was not captured, so its calls are what is observed
    answer = pipeline.run("act", chunk())["x"]
    assert seen == [(name, True) for name in ("look", "low", "high", "push memory", "step", "step", "step")]
    np.testing.assert_array_equal(answer, expected_chunk(pipeline.state("context")))
    assert pipeline.memory.num_launches == launched + 3  # each step is a graph of its own: what is timed is what runs


def test_a_value_that_was_frozen_while_capturing_is_seen_also_where_inputs_are_constant():
    class Frozen(DeviceEngine):
        """Reads one input on the host, as `.item()` does: whatever it was while capturing stays in the graph."""

        def bind(self, inputs, outputs):
            def issue():
                frozen = np.where(inputs["mask"], 0, inputs["x"])
                is_captured = self.device.recording is not None

                def work():
                    now = np.where(inputs["mask"], 0, inputs["x"])
                    np.copyto(outputs["y"], frozen if is_captured else now)

                self.device.issue(work)

            return issue

    device = FakeDevice()
    stage = Stage("masked", (spec("x", 2), spec("mask", 2, dtype="bool")), (spec("y", 2),), COST)
    program = Program("act", stage.inputs, ("y",), (Call("masked", {"x": "x", "mask": "mask"}, {"y": "y"}),))
    pipeline = Pipeline(Programs((), {"act": program}), {"masked": stage}, {"masked": Frozen(stage, None, device)}, device)
    with pytest.raises(CaptureError, match="off by"):
        pipeline.capture("act", {"x": np.ones(2, np.float32), "mask": np.zeros(2, np.bool_)})


def test_rows_outside_a_state_and_rows_of_something_else_are_refused():
    stages = {name: Stage(name, tuple(ins), tuple(outs), COST) for name, ins, outs, _ in STAGES}

    def check(target):
        calls = (PLAN.setup[0], Call("low", PLAN.setup[1].inputs, {"h": "h", "kv": target}), *PLAN.setup[2:])
        Programs(PROGRAMS.states, {"plan": Program("plan", PLAN.inputs, (), calls)}, {}).check(stages)

    check("context[0:2]")
    with pytest.raises(ContractError, match="buffer 'context\\[3:5\\]' of None"):
        check("context[3:5]")
    with pytest.raises(ContractError, match="only states are written by rows"):
        check("scratch[0:2]")


def test_torch_memory_holds_bfloat16_states_and_rounds_half_to_even():
    kv = TensorSpec("kv", (3,), "bfloat16")
    stage = Stage("keep", (spec("x", 3),), (kv,), COST, lambda x: (x.bfloat16(),))
    back = Stage("back", (kv,), (spec("y", 3),), COST, lambda kv: (kv.float(),))
    programs = Programs(
        (State(kv, "plan"),),
        {
            "plan": Program("plan", (spec("x", 3),), (), (Call("keep", {"x": "x"}, {"kv": "kv"}),)),
            "act": Program("act", (), ("y",), (Call("back", {"kv": "kv"}, {"y": "y"}),)),
        },
    )
    stages = {"keep": stage, "back": back}
    memory = TorchMemory("cpu")
    pipeline = Pipeline(programs, stages, {name: TorchEngine(s) for name, s in stages.items()}, memory)
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)  # the last two lie half-way between bfloat16 numbers
    pipeline.run("plan", {"x": x})
    expected = np.array([1.0, 1.0, 1 + 2**-6], np.float32)
    np.testing.assert_array_equal(pipeline.run("act", {})["y"], expected)
    np.testing.assert_array_equal(pipeline.state("kv"), expected)
    pipeline.set_state("kv", 2 * x)
    np.testing.assert_array_equal(pipeline.state("kv"), 2 * expected)
    with pytest.raises(ContractError, match="Host buffers cannot hold 'kv'"):
        Pipeline(programs, stages, {name: TorchEngine(s) for name, s in stages.items()})
    with pytest.raises(CaptureError, match="CPU device"):
        memory.capture([], None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_same_truths_hold():
    functions = {
        "look": lambda image: (image + 1,),
        "low": lambda seen, memory: (seen * 2, torch.stack([seen, memory.sum((0, 1))])),
        "high": lambda h: (torch.stack([h, -h]),),
        "step": lambda x, context, rate: (x * rate + context.sum(0),),
    }
    stages = {name: Stage(name, tuple(ins), tuple(outs), COST, functions[name]) for name, ins, outs, _ in STAGES}
    engines = {name: TorchEngine(stage) for name, stage in stages.items()}
    pipeline = Pipeline(PROGRAMS, stages, engines, TorchMemory("cuda"), overlap=True)
    pipeline.capture("plan", image(9))
    pipeline.capture("act", chunk(9))
    np.testing.assert_allclose(episode(pipeline), truth(), rtol=1e-6)

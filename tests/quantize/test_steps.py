"""One activation scale per solver step: a row computes what a layer with that one scale would; wrong tables are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Loop, Program, Programs
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.quantize.layers import Scales, as_float, find_layers, quantized, quantized_layers, with_layers
from edgewam.quantize.record import loop_rows
from edgewam.quantize.steps import SCALE_ROW, SCALE_ROWS, with_ignored_rows, with_scale_rows, with_scale_tables
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.pipeline import Pipeline

STEPS = 3
SCALES = {"up": [0.02, 0.05, 0.3], "down": [0.004, 0.01, 0.05]}
# The bias is added to the scaled product instead of inside it: one more float32 rounding.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BF16_ROUNDING = 2.0**-8  # of the largest output: one rounding to 8 bits


class Net(nn.Module):
    """x [4, 32], gain [1] -> x [4, 32]; what its layers see grows with the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 48)
        self.down = nn.Linear(48, 32, bias=False)

    def forward(self, x, gain):
        """See the class."""
        x = x * gain
        dtype = self.up.weight.dtype
        return (self.down(torch.tanh(self.up(x.to(dtype)).float()).to(dtype)).float(),)


def stage_and_programs(dtype=torch.float32):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net().to(dtype).eval().requires_grad_(False)
    specs = TensorSpec("x", (4, 32)), TensorSpec("gain", (1,))
    stage = Stage("net", specs, (TensorSpec("x_next", (4, 32)),), Cost(9000, 1, 4, 1024), net)
    loop = Loop((Call("net", {"x": "x", "gain": "gain"}, {"x_next": "x"}),), {"gain": "gains"}, STEPS)
    start = Stage("start", (TensorSpec("noise", (4, 32)),), (TensorSpec("x", (4, 32)),), Cost(0, 0, 4, 1024), lambda n: (n + 0,))
    program = Program(
        "act", (TensorSpec("noise", (4, 32)),), ("x",), setup=(Call("start", {"noise": "noise"}, {"x": "x"}),), loop=loop
    )
    gains = np.array([[1.0], [2.0], [8.0]], np.float32)
    return {"start": start, "net": stage}, Programs((), {"act": program}, {"gains": gains})


def layers_with(stages, kind, scales, **fields):
    found = find_layers(stages)
    return {
        ("net", path): quantized(found["net", path], Scales(kind, torch.tensor(value), **fields))
        for path, value in scales.items()
    }


def call(stage, *inputs):
    with torch.inference_mode():
        return stage.function(*inputs)[0]


X, GAIN = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)), torch.ones(1)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("smooth", [None, torch.linspace(0.5, 2.0, 32)])
def test_each_row_computes_what_one_static_scale_would(kind, smooth):
    stages, _ = stage_and_programs()
    scales = {"up": SCALES["up"]} if smooth is not None else SCALES
    stepped = with_scale_rows(with_layers(stages, layers_with(stages, kind, scales, smooth=smooth)))["net"]
    rows = []
    for step in range(STEPS):
        one = {path: values[step] for path, values in scales.items()}
        static = with_layers(stages, layers_with(stages, kind, one, smooth=smooth))["net"]
        rows.append(call(stepped, X, GAIN, torch.tensor(list(one.values()))))
        if smooth is None:  # dividing first and smoothing then may round a value on the border the other way
            torch.testing.assert_close(rows[-1], call(static, X, GAIN), **CLOSE)
        assert (rows[-1] - call(static, X, GAIN)).norm() < 0.01 * rows[-1].norm()
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2])


def test_names_and_inputs_stay_and_the_row_comes_last():
    stages, _ = stage_and_programs()
    made = with_scale_rows(with_layers(stages, layers_with(stages, "fp8", SCALES)))
    assert set(quantized_layers(made["net"])) == {"up", "down"} and made["start"] is stages["start"]
    assert [spec.name for spec in made["net"].inputs] == ["x", "gain", SCALE_ROW]
    assert made["net"].inputs[-1] == TensorSpec(SCALE_ROW, (2,))
    assert made["net"].cost.io_bytes == stages["net"].cost.io_bytes + 8
    assert [spec.name for spec in stages["net"].inputs] == ["x", "gain"] and not quantized_layers(stages["net"])
    assert with_scale_rows(stages) == stages  # nothing to do


def test_a_program_feeds_every_step_its_own_scales():
    stages, programs = stage_and_programs()
    made = with_scale_rows(with_layers(stages, layers_with(stages, "int8", SCALES)))
    declared = with_scale_tables(programs, made)
    np.testing.assert_array_equal(declared.constants[SCALE_ROWS], np.array(list(SCALES.values()), np.float32).T)
    assert SCALE_ROWS not in programs.constants
    pipeline = Pipeline(declared, made, {name: TorchEngine(stage) for name, stage in made.items()})
    found = pipeline.run("act", {"noise": X.numpy()})["x"]
    expected = X
    for step in range(STEPS):
        static = with_layers(stages, layers_with(stages, "int8", {p: v[step] for p, v in SCALES.items()}))["net"]
        expected = call(static, expected, torch.from_numpy(programs.constants["gains"][step]))
    # a value on the border between two codes may fall to either side and is carried through the steps
    assert np.linalg.norm(found - expected.numpy()) < 0.02 * np.linalg.norm(expected.numpy())


def test_a_table_of_another_number_of_steps_is_refused():
    stages, programs = stage_and_programs()
    made = with_scale_rows(with_layers(stages, layers_with(stages, "fp8", {p: v[:2] for p, v in SCALES.items()})))
    with pytest.raises(ContractError, match="tables of 3 steps, but stage 'net' has scales for 2"):
        with_scale_tables(programs, made)


def test_a_stage_outside_the_loop_has_no_step():
    stages, programs = stage_and_programs()
    made = with_scale_rows(with_layers(stages, layers_with(stages, "fp8", SCALES)))
    outside = replace(programs.programs["act"], finish=programs.programs["act"].loop.calls)
    with pytest.raises(ContractError, match="calls it outside its loop"):
        with_scale_tables(replace(programs, programs={"act": outside}), made)


def test_a_layer_with_scales_per_step_does_not_run_without_its_row():
    stages, _ = stage_and_programs()
    plain = with_layers(stages, layers_with(stages, "fp8", SCALES))["net"]
    with pytest.raises(ContractError, match="its stage has no 'scale_row'"):
        call(plain, X, GAIN)


def test_formats_that_measure_at_run_time_have_no_scales_per_step():
    stages, _ = stage_and_programs()
    with pytest.raises(ContractError, match="Scales per step exist for linear layers with static scales only"):
        layers_with(stages, "int8_dynamic", SCALES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_stage_follows_its_row(dtype):
    stages, _ = stage_and_programs(dtype)
    made = with_scale_rows(with_layers(stages, layers_with(stages, "fp8", SCALES)))["net"]
    row = torch.tensor([0.02, 0.004])
    program = torch.export.export(made.function, (X, GAIN, row), strict=False).module()
    for step in range(STEPS):
        row = torch.tensor([values[step] for values in SCALES.values()])
        torch.testing.assert_close(program(X, GAIN, row)[0], call(made, X, GAIN, row), rtol=0, atol=1e-6)


def test_exporters_get_the_product_between_division_and_bias():
    stages, _ = stage_and_programs()
    made = with_scale_rows(with_layers(stages, layers_with(stages, "int8", SCALES)))["net"]
    plain = as_float(made)
    up = plain.function.up
    row = torch.tensor([0.25, 0.25])
    exact, found = call(stages["net"], X, GAIN), call(plain, X, GAIN, row)  # as an exporter calls it
    assert (found - exact).norm() < 0.02 * exact.norm() and not quantized_layers(plain)["up"]._buffers
    # inputs that are codes already lose nothing to rounding, so that both must give the same
    codes = torch.arange(-64, 64, dtype=torch.float32).reshape(4, 32) * 0.25
    for stage in (made, plain):
        stage.function.row.value = row
    torch.testing.assert_close(up(codes), made.function.up(codes), rtol=0, atol=0)
    assert not torch.equal(up(codes + 0.1), made.function.up(codes + 0.1))


def test_placeholders_keep_the_shape_and_none_of_the_memory():
    stages, _ = stage_and_programs(torch.bfloat16)
    made = with_layers(stages, layers_with(stages, "fp8", {"up": 0.02}))["net"]
    weight = as_float(made, placeholders=True).function.up.weight
    assert weight.shape == (48, 32) and weight.untyped_storage().nbytes() == 4 and not weight.any()
    assert quantized_layers(made)["up"].weight.any()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_in_a_half_stage_rounds_once_to_its_dtype(kind, dtype):
    wide, half = (stage_and_programs(d)[0] for d in (torch.float32, dtype))
    layer = find_layers(half)["net", "up"]
    for scale in (torch.tensor(0.02), torch.tensor([0.02, 0.5])):
        made = quantized(layer, Scales(kind, scale))
        made.row.value = torch.tensor([0.02])
        reference = quantized(find_layers(wide)["net", "up"], Scales(kind, torch.tensor(0.02)), made.codes, made.weight_scale)
        reference.bias = nn.Parameter(layer.bias.float(), requires_grad=False)
        x = X.to(dtype)
        assert made(x).dtype == made(x.float()).dtype == dtype and torch.equal(made(x), made(x.float()))
        expected = reference(x.float())
        assert (made(x).float() - expected).abs().max() <= BF16_ROUNDING * expected.abs().max()


def test_unquantised_partners_ignore_the_row():
    stages, programs = stage_and_programs()
    made = with_scale_rows(with_layers(stages, layers_with(stages, "int8", SCALES)))
    declared = with_scale_tables(programs, made)
    partners, shared = with_ignored_rows(stages, programs, made, declared.constants)
    assert partners["net"].inputs == made["net"].inputs and partners["start"] is stages["start"]
    assert torch.equal(call(partners["net"], X, GAIN, torch.zeros(2)), call(stages["net"], X, GAIN))
    shared.check(partners)
    assert with_ignored_rows(stages, programs, stages, {}) == (stages, programs)
    # a bundle may be judged against the quantised policy itself, which reads the row already
    assert with_ignored_rows(made, declared, made, declared.constants) == (made, declared)


def test_two_stages_with_scales_per_step_are_refused():
    stages, programs = stage_and_programs()
    made = with_scale_rows(with_layers(stages, layers_with(stages, "int8", SCALES)))["net"]
    with pytest.raises(ContractError, match="stages net, other all have scales per step"):
        with_scale_tables(programs, {"net": made, "other": replace(made, name="other")})


def test_recorded_calls_are_recognised_by_the_row_that_fed_them():
    stages, programs = stage_and_programs()
    gains = torch.from_numpy(programs.constants["gains"])
    calls = [(X * k, gains[step].clone()) for k, step in ((1, 2), (2, 0), (3, 0), (4, 1))]
    assert loop_rows(programs, stages["net"], calls) == [2, 0, 0, 1]
    assert loop_rows(programs, stages["start"], [(X,)]) == []
    assert loop_rows(programs, stages["net"], [(X, torch.tensor([5.0]))]) == []  # fed by nothing of this table

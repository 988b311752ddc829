"""Recipes that the kernel jobs measure: formats change what the bytes are and not what is computed, random data are of use."""

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra train")

import torch

from benchmarks.gpu.fused_engines import KeptEngine, ReferenceEngine
from benchmarks.gpu.kernel_formats import FORMATS, in_format, input_ranges, is_packable, product_input
from benchmarks.gpu.kernel_recipes import drawn, empty, expected, lowered_stages, memory_bytes, meta_stages, operands
from benchmarks.gpu.random_policy import random_policy
from edgewam.compile.rewrites import rewrite
from edgewam.core.observation import Normalizer
from edgewam.kernels.call import Call
from edgewam.models import aha_wam
from edgewam.models.wan_vae_image import image_encoder
from edgewam.runtime.backends.eager import TorchEngine

torch.set_num_threads(1)
NAMES = ("denoise", "router", "planner", "state")
# Cosine to the plain stage: 2 random layers; 3 bits of mantissa and 8 bits of range are a few percent off, 4 bits tens
LEAST_COSINE = {"bf16": 1 - 1e-6, "fp8_weights": 0.995, "fp8": 0.99, "int8": 0.999, "int4_weights": 0.9}


@pytest.fixture(scope="module")
def stages():
    model, vae = random_policy("tiny", torch.float32, "cpu", seed=0)
    config = model.config
    unit = [Normalizer(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (config.proprio_dim, config.action_dim)]
    return rewrite(aha_wam.stages(model, image_encoder(vae), *unit))


@pytest.fixture(scope="module")
def lowered(stages):
    found, refused = lowered_stages({name: stages[name] for name in NAMES})
    assert not refused
    return found


def real_inputs(stage):
    generator = torch.Generator().manual_seed(1)
    made = {spec.name: empty(spec, "cpu") for spec in stage.inputs}
    for tensor in made.values():
        if tensor.dtype == torch.bool:
            tensor.zero_()
        else:
            tensor.normal_(generator=generator)
    return made


def outputs_of(engine, stage, inputs):
    outputs = {spec.name: empty(spec, "cpu") for spec in stage.outputs}
    engine.bind(inputs, outputs)()
    return outputs


def cosine(a, b):
    return min(float(torch.nn.functional.cosine_similarity(a[n].flatten(), b[n].flatten(), dim=0)) for n in a)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_stage_in_every_format_is_the_stage(stages, lowered, name, format):
    inputs = real_inputs(stages[name])
    plain = outputs_of(TorchEngine(stages[name]), stages[name], inputs)
    kind = FORMATS[format]
    packed = in_format(lowered[name], format, input_ranges(lowered[name], inputs) if kind and kind.activations else None)
    assert cosine(plain, outputs_of(ReferenceEngine(packed, "cpu"), stages[name], inputs)) > LEAST_COSINE[format]
    changed = [call for call in packed.ops if "weight_scale" in call.operands]
    assert bool(changed) == (kind is not None)
    assert {"input_scale" in call.operands for call in changed} <= {bool(kind and kind.activations and name != "state")}


def test_packed_weights_are_as_small_as_their_format(lowered):
    plain = sum(
        w.numel()
        for c in lowered["denoise"].ops
        if is_packable(lowered["denoise"], c)
        for w in [weight_of(lowered["denoise"], c)]
    )
    for format, size in (("fp8_weights", 1.0), ("int4_weights", 0.5)):
        packed = in_format(lowered["denoise"], format)
        found = sum(
            w.numel() * w.element_size() for c in packed.ops if "weight_scale" in c.operands for w in [weight_of(packed, c)]
        )
        assert found == size * plain


def weight_of(stage, call):
    return stage.weights[stage.base(call.operands["weight"])]


def test_the_range_of_a_product_is_what_it_reads():
    x = torch.tensor([[1.0, 3.0], [2.0, -2.0]])
    call = Call("linear", {}, {"norm": True})
    rows = {
        "scale": torch.tensor([2.0, 1.0]),
        "shift": torch.tensor([0.0, 1.0]),
        "clean_scale": torch.zeros(2),
        "clean_shift": torch.full((2,), 9.0),
    }
    found = product_input(call, {"x": x, **rows})
    assert found.shape == (2, 2, 2) and found.abs().amax() == 9.0
    torch.testing.assert_close(found[0], torch.tensor([[-2.0, 2.0], [2.0, 0.0]]), atol=1e-5, rtol=0)
    assert product_input(Call("linear", {}, {}), {"x": x}).equal(x)


def test_meta_stages_need_no_memory_and_random_ones_fill_it():
    (stage,) = lowered_stages({"denoise": meta_stages("tiny", torch.float32)["denoise"]})[0].values()
    assert all(weight.is_meta for weight in stage.weights.values())
    tensors = drawn(in_format(stage, "fp8"), "cpu")
    call = next(call for call in in_format(stage, "fp8").ops if "weight_scale" in call.operands)
    given = operands(call, tensors)
    assert given["weight"].dtype == torch.float8_e4m3fn and 0 < given["input_scale"] < 1
    assert 0.3 < expected(call, given)["y"].std() < 3  # neither vanishes nor explodes
    attention = next(call for call in stage.ops if call.op == "chunk_attention")
    given = operands(attention, tensors)
    assert (given["squares"] > 0).all() and given["cos"].abs().max() <= 1
    mask = next(tensors[call.operands["mask"]] for call in stage.ops if "mask" in call.operands)
    assert mask.dtype == torch.bool


def test_weights_that_are_there_are_not_drawn_anew(lowered):
    stage = lowered["state"]
    tensors = drawn(stage, "cpu")
    for name, weight in stage.weights.items():
        assert tensors[name].equal(weight)


def test_a_free_slot_of_the_memory_is_part_of_the_data(lowered):
    call = next(call for call in lowered["planner"].ops if call.op == "memory_attention")
    bias = operands(call, drawn(lowered["planner"], "cpu"))["memory_bias"]
    assert bias[-1] == -math.inf and bias[0] == 0


def test_bytes_are_those_of_weights_and_inputs_each_once(lowered):
    stage = lowered["denoise"]
    inputs = {spec.name: spec.size_bytes for spec in stage.stage.inputs}
    weights = sum(w.numel() * w.element_size() for w in stage.weights.values())
    found = memory_bytes(stage, stage.ops)
    assert found == weights + sum(inputs.values())
    one = next(call for call in stage.ops if "residual" in call.operands)
    assert memory_bytes(stage, [one, one]) == memory_bytes(stage, [one]) < found


def test_a_kept_engine_copies_what_it_was_given_only_while_it_records(stages):
    engine, stage = KeptEngine(stages["state"]), stages["state"]
    inputs = real_inputs(stage)
    call = engine.bind(inputs, {spec.name: empty(spec, "cpu") for spec in stage.outputs})
    call()
    engine.is_recording = True
    call()
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    inputs["state"].zero_()
    (seen,) = engine.seen
    assert all(seen[name].equal(before[name]) for name in before)

"""The policy `small` on this processor: whole chunks and refreshes as the policy runs them, and every stage alone.

    python3 -m pytest benchmarks --benchmark-only

Engines run on one thread (see `conftest`), so the figures are steadier, and larger, than those of `benchmarks.chunk`.
"""

import numpy as np
import pytest

from edgewam.cli._shipped import shipped
from edgewam.compile.samples import random_inputs
from edgewam.core import plugins
from edgewam.core.artifacts import read_manifest
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.engine import allocate

STAGES = [entry["stage"]["name"] for entry in read_manifest(shipped("bundle"), kind="bundle", verify=False).config["stages"]]


def run_stage(benchmark, bundle: Bundle, name: str) -> None:
    """Time one bound call of a stage on random inputs."""
    stage = bundle.stages[name]
    inputs, outputs = random_inputs(stage.inputs, seed=0), {spec.name: allocate(spec) for spec in stage.outputs}
    benchmark(bundle.engines[name].bind(inputs, outputs))
    assert all(_holds_numbers(spec, outputs[spec.name]) for spec in stage.outputs)


def _holds_numbers(spec: TensorSpec, array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all()) and bool(np.any(array))


def figure(benchmark, bundle: Bundle, name: str) -> None:
    """Time one of the policy's own figures."""
    benchmark(plugins.load("policy", str(bundle.policy)).timed_calls(bundle)[name])


@pytest.mark.parametrize("stage", STAGES)
def test_float32_stage(benchmark, float32, stage):
    run_stage(benchmark, float32, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_int8_stage(benchmark, int8, stage):
    run_stage(benchmark, int8, stage)


@pytest.mark.parametrize("name", ["L_chunk", "L_prefill"])
def test_float32_figure(benchmark, float32, name):
    figure(benchmark, float32, name)


@pytest.mark.parametrize("name", ["L_chunk", "L_prefill"])
def test_int8_figure(benchmark, int8, name):
    figure(benchmark, int8, name)


def test_looking_at_every_stage_of_a_chunk(benchmark, float32):
    chunk = plugins.load("policy", str(float32.policy)).timed_calls(float32)["L_chunk"]
    seen: list[str] = []
    float32.pipeline.on_stage = lambda name, _: seen.append(name)
    try:
        benchmark(chunk)
    finally:
        float32.pipeline.on_stage = None
    assert {"image_encoder", "router", "denoise"} <= set(seen)

"""Every stage of the small policy exports and runs in ONNX Runtime with the eager result."""

import numpy as np
import pytest
import torch

from edgewam.compile.samples import random_inputs
from edgewam.core import plugins
from edgewam.core.observation import Normalizer
from edgewam.models import aha_wam
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.engine import EngineOptions, run_engine

EXPORT_ATOL = 1e-5  # float32, other summation orders; values of order one

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def small_stages():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = aha_wam.build(aha_wam.small()).requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():  # zero-initialised output layers would hide what is before them
            parameter.normal_(0, 0.05)
    unit = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    return aha_wam.stages(model, image_encoder(WanVae(WanVaeConfig(dim=16, dec_dim=8))), unit, unit)


@pytest.mark.parametrize("name", ["text", "planner", "router", "state", "begin", "denoise", "finish"])
def test_onnxruntime_gives_the_eager_result(small_stages, name, tmp_path):
    stage = small_stages[name]
    build, run = plugins.load("backend_build", "onnxruntime"), plugins.load("backend_run", "onnxruntime")
    engine = run.load(stage, tmp_path, build.build(stage, tmp_path), EngineOptions(1))
    inputs = random_inputs(stage.inputs, seed=5)
    if "memory_bias" in inputs:  # some slots free, as after a reset
        inputs["memory_bias"] = np.where(np.arange(len(inputs["memory_bias"])) < 2, 0, -np.inf).astype(np.float32)
    expected, found = run_engine(stage, TorchEngine(stage), inputs), run_engine(stage, engine, inputs)
    for output, value in expected.items():
        np.testing.assert_allclose(found[output], value, atol=EXPORT_ATOL, rtol=0, err_msg=output)

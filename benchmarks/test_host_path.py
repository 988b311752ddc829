"""What a chunk costs beside the network, on the host: `python3 -m pytest benchmarks --benchmark-only` (pytest-benchmark).

Composition of the camera images, normalisation, and the pipeline's own work per call.
"""

import numpy as np
import pytest

from edgewam.core.observation import Normalizer, compose_images
from tests.bench.fake_policy import make_bundle

SHAPES = {"cam_high": (128, 160, 3), "cam_left_wrist": (64, 80, 3), "cam_right_wrist": (64, 80, 3)}


@pytest.mark.parametrize("scale", [1, 3], ids=["rendered size", "three times as large"])
def test_composing_three_cameras(benchmark, scale):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (h * scale, w * scale, c), dtype=np.uint8) for name, (h, w, c) in SHAPES.items()}
    canvas = benchmark(compose_images, images, 192, 160)
    assert canvas.shape == (192, 160, 3)


def test_normalising_a_state_and_a_chunk(benchmark):
    unit = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    state, chunk = np.ones(14, np.float32), np.ones((16, 14), np.float32)
    benchmark(lambda: (unit.forward(state), unit.backward(chunk)))


@pytest.mark.parametrize("steps", [2, 10])
def test_pipeline_calls_that_compute_nothing(benchmark, steps, monkeypatch):
    monkeypatch.setattr("tests.bench.fake_policy.time.sleep", lambda _: None)
    bundle, x = make_bundle("eager", steps, 0.0), np.zeros(2, np.float32)
    out = benchmark(bundle.pipeline.run, "act", {"x": x})
    np.testing.assert_array_equal(out["x"], np.full(2, steps))

"""Gates 1 and 2 on cases whose answer is known by construction."""

import json

import numpy as np
import pytest

from edgewam.compile.excess_error import FLOOR, ExcessErrorLimits, excess_error
from edgewam.compile.stage_gate import CapturingEngine, compare_stages
from edgewam.core.errors import ContractError, GateError
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.deviation import deviation

SHAPE = (32, 3)
FRAMES = range(40)


def reference(frame, noise):
    """Spread: each action is the frame plus noise, so two noises are sqrt(2) apart."""
    return frame + noise[:16]


def shifted(by):
    return lambda frame, noise: reference(frame, noise) + np.asarray(by)


def test_equal_policies_have_no_excess_error():
    result = excess_error(reference, reference, FRAMES, SHAPE, seed=0)
    assert result.median == result.p99 == 0
    result.require(ExcessErrorLimits(0, 0))


def test_the_ratio_is_the_shift_over_the_spread():
    result = excess_error(reference, shifted(0.5), FRAMES, SHAPE, seed=0)
    assert result.median == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    np.testing.assert_allclose(result.error_rms, 0.5, rtol=1e-6)
    np.testing.assert_allclose(np.median(result.spread_rms), np.sqrt(2), rtol=0.05)
    assert result.num_pairs == 8 and len(result.ratio) == 40


def test_dimensions_are_pooled_over_frames_before_dividing():
    def uneven(frame, noise):  # dimension 1 of every other frame has no spread at all
        actions = reference(frame, noise)
        if frame % 2:
            actions[:, 1] = frame
        return actions

    result = excess_error(uneven, lambda f, n: uneven(f, n) + np.array([0, 0.1, 0]), FRAMES, SHAPE, seed=0)
    assert result.ratio_per_dim[0] == result.ratio_per_dim[2] == 0
    # pooled spread: half of the frames at sqrt(2), half at 0
    assert result.ratio_per_dim[1] == pytest.approx(0.1, rel=0.1)


def test_a_certain_policy_is_measured_against_the_floor():
    result = excess_error(lambda f, n: np.zeros((16, 3)), lambda f, n: np.full((16, 3), 0.001), FRAMES, SHAPE, seed=0)
    assert result.median == pytest.approx(0.001 / FLOOR)
    assert result.to_json()["frames_at_floor"] == 40


def test_the_gate_names_the_worst_dimension_and_both_limits():
    result = excess_error(reference, shifted([0, 0, 1.0]), FRAMES, SHAPE, seed=0)
    with pytest.raises(GateError, match=r"median 0\.4.*limit 0\.1.*worst dimension 2"):
        result.require(ExcessErrorLimits(0.1, 10))
    with pytest.raises(GateError, match="p99"):
        result.require(ExcessErrorLimits(10, 0.1))


def test_the_same_seed_draws_the_same_noise():
    seen = []

    def note(frame, noise):
        seen.append(noise.copy())
        return reference(frame, noise)

    for _ in range(2):
        excess_error(note, reference, range(2), SHAPE, seed=5, num_pairs=2)
    half = len(seen) // 2
    np.testing.assert_array_equal(seen[:half], seen[half:])
    assert np.abs(seen[0] - seen[1]).max() > 0.1 and np.abs(seen[0] - seen[2]).max() > 0.1


def test_values_that_are_not_finite_fail_with_their_frame():
    with pytest.raises(GateError, match="candidate gives 48 values that are not finite at frame 0"):
        excess_error(reference, lambda f, n: np.full((16, 3), np.nan), FRAMES, SHAPE, seed=0)


def test_no_frames_are_refused():
    with pytest.raises(ContractError, match="at least one frame"):
        excess_error(reference, reference, [], SHAPE, seed=0)


def test_the_report_is_json():
    data = excess_error(reference, shifted(0.1), range(3), SHAPE, seed=0).to_json()
    assert json.loads(json.dumps(data, allow_nan=False))["num_frames"] == 3


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ([1.0, 2.0, -4.0], (1.0, 0.0, 0.0, 0)),
        ([1.0, 2.0, -4.4], (0.998, 0.4, 0.1, 0)),
        ([1.0, np.nan, -4.0], (0.0, 1e300, 1e300, 1)),
        ([1.0, np.inf, np.inf], (0.0, 1e300, 1e300, 2)),
    ],
)
def test_deviation_of_known_arrays(array, expected):
    found = deviation(np.array(array), np.array([1.0, 2.0, -4.0]))
    assert (found.max_abs, found.relative, found.num_bad) == pytest.approx(expected[1:])
    assert found.cosine == pytest.approx(expected[0], abs=2e-3)


def test_infinities_of_the_reference_are_no_deviation_but_must_be_kept():
    reference = np.array([0.0, -np.inf, 1.0])
    assert deviation(reference.copy(), reference).within(0)
    assert not deviation(np.array([0.0, -5.0, 1.0]), reference).within(0.1)
    assert deviation(np.full(2, -np.inf), np.full(2, -np.inf)).within(0)


def test_zeros_against_zeros_and_against_something():
    assert deviation(np.zeros(3), np.zeros(3)).within(0)
    assert not deviation(np.full(3, 1e-9), np.zeros(3)).within(1e-3)


class Times:
    """An engine that multiplies by a factor."""

    def __init__(self, factor):
        self.factor = factor

    def bind(self, inputs, outputs):
        def call():
            np.multiply(inputs["x"], np.float32(self.factor), out=outputs["y"])

        return call


def stage(name):
    return Stage(name, (TensorSpec("x", (4,)),), (TensorSpec("y", (4,)),), Cost(0, 0, 1, 32))


def test_the_stage_gate_names_the_first_stage_that_diverges():
    stages = {name: stage(name) for name in ("first", "second", "third")}
    right = {name: Times(2) for name in stages}
    wrong = {"first": Times(2.00001), "second": Times(2.1), "third": Times(np.nan)}
    samples = {name: [{"x": np.arange(4, dtype=np.float32)}] for name in stages}
    report = compare_stages(stages, right, wrong, samples, 1e-4)
    assert report.first_failure == ("second", "y") and not report.to_json()["passed"]
    assert report.outputs["third"]["y"].num_bad == 4
    with pytest.raises(GateError, match="Stage 'second' is the first"):
        report.require()
    compare_stages(stages, right, right, samples, 0.0).require()


def test_a_capturing_engine_keeps_the_first_and_the_latest_inputs():
    engine, x, y = CapturingEngine(Times(2)), np.zeros(4, np.float32), np.zeros(4, np.float32)
    assert engine.samples == []
    call = engine.bind({"x": x}, {"y": y})
    for value in (1, 2, 3):
        x.fill(value)
        call()
    assert [sample["x"][0] for sample in engine.samples] == [1, 3] and y[0] == 6

"""Host rotary tables: exact at large positions."""

import math

import numpy as np
import pytest

from edgewam.core.rope import axis_rope, frame_rope


def test_positions_beyond_any_table_are_exact():
    position, dim, theta = 1_234_567, 8, 10000.0
    cos, sin = axis_rope([position], dim, theta)
    for j in range(dim // 2):
        angle = position * theta ** (-2 * j / dim)
        np.testing.assert_allclose([cos[0, j], sin[0, j]], [math.cos(angle), math.sin(angle)], rtol=0, atol=1e-7)


def test_a_frame_turns_time_row_and_column_in_that_order():
    cos, sin = frame_rope(5, (2, 3), (4, 2, 2), 10000.0)
    assert cos.shape == sin.shape == (6, 4) and cos.dtype == np.float32
    token = 1 * 3 + 2  # row 1, column 2
    angles = [5.0, 5.0 * 10000.0**-0.5, 1.0, 2.0]
    np.testing.assert_allclose(cos[token], np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(sin[token], np.sin(angles), atol=1e-7)


def test_tables_of_any_leading_shape():
    cos, sin = axis_rope(np.arange(6).reshape(2, 3), 4, 100.0)
    assert cos.shape == sin.shape == (2, 3, 2)
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-6)


def test_host_tables_equal_those_of_the_models():
    torch = pytest.importorskip("torch", reason="needs torch")
    from edgewam.models.rope import axis_angles, rope, video_angles

    for frame in (0, 7, 130_001):
        expected = rope(video_angles(torch.tensor([frame]), (3, 2), (8, 6, 6), 10000.0))
        for ours, theirs in zip(frame_rope(frame, (3, 2), (8, 6, 6), 10000.0), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-7)
    expected = rope(axis_angles(torch.arange(64, 80), 20, 10000.0))
    for ours, theirs in zip(axis_rope(np.arange(64, 80), 20, 10000.0), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-7)

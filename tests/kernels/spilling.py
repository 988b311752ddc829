"""A Triton kernel that keeps as many numbers as it is told to."""

import triton
import triton.language as tl


@triton.jit
def centre(x, SIZE: tl.constexpr):
    """Take the mean off: every number is there before and after the sum."""
    places = x + tl.arange(0, SIZE)
    value = tl.load(places)
    tl.store(places, value - tl.sum(value) / SIZE)

"""A Triton source that is no part of edgewam: what interpreted and compiled kernels have to share a process for."""

import triton
import triton.language as tl

FACTOR = tl.constexpr(2)


@triton.jit
def scaled(x):
    """Every second word of it is one that the interpreter has to exchange."""
    return x * FACTOR


@triton.jit
def row_sums(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    """y [rows] = 2 * sums of x [rows, columns]."""
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tl.cdiv(columns, BLOCK)):
        at = start * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
    tl.store(y_ptr + row, scaled(tl.sum(total, axis=0)))

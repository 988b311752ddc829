"""The state's key and value of every layer, normed, as the last row behind those of the text, which are copied."""

import triton
import triton.language as tl


@triton.jit
def state_write(
    raw,
    squares,
    gains,
    text,
    y,
    COPIED: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    GAINS_ROW: tl.constexpr,
    TEXT_LAYER: tl.constexpr,
    TEXT_PAIR: tl.constexpr,
    Y_LAYER: tl.constexpr,
    Y_PAIR: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (blocks of the COPIED elements in front of the own row, then blocks of that row; layers, key and value of each)."""
    pair = tl.program_id(1)
    layer = pair // 2
    kind = pair % 2
    block = tl.program_id(0)
    target = y + layer * Y_LAYER + kind * Y_PAIR
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    COPY_BLOCKS: tl.constexpr = (COPIED + BLOCK - 1) // BLOCK
    if block < COPY_BLOCKS:
        here = block * BLOCK + tl.arange(0, BLOCK)
        copied = tl.load(text + layer * TEXT_LAYER + kind * TEXT_PAIR + here, mask=here < COPIED)
        tl.store(target + here, copied, mask=here < COPIED)
    else:
        at = (block - COPY_BLOCKS) * BLOCK + tl.arange(0, BLOCK)
        groups = tl.arange(0, GROUP_TILE)
        parts = tl.load(squares + pair * GROUPS + groups, mask=groups < GROUPS, other=0.0)
        spread = 1.0 / tl.sqrt(tl.sum(parts, 0) / WIDTH + EPS)
        gain = tl.load(gains + layer * GAINS_ROW + at, mask=at < WIDTH, other=0.0) * spread
        x = tl.load(raw + pair * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        x = tl.where(kind == 0, x * gain, x)
        tl.store(target + COPIED + at, x.to(y.dtype.element_ty), mask=at < WIDTH)

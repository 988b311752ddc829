"""Kernels that norm queries and keys over all heads, multiply them with gains and turn them: the chunk's, the planner's.

Pairs of channels lie side by side, so a tile [rows, K] is split into its even and odd channels in registers and joined again.
What a kernel reads before `gdc_wait` was written before the kernel directly in front of it; see edgewam/kernels/launch.py.
"""

import triton
import triton.language as tl


@triton.jit
def chunk_attention(
    qkv,
    squares,
    gains,
    cos,
    sin,
    routed,
    y,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    QKV_ROW: tl.constexpr,
    SQUARES_ROW: tl.constexpr,
    GAINS_ROW: tl.constexpr,
    COS_ROW: tl.constexpr,
    SIN_ROW: tl.constexpr,
    ROUTED_PAIR: tl.constexpr,
    ROUTED_ROW: tl.constexpr,
    Y_ROW: tl.constexpr,
    ROW_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    OWN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    FLOAT32: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (heads, row tiles).  Routed keys come first: their first tile is on its way before the projection has ended."""
    head = tl.program_id(0) * HEAD
    rows = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    columns = tl.arange(0, HEAD_TILE)
    keys = tl.arange(0, KEY_TILE)
    k = _tile(routed + head, keys, columns, TOKENS, HEAD, ROUTED_ROW, FLOAT32)
    v = _tile(routed + ROUTED_PAIR + head, keys, columns, TOKENS, HEAD, ROUTED_ROW, FLOAT32)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    spread = _spread(squares, rows, ROWS, WIDTH, GROUPS, EPS, SQUARES_ROW, GROUP_TILE)
    q = _tile(qkv + head, rows, columns, ROWS, HEAD, QKV_ROW, True)
    q = _turned(q, spread, gains + head, cos, sin, rows, ROWS, HEAD, COS_ROW, SIN_ROW, ROW_TILE, HEAD_TILE)
    q = q.to(k.dtype)
    top = tl.full([ROW_TILE], -3.0e38, tl.float32)  # finite, so that a tile without any key leaves no NaN
    total = tl.zeros([ROW_TILE], tl.float32)
    mixed = tl.zeros([ROW_TILE, HEAD_TILE], tl.float32)

    for start in tl.static_range(0, TOKENS, KEY_TILE):
        if start > 0:
            k = _tile(routed + head, start + keys, columns, TOKENS, HEAD, ROUTED_ROW, FLOAT32)
            v = _tile(routed + ROUTED_PAIR + head, start + keys, columns, TOKENS, HEAD, ROUTED_ROW, FLOAT32)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee")
        logits = tl.where((start + keys < TOKENS)[None, :], logits, float("-inf"))
        top, total, mixed = _mixed_in(logits, v, top, total, mixed)

    for start in tl.static_range(0, ROWS, OWN_TILE):
        own = start + tl.arange(0, OWN_TILE)
        spread = _spread(squares + GROUPS, own, ROWS, WIDTH, GROUPS, EPS, SQUARES_ROW, GROUP_TILE)
        own_k = _tile(qkv + WIDTH + head, own, columns, ROWS, HEAD, QKV_ROW, True)
        own_k = _turned(own_k, spread, gains + GAINS_ROW + head, cos, sin, own, ROWS, HEAD, COS_ROW, SIN_ROW, OWN_TILE, HEAD_TILE)
        own_v = _tile(qkv + 2 * WIDTH + head, own, columns, ROWS, HEAD, QKV_ROW, FLOAT32)
        logits = tl.dot(q, tl.trans(own_k.to(q.dtype)), input_precision="ieee")
        logits = tl.where((own < ROWS)[None, :], logits, float("-inf"))
        top, total, mixed = _mixed_in(logits, own_v, top, total, mixed)

    inside = (rows < ROWS)[:, None] & (columns < HEAD)[None, :]
    result = (mixed / total[:, None]).to(y.dtype.element_ty)
    tl.store(y + head + rows[:, None] * Y_ROW + columns[None, :], result, mask=inside)


@triton.jit
def memory_attention(
    qkv,
    squares,
    gains,
    cos,
    sin,
    memory,
    memory_bias,
    context,
    y,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    QKV_ROW: tl.constexpr,
    SQUARES_ROW: tl.constexpr,
    GAINS_ROW: tl.constexpr,
    COS_ROW: tl.constexpr,
    SIN_ROW: tl.constexpr,
    MEMORY_SLOT: tl.constexpr,
    MEMORY_PAIR: tl.constexpr,
    MEMORY_ROW: tl.constexpr,
    CONTEXT_PAIR: tl.constexpr,
    CONTEXT_ROW: tl.constexpr,
    Y_ROW: tl.constexpr,
    ROW_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    OWN_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    FLOAT32: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (heads, row tiles).  Every block turns all own keys of its head, the first of a head writes them down.

    Own keys come first, so there is always one; a slot whose bias is -inf is not read.
    """
    head = tl.program_id(0) * HEAD
    rows = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    columns = tl.arange(0, HEAD_TILE)
    keys = tl.arange(0, KEY_TILE)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    spread = _spread(squares, rows, ROWS, WIDTH, GROUPS, EPS, SQUARES_ROW, GROUP_TILE)
    q = _tile(qkv + head, rows, columns, ROWS, HEAD, QKV_ROW, True)
    q = _turned(q, spread, gains + head, cos, sin, rows, ROWS, HEAD, COS_ROW, SIN_ROW, ROW_TILE, HEAD_TILE)
    if not FLOAT32:
        q = q.to(context.dtype.element_ty)
    written = tl.where(tl.program_id(1) == 0, ROWS, 0)
    top = tl.full([ROW_TILE], -3.0e38, tl.float32)  # finite, so that a tile without any key leaves no NaN
    total = tl.zeros([ROW_TILE], tl.float32)
    mixed = tl.zeros([ROW_TILE, HEAD_TILE], tl.float32)

    for start in range(0, ROWS, OWN_TILE):
        own = start + tl.arange(0, OWN_TILE)
        own_spread = _spread(squares + GROUPS, own, ROWS, WIDTH, GROUPS, EPS, SQUARES_ROW, GROUP_TILE)
        own_k = _tile(qkv + WIDTH + head, own, columns, ROWS, HEAD, QKV_ROW, True)
        gain = gains + GAINS_ROW + head
        own_k = _turned(own_k, own_spread, gain, cos, sin, own, ROWS, HEAD, COS_ROW, SIN_ROW, OWN_TILE, HEAD_TILE)
        own_k = own_k.to(q.dtype)
        own_v = _tile(qkv + 2 * WIDTH + head, own, columns, ROWS, HEAD, QKV_ROW, FLOAT32)
        place = context + head + own[:, None] * CONTEXT_ROW + columns[None, :]
        inside = (own < written)[:, None] & (columns < HEAD)[None, :]
        tl.store(place, own_k.to(context.dtype.element_ty), mask=inside)
        tl.store(place + CONTEXT_PAIR, own_v.to(context.dtype.element_ty), mask=inside)
        logits = tl.dot(q, tl.trans(own_k), input_precision="ieee")
        logits = tl.where((own < ROWS)[None, :], logits, float("-inf"))
        top, total, mixed = _mixed_in(logits, own_v, top, total, mixed)
    for slot in range(0, SLOTS):
        extra = tl.load(memory_bias + slot)
        if extra > float("-inf"):
            frame = memory + slot * MEMORY_SLOT + head
            for start in range(0, TOKENS, KEY_TILE):
                k = _tile(frame, start + keys, columns, TOKENS, HEAD, MEMORY_ROW, FLOAT32)
                v = _tile(frame + MEMORY_PAIR, start + keys, columns, TOKENS, HEAD, MEMORY_ROW, FLOAT32)
                logits = tl.dot(q, tl.trans(k), input_precision="ieee") + extra
                logits = tl.where((start + keys < TOKENS)[None, :], logits, float("-inf"))
                top, total, mixed = _mixed_in(logits, v, top, total, mixed)

    inside = (rows < ROWS)[:, None] & (columns < HEAD)[None, :]
    result = (mixed / total[:, None]).to(y.dtype.element_ty)
    tl.store(y + head + rows[:, None] * Y_ROW + columns[None, :], result, mask=inside)


@triton.jit
def context_write(
    kv,
    squares,
    gain,
    cos,
    sin,
    context,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    KV_ROW: tl.constexpr,
    SQUARES_ROW: tl.constexpr,
    COS_ROW: tl.constexpr,
    SIN_ROW: tl.constexpr,
    CONTEXT_PAIR: tl.constexpr,
    CONTEXT_ROW: tl.constexpr,
    ROW_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (heads, row tiles)."""
    head = tl.program_id(0) * HEAD
    rows = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    columns = tl.arange(0, HEAD_TILE)
    inside = (rows < ROWS)[:, None] & (columns < HEAD)[None, :]
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    k = _tile(kv + head, rows, columns, ROWS, HEAD, KV_ROW, True)
    v = _tile(kv + WIDTH + head, rows, columns, ROWS, HEAD, KV_ROW, True)
    spread = _spread(squares, rows, ROWS, WIDTH, GROUPS, EPS, SQUARES_ROW, GROUP_TILE)
    k = _turned(k, spread, gain + head, cos, sin, rows, ROWS, HEAD, COS_ROW, SIN_ROW, ROW_TILE, HEAD_TILE)
    place = context + head + rows[:, None] * CONTEXT_ROW + columns[None, :]
    tl.store(place, k.to(context.dtype.element_ty), mask=inside)
    tl.store(place + CONTEXT_PAIR, v.to(context.dtype.element_ty), mask=inside)


@triton.jit
def _tile(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, FLOAT32: tl.constexpr):
    """Rows and columns of a matrix [ROWS, COLUMNS]; zero outside of it."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    tile = tl.load(pointer + rows[:, None] * STRIDE + columns[None, :], mask=inside, other=0.0)
    if FLOAT32:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _spread(
    squares,
    rows,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    STRIDE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
):
    """One over the RMS of every row, from sums of squares of GROUPS parts of it."""
    parts = _tile(squares, rows, tl.arange(0, GROUP_TILE), ROWS, GROUPS, STRIDE, True)
    return 1.0 / tl.sqrt(tl.sum(parts, 1) / WIDTH + EPS)


@triton.jit
def _turned(
    x,
    spread,
    gain,
    cos,
    sin,
    rows,
    ROWS: tl.constexpr,
    HEAD: tl.constexpr,
    COS_ROW: tl.constexpr,
    SIN_ROW: tl.constexpr,
    ROW_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
):
    """x [ROW_TILE, HEAD_TILE] times spread and gain, every pair of channels turned by its angle."""
    columns = tl.arange(0, HEAD_TILE)
    x = x * spread[:, None] * tl.load(gain + columns, mask=columns < HEAD, other=0.0)[None, :]
    a, b = tl.split(tl.reshape(x, [ROW_TILE, HEAD_TILE // 2, 2]))
    pairs = tl.arange(0, HEAD_TILE // 2)
    c = _tile(cos, rows, pairs, ROWS, HEAD // 2, COS_ROW, True)
    s = _tile(sin, rows, pairs, ROWS, HEAD // 2, SIN_ROW, True)
    return tl.reshape(tl.join(a * c - b * s, b * c + a * s), [ROW_TILE, HEAD_TILE])


@triton.jit
def _mixed_in(logits, v, top, total, mixed):
    """A tile of keys more in a running softmax: logits [R, T], values v [T, K]; maxima, sums [R] and weighted sums [R, K]."""
    peak = tl.maximum(top, tl.max(logits, 1))
    fade = tl.exp(top - peak)
    weights = tl.exp(logits - peak[:, None])
    total = total * fade + tl.sum(weights, 1)
    mixed = mixed * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return peak, total, mixed

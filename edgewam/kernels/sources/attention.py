"""Attention over keys and values that are ready: text and the router's two directions, with a running softmax.

A tile of keys joins as logits in float32; -inf means that there is no key, and leaves no NaN whatever is masked.
What a kernel reads before `gdc_wait` was written before the kernel directly in front of it; see edgewam/kernels/launch.py.
"""

import triton
import triton.language as tl


@triton.jit
def text_attention(
    q,
    squares,
    kv,
    bias,
    gain,
    y,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    Q_ROW: tl.constexpr,
    SQUARES_ROW: tl.constexpr,
    KV_PAIR: tl.constexpr,
    KV_ROW: tl.constexpr,
    Y_ROW: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    ROW_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    FLOAT32: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (heads, row tiles).  Queries are multiplied as they are: one over their RMS scales the logits."""
    head = tl.program_id(0) * HEAD
    rows = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    columns = tl.arange(0, HEAD_TILE)
    keys = tl.arange(0, KEY_TILE)
    k = _tile(kv + head, keys, columns, KEYS, HEAD, KV_ROW, FLOAT32)
    v = _tile(kv + KV_PAIR + head, keys, columns, KEYS, HEAD, KV_ROW, FLOAT32)
    extra = tl.load(bias + keys, mask=keys < KEYS, other=float("-inf"))
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    x = _tile(q + head, rows, columns, ROWS, HEAD, Q_ROW, HAS_GAIN or FLOAT32)
    if HAS_GAIN:
        x = x * tl.load(gain + head + columns, mask=columns < HEAD, other=0.0)[None, :]
    x = x.to(k.dtype)
    parts = _tile(squares, rows, tl.arange(0, GROUP_TILE), ROWS, GROUPS, SQUARES_ROW, True)
    spread = 1.0 / tl.sqrt(tl.sum(parts, 1) / WIDTH + EPS)
    top = tl.full([ROW_TILE], -3.0e38, tl.float32)  # finite, so that a tile without any key leaves no NaN
    total = tl.zeros([ROW_TILE], tl.float32)
    mixed = tl.zeros([ROW_TILE, HEAD_TILE], tl.float32)
    for start in tl.static_range(0, KEYS, KEY_TILE):
        if start > 0:
            k = _tile(kv + head, start + keys, columns, KEYS, HEAD, KV_ROW, FLOAT32)
            v = _tile(kv + KV_PAIR + head, start + keys, columns, KEYS, HEAD, KV_ROW, FLOAT32)
            extra = tl.load(bias + start + keys, mask=start + keys < KEYS, other=float("-inf"))
        logits = tl.dot(x, tl.trans(k), input_precision="ieee") * spread[:, None] + extra[None, :]
        top, total, mixed = _mixed_in(logits, v, top, total, mixed)
    _write(y + head, mixed / total[:, None], rows, columns, ROWS, HEAD, Y_ROW)


@triton.jit
def router_attention(
    asked,
    context,
    y,
    QUERIES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEAD: tl.constexpr,
    SCALE: tl.constexpr,
    ASKED_LAYER: tl.constexpr,
    ASKED_ROW: tl.constexpr,
    CONTEXT_LAYER: tl.constexpr,
    CONTEXT_PAIR: tl.constexpr,
    CONTEXT_ROW: tl.constexpr,
    Y_LAYER: tl.constexpr,
    Y_ROW: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    FLOAT32: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid (heads, layers).  All queries are one tile: what they found stays in the block and is read by the tokens at once."""
    head = tl.program_id(0) * HEAD
    layer = tl.program_id(1)
    queries = tl.arange(0, QUERY_TILE)
    columns = tl.arange(0, HEAD_TILE)
    keys = tl.arange(0, KEY_TILE)
    place = context + layer * CONTEXT_LAYER + head
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    x = _tile(asked + layer * ASKED_LAYER + head, queries, columns, QUERIES, HEAD, ASKED_ROW, FLOAT32)
    top = tl.full([QUERY_TILE], -3.0e38, tl.float32)
    total = tl.zeros([QUERY_TILE], tl.float32)
    mixed = tl.zeros([QUERY_TILE, HEAD_TILE], tl.float32)
    for start in range(0, TOKENS, KEY_TILE):
        k = _tile(place, start + keys, columns, TOKENS, HEAD, CONTEXT_ROW, FLOAT32)
        v = _tile(place + CONTEXT_PAIR, start + keys, columns, TOKENS, HEAD, CONTEXT_ROW, FLOAT32)
        logits = tl.dot(x, tl.trans(k), input_precision="ieee")
        logits = tl.where((start + keys < TOKENS)[None, :], logits, float("-inf"))
        top, total, mixed = _mixed_in(logits, v, top, total, mixed)
    found = (mixed / total[:, None]).to(x.dtype)

    for start in range(0, TOKENS, KEY_TILE):
        k = _tile(place, start + keys, columns, TOKENS, HEAD, CONTEXT_ROW, FLOAT32)
        logits = tl.dot(k, tl.trans(found), input_precision="ieee") * SCALE
        logits = tl.where((queries < QUERIES)[None, :], logits, float("-inf"))
        weights = tl.exp(logits - tl.max(logits, 1)[:, None])
        back = tl.dot(weights.to(found.dtype), found, input_precision="ieee") / tl.sum(weights, 1)[:, None]
        _write(y + layer * Y_LAYER + head, back, start + keys, columns, TOKENS, HEAD, Y_ROW)


@triton.jit
def _tile(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, FLOAT32: tl.constexpr):
    """Rows and columns of a matrix [ROWS, COLUMNS]; zero outside of it."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    tile = tl.load(pointer + rows[:, None] * STRIDE + columns[None, :], mask=inside, other=0.0)
    if FLOAT32:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _write(pointer, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    """A tile into a matrix [ROWS, COLUMNS], in the matrix's dtype."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    tl.store(pointer + rows[:, None] * STRIDE + columns[None, :], tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _mixed_in(logits, v, top, total, mixed):
    """A tile of keys more in a running softmax: logits [R, T], values v [T, K]; maxima, sums [R] and weighted sums [R, K]."""
    peak = tl.maximum(top, tl.max(logits, 1))
    fade = tl.exp(top - peak)
    weights = tl.exp(logits - peak[:, None])
    total = total * fade + tl.sum(weights, 1)
    mixed = mixed * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return peak, total, mixed

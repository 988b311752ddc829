"""Skinny products with everything around them: y [S, out] = epilogue(prologue(x [S, in]) W^T), W [out, in] in floats or codes.

The weight is the left operand, W [outs, ins] @ X^T [ins, rows]: matrix units of 8-bit numbers want 64 rows on the left and take
16 on the right, and the weight is what is large.  `linear` norms, modulates and rounds its input itself, tile by tile; `prepare`
does it once, for products whose blocks would read more input than weights.
"""

import triton
import triton.language as tl

LARGEST_E4M3 = tl.constexpr(448.0)
LEAST_NORMAL_E4M3 = tl.constexpr(2.0**-6)
INTEGERS = tl.constexpr(1.5 * 2.0**23)  # a float32 near it has no fraction: adding it and taking it off rounds half to even
STEPS_E4M3 = tl.constexpr(2.0**14)  # the same for multiples of 2^-9, the step of the least numbers of E4M3


@triton.jit
def linear(
    x, weight, weight_scale, bias, shift, scale, clean_shift, clean_scale, mask, smooth, input_scale, gate, clean_gate, residual,
    delta, prefix, y, squares, partials, arrivals,
    ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,
    X_LAYER: tl.constexpr, X_ROW: tl.constexpr, W_LAYER: tl.constexpr, W_ROW: tl.constexpr, SCALE_LAYER: tl.constexpr,
    SCALE_ROW: tl.constexpr, BIAS_LAYER: tl.constexpr, RESIDUAL_LAYER: tl.constexpr, RESIDUAL_HALF: tl.constexpr,
    RESIDUAL_ROW: tl.constexpr, PREFIX_ROW: tl.constexpr, Y_LAYER: tl.constexpr, Y_HALF: tl.constexpr, Y_ROW: tl.constexpr,
    SQUARES_LAYER: tl.constexpr, SQUARES_ROW: tl.constexpr, SQUARE_COLUMNS: tl.constexpr,
    NORM: tl.constexpr, EPS: tl.constexpr, ROUNDED: tl.constexpr, PRODUCT: tl.constexpr, PACKED: tl.constexpr,
    PLAIN: tl.constexpr, ACTIVATION: tl.constexpr, PAIRS: tl.constexpr, ON_GRID: tl.constexpr,
    ROW_TILE: tl.constexpr, OUT_TILE: tl.constexpr, IN_TILE: tl.constexpr, COLUMN_TILE: tl.constexpr, NORM_TILE: tl.constexpr,
    ROW_TILES: tl.constexpr, BLOCKS: tl.constexpr, ALL_BLOCKS: tl.constexpr, SPLITS: tl.constexpr, LINES: tl.constexpr,
    LINE_COLUMNS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (output tiles x row tiles, splits of the sum, layers).  COLUMNS: of the weight's rows, two inputs each where PACKED.

    PLAIN: the input is multiplied as it is.  ON_GRID: numbers are put on the grid of E4M3 before they are cast to it.  LINES: how
    many lines of cache a row of this block's weight takes, LINE_COLUMNS weights each.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    layer = tl.program_id(2)
    rows = tile % ROW_TILES * ROW_TILE + tl.arange(0, ROW_TILE)
    outs = tile // ROW_TILES * OUT_TILE + tl.arange(0, OUT_TILE)
    x += layer * X_LAYER
    weight += layer * W_LAYER
    if weight_scale is not None:
        weight_scale += layer * SCALE_LAYER
    first = split * BLOCKS
    last = tl.minimum(first + BLOCKS, ALL_BLOCKS)

    if DEPENDENT:
        # no kernel writes weights, so they are on their way while the kernel in front is still running
        codes = _weights(weight, first, outs, OUTS, COLUMNS, W_ROW, OUT_TILE, COLUMN_TILE)
        _fetch(weight, first, outs, OUTS, COLUMNS, W_ROW, COLUMN_TILE, LINES, LINE_COLUMNS)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    is_clean = rows < 0  # no row
    if mask is not None:
        is_clean = tl.load(mask + rows, mask=rows < ROWS, other=0) != 0
    mean = tl.zeros([ROW_TILE], tl.float32)
    spread = mean
    if NORM:
        mean, spread = _statistics(x, rows, ROWS, INS, X_ROW, EPS, ROW_TILE, NORM_TILE)

    if PRODUCT == "int8" and GROUP == 0:
        total = tl.zeros([OUT_TILE, ROW_TILE], tl.int32)
    else:
        total = tl.zeros([OUT_TILE, ROW_TILE], tl.float32)
    if DEPENDENT:
        total = _added(
            total, codes, first, x, weight_scale, shift, scale, clean_shift, clean_scale, smooth, input_scale, outs, rows, mean,
            spread, is_clean, ROWS, INS, OUTS, GROUP, X_ROW, SCALE_ROW, NORM, ROUNDED, PRODUCT, PACKED, PLAIN, ON_GRID, ROW_TILE,
            OUT_TILE, IN_TILE, COLUMN_TILE,
        )  # fmt: skip
        first += 1
    for block in range(first, last):
        codes = _weights(weight, block, outs, OUTS, COLUMNS, W_ROW, OUT_TILE, COLUMN_TILE)
        total = _added(
            total, codes, block, x, weight_scale, shift, scale, clean_shift, clean_scale, smooth, input_scale, outs, rows, mean,
            spread, is_clean, ROWS, INS, OUTS, GROUP, X_ROW, SCALE_ROW, NORM, ROUNDED, PRODUCT, PACKED, PLAIN, ON_GRID, ROW_TILE,
            OUT_TILE, IN_TILE, COLUMN_TILE,
        )  # fmt: skip

    product = total.to(tl.float32)
    is_last = True
    if SPLITS > 1:
        # Every block leaves its part; the last one adds all of them, always in the same order.
        unit = layer * tl.num_programs(0) + tile
        inner = tl.arange(0, OUT_TILE)[:, None] * ROW_TILE + tl.arange(0, ROW_TILE)[None, :]
        parts = partials + unit * (SPLITS * OUT_TILE * ROW_TILE)
        tl.store(parts + split * (OUT_TILE * ROW_TILE) + inner, product)
        tl.debug_barrier()  # all threads have written before one of them says so
        is_last = tl.atomic_add(arrivals + unit, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
        if is_last:
            tl.store(arrivals + unit, 0)  # ready for the next launch, also of a graph that is replayed
            product = tl.zeros([OUT_TILE, ROW_TILE], tl.float32)
            for part in tl.static_range(SPLITS):
                product += tl.load(parts + part * (OUT_TILE * ROW_TILE) + inner, cache_modifier=".cg")
    if is_last:
        _finish(
            product, tile // ROW_TILES, layer, rows, outs, is_clean, weight_scale, input_scale, bias, gate, clean_gate, residual,
            delta, prefix, y, squares, ROWS, OUTS, GROUP, SCALE_ROW, BIAS_LAYER, RESIDUAL_LAYER, RESIDUAL_HALF, RESIDUAL_ROW,
            PREFIX_ROW, Y_LAYER, Y_HALF, Y_ROW, SQUARES_LAYER, SQUARES_ROW, SQUARE_COLUMNS, PRODUCT, ACTIVATION, PAIRS, ROW_TILE,
            OUT_TILE,
        )  # fmt: skip


@triton.jit
def prepare(
    x, shift, scale, clean_shift, clean_scale, mask, smooth, input_scale, ready,
    ROWS: tl.constexpr, INS: tl.constexpr, X_LAYER: tl.constexpr, X_ROW: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
    ROUNDED: tl.constexpr, PRODUCT: tl.constexpr, ON_GRID: tl.constexpr, ROW_TILE: tl.constexpr, IN_TILE: tl.constexpr,
    NORM_TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, layers): ready [L, S, in] is the input as the product reads it."""
    rows = tl.program_id(0) * ROW_TILE + tl.arange(0, ROW_TILE)
    layer = tl.program_id(1)
    x += layer * X_LAYER
    ready += layer * (ROWS * INS)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    is_clean = rows < 0
    if mask is not None:
        is_clean = tl.load(mask + rows, mask=rows < ROWS, other=0) != 0
    mean = tl.zeros([ROW_TILE], tl.float32)
    spread = mean
    if NORM:
        mean, spread = _statistics(x, rows, ROWS, INS, X_ROW, EPS, ROW_TILE, NORM_TILE)
    for start in range(0, INS, IN_TILE):
        ins = start + tl.arange(0, IN_TILE)
        value = _inputs(
            x, shift, scale, clean_shift, clean_scale, smooth, input_scale, ins, rows, mean, spread, is_clean, ROWS, INS, X_ROW,
            NORM, ROUNDED, PRODUCT, False, ON_GRID, True,
        )  # fmt: skip
        inside = (ins < INS)[:, None] & (rows < ROWS)[None, :]
        tl.store(ready + rows[None, :] * INS + ins[:, None], value, mask=inside)


@triton.jit
def _weights(
    weight, block, outs, OUTS: tl.constexpr, COLUMNS: tl.constexpr, W_ROW: tl.constexpr, OUT_TILE: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
):  # fmt: skip
    """Tile `block` of the rows `outs`, [outs, columns]; what is outside is zero."""
    columns = block * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    places = weight + outs[:, None] * W_ROW + columns[None, :]
    if OUTS % OUT_TILE == 0 and COLUMNS % COLUMN_TILE == 0:
        return tl.load(places)
    else:
        return tl.load(places, mask=(outs < OUTS)[:, None] & (columns < COLUMNS)[None, :], other=0.0)


@triton.jit
def _fetch(
    weight, first, outs, OUTS: tl.constexpr, COLUMNS: tl.constexpr, W_ROW: tl.constexpr, COLUMN_TILE: tl.constexpr,
    LINES: tl.constexpr, LINE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Ask for this block's weights from memory to L2; lines past an end are the last one again."""
    columns = tl.minimum(first * COLUMN_TILE + tl.arange(0, LINES) * LINE_COLUMNS, COLUMNS - 1)
    places = weight + tl.minimum(outs, OUTS - 1)[:, None] * W_ROW + columns[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [places.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _statistics(
    x, rows, ROWS: tl.constexpr, INS: tl.constexpr, X_ROW: tl.constexpr, EPS: tl.constexpr, ROW_TILE: tl.constexpr,
    NORM_TILE: tl.constexpr,
):  # fmt: skip
    """Mean and one over the deviation of every row.

    One pass.  A value of the row itself is taken off first: then the squares cancel to one part in INS at the worst.
    """
    has_row = rows < ROWS
    pivot = tl.load(x + rows * X_ROW, mask=has_row, other=0).to(tl.float32)
    total = tl.zeros([ROW_TILE, NORM_TILE], tl.float32)
    squares = tl.zeros([ROW_TILE, NORM_TILE], tl.float32)
    for start in tl.range(0, INS, NORM_TILE, loop_unroll_factor=4):
        ins = start + tl.arange(0, NORM_TILE)
        inside = has_row[:, None] & (ins < INS)[None, :]
        value = tl.load(x + rows[:, None] * X_ROW + ins[None, :], mask=inside, other=0).to(tl.float32)
        value = tl.where(inside, value - pivot[:, None], 0.0)
        total += value
        squares += value * value
    mean = tl.sum(total, axis=1) / INS
    variance = tl.maximum(tl.sum(squares, axis=1) / INS - mean * mean, 0.0)
    return pivot + mean, 1.0 / tl.sqrt(variance + EPS)


@triton.jit
def _inputs(
    x, shift, scale, clean_shift, clean_scale, smooth, input_scale, ins, rows, mean, spread, is_clean,
    ROWS: tl.constexpr, INS: tl.constexpr, X_ROW: tl.constexpr, NORM: tl.constexpr, ROUNDED: tl.constexpr, PRODUCT: tl.constexpr,
    PLAIN: tl.constexpr, ON_GRID: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """X^T [ins, rows] as the product reads it; zero outside."""
    places = x + rows[None, :] * X_ROW + ins[:, None]
    has_in = ins < INS
    inside = has_in[:, None] & (rows < ROWS)[None, :]
    value = tl.load(places, mask=inside, other=0.0) if MASKED else tl.load(places)
    if PLAIN:
        return _cast(value, PRODUCT)
    else:
        value = value.to(tl.float32)
        if NORM:
            value = (value - mean[None, :]) * spread[None, :]
        if scale is not None:
            value = value * _chosen(scale, clean_scale, ins, has_in, is_clean) + _chosen(
                shift, clean_shift, ins, has_in, is_clean
            )
        if smooth is not None:
            value = value * tl.load(smooth + ins, mask=has_in, other=0).to(tl.float32)[:, None]
        if ROUNDED == "float16":
            value = value.to(tl.float16).to(tl.float32)
        elif ROUNDED == "bfloat16":
            value = value.to(tl.bfloat16).to(tl.float32)
        elif ROUNDED == "fp8":
            value = tl.div_rn(value, tl.zeros_like(value) + tl.load(input_scale).to(tl.float32))
            value = tl.minimum(tl.maximum(value, -LARGEST_E4M3), LARGEST_E4M3)
            if ON_GRID:
                value = _on_grid(value)
        elif ROUNDED == "int8":
            value = tl.div_rn(value, tl.zeros_like(value) + tl.load(input_scale).to(tl.float32))
            value = (tl.minimum(tl.maximum(value, -128.0), 127.0) + INTEGERS) - INTEGERS
        if MASKED:
            value = tl.where(inside, value, 0.0)  # a norm makes something of nothing
        return _cast(value, PRODUCT)


@triton.jit
def _chosen(row, clean, columns, has_column, is_clean):
    """A row of numbers [columns] as [columns, 1], or with `clean` in clean rows, [columns, rows]."""
    value = tl.load(row + columns, mask=has_column, other=0).to(tl.float32)[:, None]
    if clean is not None:
        value = tl.where(is_clean[None, :], tl.load(clean + columns, mask=has_column, other=0).to(tl.float32)[:, None], value)
    return value


@triton.jit
def _on_grid(value):
    """The nearest numbers of E4M3, ties to even, in float32; Triton's interpreter casts other ones by cutting bits off."""
    size = tl.abs(value)
    bits = size.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF  # three bits of the fraction stay
    size = tl.where(size < LEAST_NORMAL_E4M3, (size + STEPS_E4M3) - STEPS_E4M3, bits.to(tl.float32, bitcast=True))
    return tl.where(value < 0, -size, size)


@triton.jit
def _cast(value, PRODUCT: tl.constexpr):
    """To the type that is multiplied."""
    if PRODUCT == "float16":
        return value.to(tl.float16)
    elif PRODUCT == "bfloat16":
        return value.to(tl.bfloat16)
    elif PRODUCT == "fp8":
        return value.to(tl.float8e4nv)
    elif PRODUCT == "int8":
        return value.to(tl.int8)
    else:
        return value.to(tl.float32)


@triton.jit
def _added(
    total, codes, block, x, weight_scale, shift, scale, clean_shift, clean_scale, smooth, input_scale, outs, rows, mean, spread,
    is_clean,
    ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr, GROUP: tl.constexpr, X_ROW: tl.constexpr, SCALE_ROW: tl.constexpr,
    NORM: tl.constexpr, ROUNDED: tl.constexpr, PRODUCT: tl.constexpr, PACKED: tl.constexpr, PLAIN: tl.constexpr,
    ON_GRID: tl.constexpr, ROW_TILE: tl.constexpr, OUT_TILE: tl.constexpr, IN_TILE: tl.constexpr, COLUMN_TILE: tl.constexpr,
):  # fmt: skip
    """total [outs, rows] and the product of tile `block`; where groups of inputs have scales, in numbers and not in codes."""
    MASKED: tl.constexpr = ROWS % ROW_TILE != 0 or INS % IN_TILE != 0
    if GROUP == 0:
        part = total
    elif PRODUCT == "int8":
        part = tl.zeros([OUT_TILE, ROW_TILE], tl.int32)
    else:
        part = tl.zeros([OUT_TILE, ROW_TILE], tl.float32)
    columns = block * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    if PACKED:
        # the low halves are the even inputs and the high ones the odd: two products, and nothing is put side by side
        even = _inputs(
            x, shift, scale, clean_shift, clean_scale, smooth, input_scale, 2 * columns, rows, mean, spread, is_clean, ROWS, INS,
            X_ROW, NORM, ROUNDED, PRODUCT, PLAIN, ON_GRID, MASKED,
        )  # fmt: skip
        odd = _inputs(
            x, shift, scale, clean_shift, clean_scale, smooth, input_scale, 2 * columns + 1, rows, mean, spread, is_clean, ROWS,
            INS, X_ROW, NORM, ROUNDED, PRODUCT, PLAIN, ON_GRID, MASKED,
        )  # fmt: skip
        part = _dot(_cast((codes & 15).to(tl.float32) - 8.0, PRODUCT), even, part, PRODUCT, COLUMN_TILE)
        part = _dot(_cast((codes >> 4).to(tl.float32) - 8.0, PRODUCT), odd, part, PRODUCT, COLUMN_TILE)
    else:
        inputs = _inputs(
            x, shift, scale, clean_shift, clean_scale, smooth, input_scale, columns, rows, mean, spread, is_clean, ROWS, INS,
            X_ROW, NORM, ROUNDED, PRODUCT, PLAIN, ON_GRID, MASKED,
        )  # fmt: skip
        part = _dot(_cast(codes, PRODUCT), inputs, part, PRODUCT, COLUMN_TILE)
    if GROUP == 0:
        return part
    else:
        factor = tl.load(weight_scale + outs * SCALE_ROW + block * IN_TILE // GROUP, mask=outs < OUTS, other=0).to(tl.float32)
        return total + part.to(tl.float32) * factor[:, None]


@triton.jit
def _dot(weights, inputs, total, PRODUCT: tl.constexpr, COLUMN_TILE: tl.constexpr):
    """total + weights [outs, ins] @ inputs [ins, rows]."""
    if PRODUCT == "int8":
        return tl.dot(weights, inputs, total, out_dtype=tl.int32)
    elif PRODUCT == "fp8":
        # Hopper's matrix units keep few bits of a sum of FP8 products: after so many it is added up in float32
        EXACT: tl.constexpr = 128 if COLUMN_TILE > 128 else COLUMN_TILE
        return tl.dot(weights, inputs, total, max_num_imprecise_acc=EXACT)
    else:
        return tl.dot(weights, inputs, total, input_precision="ieee")


@triton.jit
def _finish(
    product, out_tile, layer, rows, outs, is_clean, weight_scale, input_scale, bias, gate, clean_gate, residual, delta, prefix, y,
    squares,
    ROWS: tl.constexpr, OUTS: tl.constexpr, GROUP: tl.constexpr, SCALE_ROW: tl.constexpr, BIAS_LAYER: tl.constexpr,
    RESIDUAL_LAYER: tl.constexpr, RESIDUAL_HALF: tl.constexpr, RESIDUAL_ROW: tl.constexpr, PREFIX_ROW: tl.constexpr,
    Y_LAYER: tl.constexpr, Y_HALF: tl.constexpr, Y_ROW: tl.constexpr, SQUARES_LAYER: tl.constexpr, SQUARES_ROW: tl.constexpr,
    SQUARE_COLUMNS: tl.constexpr, PRODUCT: tl.constexpr, ACTIVATION: tl.constexpr, PAIRS: tl.constexpr, ROW_TILE: tl.constexpr,
    OUT_TILE: tl.constexpr,
):  # fmt: skip
    """Everything behind the product [outs, rows], and its stores."""
    has_row = rows < ROWS
    has_out = outs < OUTS
    inside = has_out[:, None] & has_row[None, :]
    if weight_scale is not None and GROUP == 0:
        product = product * tl.load(weight_scale + outs * SCALE_ROW, mask=has_out, other=0).to(tl.float32)[:, None]
    if PRODUCT == "fp8" or PRODUCT == "int8":
        product = product * tl.load(input_scale).to(tl.float32)
    if bias is not None:
        product = product + tl.load(bias + layer * BIAS_LAYER + outs, mask=has_out, other=0).to(tl.float32)[:, None]
    if squares is not None:
        SUMS: tl.constexpr = OUT_TILE // SQUARE_COLUMNS
        sums = tl.sum(tl.reshape(product * product, [SUMS, SQUARE_COLUMNS, ROW_TILE]), axis=1)
        columns = out_tile * SUMS + tl.arange(0, SUMS)
        places = squares + layer * SQUARES_LAYER + rows[None, :] * SQUARES_ROW + columns[:, None]
        tl.store(places, sums, mask=(columns < OUTS // SQUARE_COLUMNS)[:, None] & has_row[None, :])
    if ACTIVATION == "gelu":
        # 0.5 p (1 + tanh t) = p sigmoid(2 t); the bound keeps exp finite where the result is nothing anyway
        twice = 1.5957691216057308 * (product + 0.044715 * product * product * product)
        product = product / (1.0 + tl.exp(tl.minimum(-twice, 80.0)))
    elif ACTIVATION == "gelu_exact":
        product = 0.5 * product * (1.0 + tl.erf(product * 0.7071067811865476))
    if gate is not None:
        product = product * _chosen(gate, clean_gate, outs, has_out, is_clean)
    if delta is not None:
        product = product * tl.load(delta).to(tl.float32)
    if residual is not None:
        places = residual + layer * RESIDUAL_LAYER + rows[None, :] * RESIDUAL_ROW
        places += _columns(outs, OUTS, RESIDUAL_HALF, PAIRS)[:, None]
        product = tl.load(places, mask=inside, other=0).to(tl.float32) + product
    if prefix is not None:
        kept = tl.load(prefix + rows[None, :] * PREFIX_ROW + outs[:, None], mask=inside, other=0).to(tl.float32)
        product = tl.where(is_clean[None, :], kept, product)
    places = y + layer * Y_LAYER + rows[None, :] * Y_ROW + _columns(outs, OUTS, Y_HALF, PAIRS)[:, None]
    tl.store(places, product.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _columns(outs, OUTS: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """Where outputs lie in a row; of pairs, the second half of them begins HALF further on."""
    if PAIRS:
        return outs // (OUTS // 2) * HALF + outs % (OUTS // 2)
    else:
        return outs

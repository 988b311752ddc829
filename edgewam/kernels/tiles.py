"""Tile sizes of the attention kernels: powers of two that fit a block's shared memory, the default first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from edgewam.kernels.target import Target
from edgewam.kernels.variant import Variant

LEAST_TILE = 16  # of every side of a product on tensor cores


def power(size: int, least: int = LEAST_TILE) -> int:
    """The least power of two that holds `size`, at least `least`."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def attention_variants(
    target: Target,
    head_tile: int,
    itemsize: int,
    rows: Iterable[int],
    keys: Iterable[int],
    warps: Iterable[int],
    stages: Iterable[int] = (1,),
) -> tuple[Variant, ...]:
    """Variants with `rows` queries and `ins` keys a tile whose tiles fit, those with the first of everything first.

    A block holds its queries, their weights, and per stage a tile of keys and one of values, of `itemsize` bytes each.
    The interpreter has no blocks: everything fits.
    """
    found = []
    for row_tile, key_tile, number, threads in itertools.product(*map(dict.fromkeys, (rows, keys, stages, warps))):
        held = row_tile * head_tile + row_tile * key_tile + 2 * number * key_tile * head_tile
        if target.interpreted or held * itemsize <= target.shared_memory:
            found.append(Variant(row_tile, head_tile, key_tile, warps=threads, stages=number))
    return with_dependent(target, found)


def with_dependent(target: Target, variants: Iterable[Variant]) -> tuple[Variant, ...]:
    """The same with dependent launch where the target has it, and then the first one without."""
    plain = tuple(variants)
    if not target.has_dependent_launch:
        return plain
    return (*(replace(variant, dependent=True) for variant in plain), *plain[:1])

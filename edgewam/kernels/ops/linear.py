"""The op `linear`: y = residual + gate * activation(W (norm(x) * scale + shift) + bias), see `reference.linear`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgewam.kernels import linear_cuda
from edgewam.kernels.call import Call
from edgewam.kernels.launch import CudaLaunch, Launch
from edgewam.kernels.ops import linear_launch
from edgewam.kernels.ops.linear_launch import PRODUCTS, is_prepared
from edgewam.kernels.ops.linear_problem import Problem, problem_of, refusal
from edgewam.kernels.reference import SQUARE_COLUMNS
from edgewam.kernels.target import Target
from edgewam.kernels.tiles import power
from edgewam.kernels.variant import Variant

MOST_ROWS = 128  # of a tile; more rows are more tiles
MOST_SPLITS = 16  # their parts are added by one block
FEW_ROWS = 32  # up to here a product waits for weights and nothing else
FULL = 1.25  # blocks for each processor that default splits stay below: more of them are a second round
_INTERPRETED_TILE = 1024  # the interpreter is as fast as its programs are few
LEAST_FP8 = 64  # outputs of a tile, below which Hopper and Thor multiply FP8 as float16
MOST_OF_A_THREAD = 128  # weights of a tile, which are in registers while they are converted
MOST_OF_A_WAITING_THREAD = (
    64  # the same where the tile of a dependent launch waits in registers beside the one that is multiplied
)
MOST_STAGES = 8  # of tiles that are small because a group of weights is, or a thread has few registers
_RESERVED = 1024  # bytes of shared memory that the compiler takes for barriers and reductions

# outs, bytes of a weight's row, warps, stages; the first is the default
_FEW = ((64, 256, 4, 4), (64, 512, 4, 3), (128, 256, 8, 3), (32, 512, 4, 4), (64, 128, 4, 6))
_MANY = ((128, 128, 8, 4), (64, 128, 4, 4), (64, 256, 4, 3), (128, 256, 8, 3))
_MANY_IN_GROUPS = ((64, 128, 8, 4), (64, 256, 8, 3), (128, 128, 8, 4))  # results and parts of them share registers
_NO_MATRIX_UNITS = ((64, 128, 4, 3), (32, 128, 4, 3), (32, 64, 4, 3))  # float32: operands go through registers


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    return refusal(call, tensors, target)


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Tiles whose rows hold all rows up to 128, and splits of the sum that give every processor a block."""
    problem = problem_of(call, tensors)
    rows = min(MOST_ROWS, power(problem.rows))
    if target.interpreted:
        outs, ins = min(_INTERPRETED_TILE, power(problem.outs)), _fitted(_INTERPRETED_TILE, problem)
        return (Variant(rows, outs, ins),)
    tiles = _FEW if rows <= FEW_ROWS else _MANY_IN_GROUPS if problem.group else _MANY
    if problem.product == "float32":
        tiles = _NO_MATRIX_UNITS
    most = MOST_OF_A_WAITING_THREAD if target.has_dependent_launch and not _multiplies_from_memory(target) else MOST_OF_A_THREAD
    is_widened = tensors["weight"].dtype == torch.float8_e4m3fn and problem.product in ("float16", "bfloat16")
    most //= 2 if is_widened else 1  # on their way to 16 bits such codes take twice the registers of integers
    found = []
    for outs, row_bytes, warps, stages in tiles:
        outs = min(outs, power(problem.outs))
        if ("squares" in tensors and outs % SQUARE_COLUMNS) or (problem.product == "fp8" and outs < min(LEAST_FP8, problem.outs)):
            continue
        weight = tensors["weight"]
        wished = row_bytes // weight.element_size() * (2 if problem.packed else 1)
        ins = _fitted(min(wished, most * 32 * warps // outs), problem)
        if problem.group or is_widened:
            stages = min(MOST_STAGES, stages * max(1, wished // ins))
        tile = Variant(rows, outs, ins, 1, warps, stages, target.has_dependent_launch)
        tile = _smaller(tile, problem, call, tensors, target)
        found += [replace(tile, splits=splits) for splits in _splits(tile, problem, target)]
    if target.has_dependent_launch:
        found.append(replace(found[0], dependent=False))
    if not linear_cuda.support(call, tensors, target):
        found += linear_cuda.variants(call, tensors, target)
    return tuple(dict.fromkeys(found))


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[Launch | CudaLaunch, ...]:
    """The kernels on these tensors."""
    module = linear_cuda if variant.source == "cuda" else linear_launch
    return module.launches(call, tensors, variant, target)


def shared_bytes(variant: Variant, problem: Problem, call: Call, tensors: Mapping[str, Tensor], target: Target) -> int:
    """Bytes of shared memory that a block may take, never less than it does.

    Every stage holds a tile of weights and one of inputs.  Where matrix units read shared memory (Hopper, Thor) all stages are
    there, but inputs that change on their way are a stage behind, and those that do not have one more place for the first tiles
    of a dependent launch; elsewhere one stage is in registers.
    """
    columns = variant.ins // 2 if problem.packed else variant.ins
    is_ready = problem.is_plain or is_prepared(problem, call, tensors["x"], variant)
    item = PRODUCTS[problem.product].itemsize if is_ready else tensors["x"].element_size()
    weights = variant.outs * columns * tensors["weight"].element_size()
    stages = variant.stages - 1
    held = stages * (weights + variant.rows * variant.ins * item)
    if _multiplies_from_memory(target):
        held += (1 + variant.dependent) * (held // stages) if is_ready else weights
    held += 0 if is_ready else 4 * variant.rows * variant.ins  # a tile of inputs on its way to the product
    return max(held, 4 * variant.rows * variant.outs) + _RESERVED


def _multiplies_from_memory(target: Target) -> bool:
    """Whether matrix units read tiles in shared memory, and not registers: Hopper, the B100 family and Thor."""
    return 90 <= target.sm < 120


def _smaller(tile: Variant, problem: Problem, call: Call, tensors: Mapping[str, Tensor], target: Target) -> Variant:
    """The tile with fewer stages, then fewer inputs, until it fits; few rows and more blocks than processors: two of it fit."""
    is_second_round = _blocks(tile, problem) * next(_splits(tile, problem, target)) > target.num_processors
    memory = target.shared_memory // (2 if is_second_round and tile.rows <= FEW_ROWS else 1)
    while shared_bytes(tile, problem, call, tensors, target) > memory:
        if tile.stages > 2:
            tile = replace(tile, stages=tile.stages - 1)
        elif tile.ins > problem.least_tile:
            tile = replace(tile, ins=tile.ins // 2)
        else:
            return tile
    return tile


def _fitted(ins: int, problem: Problem) -> int:
    """Inputs of a tile: a power of two that divides a group of weights with one scale."""
    ins = max(min(ins, power(problem.ins)), problem.least_tile)
    while problem.group % ins:
        ins //= 2
    return ins


def _blocks(tile: Variant, problem: Problem) -> int:
    """Blocks of one split."""
    return -(-problem.outs // tile.outs) * -(-problem.rows // tile.rows) * problem.layers


def _splits(tile: Variant, problem: Problem, target: Target) -> Iterator[int]:
    """Splits of the sum: the default first, then twice and half as many."""
    blocks = _blocks(tile, problem)
    most = min(MOST_SPLITS, max(1, -(-problem.ins // tile.ins) // 2))  # two tiles of inputs each
    splits = 1
    while 2 * splits <= most and 2 * splits * blocks <= FULL * target.num_processors:
        splits *= 2
    yield splits
    if 2 * splits <= most and tile.rows <= FEW_ROWS:
        yield 2 * splits
    if splits > 1:
        yield splits // 2

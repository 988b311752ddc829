"""`linear` of at most 16 rows in CUDA C++ (kernels/cuda/linear16.cu): candidates beside Triton's for the plugin `ops/linear.py`.

It takes what a denoise step is made of: one layer, weights in bfloat16, FP8, INT8 or INT4 codes, and products in bfloat16, FP8 or
INT8.  Float32 products, batches of layers and the Euler step of the head are Triton's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.cuda_source import CudaProgram
from edgewam.kernels.launch import CudaLaunch
from edgewam.kernels.reference import EPS, SQUARE_COLUMNS
from edgewam.kernels.scratch import scratch
from edgewam.kernels.target import Target
from edgewam.kernels.variant import Variant

MOST_ROWS = 16
LEAST_SM = 89  # FP8 conversions and products
MOST_NORM_REGISTERS = 64  # of a thread, which has 255: rows that are normed stay in registers, and twice as many spill
STEP_BYTES, LANES = 64, 32  # as in linear16.cu
MOST_SPLITS, MOST_STAGES, MOST_VARIANTS = 16, 4, 8
CACHED = 0.4  # cost of a byte from L2 beside one from memory: about what the bandwidths of an H200 are

_WEIGHTS = {torch.bfloat16: (0, 16), torch.float8_e4m3fn: (1, 8), torch.int8: (2, 8), torch.uint8: (3, 4)}  # code, bits
_PRODUCTS = {"bfloat16": 0, "fp8": 1, "int8": 2}
_GELU = {"none": 0, "gelu": 1, "gelu_exact": 2}
_FLOATS = (torch.float32, torch.bfloat16)
_ADDRESSES = (
    "x", "weight", "weight_scale", "bias", "shift", "scale", "clean_shift", "clean_scale", "mask", "smooth", "input_scale",
    "gate", "clean_gate", "residual", "y", "squares",
)  # fmt: skip
_FLOAT32 = set(_ADDRESSES) - {"x", "weight", "mask", "residual", "y"}


def support(call: Call, tensors: Mapping[str, Tensor], target: Target) -> str:
    """Why the kernel does not take these tensors, or ""."""
    x, weight, y = tensors["x"], tensors["weight"], tensors["y"]
    if target.interpreted or target.sm < LEAST_SM:
        return f"CUDA C++ kernels run on NVIDIA GPUs from sm_{LEAST_SM} on, not on {target.name}."
    if extra := sorted(set(tensors) - set(_ADDRESSES)):
        return f"The CUDA C++ kernel has no '{extra[0]}'."
    if x.dim() != 2 or weight.dim() != 2 or not 1 <= x.shape[0] <= MOST_ROWS:
        return f"The CUDA C++ kernel takes one layer of 1 to {MOST_ROWS} rows, not {list(x.shape)} and {list(weight.shape)}."
    if weight.dtype not in _WEIGHTS or x.dtype not in _FLOATS or y.dtype not in _FLOATS:
        return f"The CUDA C++ kernel takes no x {x.dtype}, weight {weight.dtype} and y {y.dtype}."
    return _rounding(call, tensors) or _sizes(call, tensors) or _places(tensors)


def _rounding(call: Call, tensors: Mapping[str, Tensor]) -> str:
    """The products it has: bfloat16 with any weight, 8 bits with codes of the same kind."""
    attributes, x, weight = call.attributes, tensors["x"], tensors["weight"]
    activations, activation = str(attributes.get("activations", "none")), attributes.get("activation", "none")
    if activation not in _GELU:
        return f"The CUDA C++ kernel has no activation '{activation}'."
    if activations == "none":
        if x.dtype != torch.bfloat16 or attributes.get("norm") or {"scale", "smooth"} & set(tensors):
            return "The CUDA C++ kernel rounds its input to bfloat16, fp8 or int8, and this call wants it as it is."
        return ""
    if activations not in _PRODUCTS:
        return f"The CUDA C++ kernel has no products in {activations}."
    wanted = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}.get(activations)
    if wanted and (weight.dtype != wanted or "input_scale" not in tensors):
        return f"Products in {activations} need an 'input_scale' and a weight in {wanted}, not in {weight.dtype}."
    return ""


def _sizes(call: Call, tensors: Mapping[str, Tensor]) -> str:
    """What tiles and steps divide."""
    weight, scale = tensors["weight"], tensors.get("weight_scale")
    outs, ins, step = weight.shape[0], tensors["x"].shape[1], _step(weight)
    if outs % SQUARE_COLUMNS or ins % step:
        return f"The CUDA C++ kernel takes multiples of {SQUARE_COLUMNS} outputs and of {step} inputs, not {outs} and {ins}."
    if bool(call.attributes.get("norm")) and _norm_registers(ins, 8) > MOST_NORM_REGISTERS:
        return f"The CUDA C++ kernel norms rows of up to {MOST_NORM_REGISTERS * LANES // 2} inputs, not {ins}."
    if call.attributes.get("pairs") and ("gate" in tensors or outs % (2 * SQUARE_COLUMNS)):
        return "The CUDA C++ kernel writes pairs without a gate, of multiples of 64 outputs each."
    y, residual = tensors["y"], tensors.get("residual")
    if residual is not None and (residual.shape != y.shape or residual.stride()[:-2] != y.stride()[:-2]):
        return "The CUDA C++ kernel takes a residual that lies like y."
    if scale is not None and _is_grouped(tensors):
        group = ins // scale.shape[1]
        if call.attributes.get("activations") in ("fp8", "int8") or group < 32 or (step % group and group % step):
            return f"The CUDA C++ kernel takes no scale for each {group} inputs here."
    if (weight.dtype == torch.bfloat16) == (scale is not None):
        return "The CUDA C++ kernel takes a 'weight_scale' with codes, and only with codes."
    return ""


def _places(tensors: Mapping[str, Tensor]) -> str:
    """Dtypes of the rows beside the product, devices, strides, and addresses that are read 16 bytes at a time."""
    for role, tensor in tensors.items():
        if tensor.device.type not in ("cuda", "meta"):
            return f"'{role}' is on {tensor.device}, not on a GPU."
        if role in _FLOAT32 and tensor.dtype != torch.float32:
            return f"'{role}' is {tensor.dtype}, not float32."
        if role == "mask" and tensor.dtype != torch.bool:
            return f"'mask' is {tensor.dtype}, not bool."
        if role == "residual" and tensor.dtype not in _FLOATS:
            return f"'residual' is {tensor.dtype}, neither float32 nor bfloat16."
        if role not in ("x", "y", "residual", "squares") and not tensor.is_contiguous():
            return f"'{role}' is not contiguous."
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"The last axis of '{role}' has stride {tensor.stride(-1)}, not 1."
        aligned = 4 if role in ("mask", "input_scale", "squares") else 16
        starts = [tensor.data_ptr()] if role != "mask" and not tensor.is_meta else []
        strides = [stride * tensor.element_size() for stride in tensor.stride()[:-1]] if role in ("x", "y", "residual") else []
        if any(place % aligned for place in starts + strides):
            return f"'{role}' or one of its rows does not start at a multiple of {aligned} bytes."
    return ""


def variants(call: Call, tensors: Mapping[str, Tensor], target: Target) -> tuple[Variant, ...]:
    """Candidates, best guess first: processors and warps that all have something to do."""
    weight, ins, step = tensors["weight"], tensors["x"].shape[1], _step(tensors["weight"])
    steps, norm = ins // step, bool(call.attributes.get("norm"))
    rows = 8 if tensors["x"].shape[0] <= 8 else 16
    found = []
    for tile, warps in ((64, 8), (64, 4), (128, 8), (128, 4)):
        if (norm and _norm_registers(ins, warps) > MOST_NORM_REGISTERS) or (tile > 64 and _is_grouped(tensors)):
            continue  # with groups a thread has its sums twice, and twice again of 128 outputs leaves no registers
        for splits in (n for n in range(1, MOST_SPLITS + 1) if steps % n == 0):
            part, blocks = steps // splits, -(-weight.shape[0] // tile) * splits
            for stages in range(min(-(-part // warps), MOST_STAGES), 0, -1):
                variant = Variant(rows, tile, step, splits, warps, stages, target.has_dependent_launch, "cuda")
                if _shared(call, tensors, variant) <= target.shared_memory:
                    found.append((_cost(variant, tensors, norm, blocks, part, target), variant))
                    break
    return tuple(variant for _, variant in sorted(found, key=lambda entry: entry[0])[:MOST_VARIANTS])


def launches(call: Call, tensors: Mapping[str, Tensor], variant: Variant, target: Target) -> tuple[CudaLaunch, ...]:
    """The kernel on these tensors; those on the meta device can only be compiled."""
    y, tiles = tensors["y"], -(-tensors["weight"].shape[0] // variant.outs)
    parts: tuple[Tensor | None, ...] = (None, None)
    if variant.splits > 1:  # sums [tiles, splits, S, outs], and one counter a tile
        size = tiles * variant.splits * tensors["x"].shape[0] * variant.outs
        parts = (scratch("parts", y, (size,), torch.float32), scratch("counters", y, (tiles,), torch.int32))
    addressed = (*(tensors.get(role) for role in _ADDRESSES), *parts)
    dependent = variant.dependent and target.has_dependent_launch
    return (CudaLaunch(_program(call, tensors, variant), addressed, (tiles, variant.splits), dependent, target),)


def _program(call: Call, tensors: Mapping[str, Tensor], variant: Variant) -> CudaProgram:
    """The source with every number of this call; works on meta tensors."""
    attributes = call.attributes
    x, weight, y = tensors["x"], tensors["weight"], tensors["y"]
    scale, residual, squares = tensors.get("weight_scale"), tensors.get("residual"), tensors.get("squares")
    pairs, ins = bool(attributes.get("pairs")), x.shape[1]
    defines = {
        "S": x.shape[0],
        "IN": ins,
        "OUT": weight.shape[0],
        "ROWS": variant.rows,
        "OUTS": variant.outs,
        "WARPS": variant.warps,
        "STAGES": variant.stages,
        "SPLITS": variant.splits,
        "WEIGHT": _WEIGHTS[weight.dtype][0],
        "PRODUCT": _PRODUCTS.get(str(attributes.get("activations", "none")), 0),
        "GROUP": ins // scale.shape[1] if scale is not None and _is_grouped(tensors) else 0,
        "EPS_BITS": struct.unpack("<I", struct.pack("<f", float(attributes.get("eps", EPS))))[0],
        "X_BF16": x.dtype == torch.bfloat16,
        "Y_BF16": y.dtype == torch.bfloat16,
        "RESIDUAL_BF16": residual is not None and residual.dtype == torch.bfloat16,
        "X_STRIDE": x.stride(0),
        "Y_STRIDE": y.stride(-2),
        "RESIDUAL_STRIDE": residual.stride(-2) if residual is not None else 0,
        "SQUARES_STRIDE": squares.stride(0) if squares is not None else 0,
        "SPAN": y.stride(0) if pairs else 0,
        "NORM": bool(attributes.get("norm")),
        "PAIRS": pairs,
        "DEPENDENT": variant.dependent,
        "GELU": _GELU[str(attributes.get("activation", "none"))],
        "HAS_MODULATION": "scale" in tensors and "shift" in tensors,
        "HAS_CLEAN": "clean_scale" in tensors and "clean_shift" in tensors and "mask" in tensors,
        "HAS_SMOOTH": "smooth" in tensors,
        "HAS_WEIGHT_SCALE": scale is not None,
        "HAS_BIAS": "bias" in tensors,
        "HAS_GATE": "gate" in tensors,
        "HAS_CLEAN_GATE": "clean_gate" in tensors and "mask" in tensors,
        "HAS_RESIDUAL": residual is not None,
        "HAS_SQUARES": squares is not None,
    }
    shared = _shared(call, tensors, variant)
    defines = {name: int(value) for name, value in {**defines, "SHARED": shared}.items()}
    return CudaProgram("linear16", "linear16", defines, variant.warps * LANES, shared)


def _step(weight: Tensor) -> int:
    """Inputs in a step of 64 bytes."""
    return STEP_BYTES * 8 // _WEIGHTS[weight.dtype][1]


def _is_grouped(tensors: Mapping[str, Tensor]) -> bool:
    """Whether groups of inputs have scales of their own."""
    return "weight_scale" in tensors and tensors["weight_scale"].dim() == 2


def _norm_registers(ins: int, warps: int) -> int:
    return -(-MOST_ROWS // warps) * -(-ins // 256) * 8


def _shared(call: Call, tensors: Mapping[str, Tensor], variant: Variant) -> int:
    """Bytes a block asks for: its part of x, and the larger of its stream of weights and of its warps' sums."""
    weight, scale = tensors["weight"], tensors.get("weight_scale")
    ins = tensors["x"].shape[1]
    x_bits = 8 if call.attributes.get("activations") in ("fp8", "int8") else 16
    x_bytes = ins // variant.splits * variant.rows * x_bits // 8
    slot = variant.outs * STEP_BYTES
    if scale is not None and _is_grouped(tensors):
        chunks = max(1, _step(weight) * scale.shape[1] // ins)
        slot += chunks * variant.outs // 8 * LANES * 4
    sums = variant.warps * variant.rows * (variant.outs + 4) * 4
    return x_bytes + max(variant.warps * variant.stages * slot, sums)


def _cost(
    variant: Variant, tensors: Mapping[str, Tensor], norm: bool, blocks: int, part: int, target: Target
) -> float:  # fmt: skip
    """A guess in bytes, to order candidates: weights from memory, longer where processors or warps idle; the rest from L2."""
    x, weight, splits = tensors["x"], tensors["weight"], variant.splits
    idle = max(1.0, target.num_processors / blocks) * -(-part // variant.warps) * variant.warps / part
    inputs = blocks * x.numel() * x.element_size() / (1 if norm else splits)
    parts = 2 * 4 * splits * x.shape[0] * weight.shape[0] if splits > 1 else 0
    return weight.numel() * weight.element_size() * idle + CACHED * (inputs + parts)

"""Calls of the full-size model: shapes, dtypes and attributes of everything that a chunk and a refresh launch.

Width 1024 of actions and 3072 of video, attention width 3072 in 24 heads, 4096 and 14336 hidden, 16 rows of actions, 120 of
video, 30 layers, 6 memory slots, 32 queries of the router.
"""

from dataclasses import dataclass, field

import torch

from edgewam.kernels.call import Call

ROWS, TOKENS, QUERIES, LAYERS, SLOTS, TEXT, HEADS = 16, 120, 32, 30, 6, 32, 24
WIDTH, VIDEO, ATTENTION, HIDDEN, VIDEO_HIDDEN, ACTIONS = 1024, 3072, 3072, 4096, 14336, 14
HALF = torch.bfloat16
FORMATS = {  # name -> dtype of the weight, inputs a byte, group, activations
    "bf16": (torch.bfloat16, 1, 0, "bfloat16"),
    "fp8_weights": (torch.float8_e4m3fn, 1, 0, "bfloat16"),
    "int4_weights": (torch.uint8, 2, 64, "bfloat16"),
    "fp8": (torch.float8_e4m3fn, 1, 0, "fp8"),
    "int8": (torch.int8, 1, 0, "int8"),
}


@dataclass(frozen=True)
class Case:
    """A call and, by role, shapes and dtypes."""

    op: str
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
    attributes: dict[str, object] = field(default_factory=dict)

    @property
    def call(self):
        return Call(self.op, {role: role for role in self.shapes}, self.attributes)

    def meta(self):
        """Tensors without memory."""
        return {role: torch.empty(shape, dtype=dtype, device="meta") for role, (shape, dtype) in self.shapes.items()}


def linear(format, rows, ins, outs, *, layers=0, x=torch.float32, y=HALF, roles=(), shared_x=False, **attributes):
    """A linear layer.  roles: beside x, weight, its scale and y; layers: of a batch."""
    dtype, per_byte, group, activations = FORMATS[format]
    batch = (layers,) if layers else ()
    result = (*batch, 2, rows, outs // 2) if attributes.get("pairs") else (*batch, rows, outs)
    shapes = {"x": ((*(() if shared_x else batch), rows, ins), x), "weight": ((*batch, outs, ins // per_byte), dtype)}
    if dtype != torch.bfloat16:
        shapes["weight_scale"] = ((*batch, outs, *((ins // group,) if group else ())), torch.float32)
    if activations in ("fp8", "int8"):
        shapes["input_scale"] = ((1,), torch.float32)
    known = {
        **dict.fromkeys(("shift", "scale", "clean_shift", "clean_scale"), ((ins,), torch.float32)),
        **dict.fromkeys(("gate", "clean_gate"), ((outs,), torch.float32)),
        "bias": ((*batch, outs), torch.float32),
        "mask": ((rows,), torch.bool),
        "residual": (result, HALF if layers else torch.float32),
        "squares": ((*batch, rows, outs // 64), torch.float32),
        "delta": ((1,), torch.float32),
        "prefix": (result, torch.float32),
    }
    shapes |= {role: known[role] for role in roles} | {"y": (result, y)}
    return Case("linear", shapes, {**attributes, "activations": activations})


_MODULATED = ("shift", "scale", "clean_shift", "clean_scale", "mask")
_GATED = ("gate", "clean_gate", "mask", "residual")


def denoise_layer(format):
    """The linear layers of one block of the action network."""
    return {
        f"qkv {format}": linear(format, ROWS, WIDTH, 3 * ATTENTION, roles=(*_MODULATED, "bias", "squares"), norm=True),
        f"out {format}": linear(format, ROWS, ATTENTION, WIDTH, x=HALF, y=torch.float32, roles=(*_GATED, "bias")),
        f"cross q {format}": linear(format, ROWS, WIDTH, ATTENTION, roles=("bias", "squares"), norm=True),
        f"up {format}": linear(format, ROWS, WIDTH, HIDDEN, roles=(*_MODULATED, "bias"), norm=True, activation="gelu"),
        f"down {format}": linear(format, ROWS, HIDDEN, WIDTH, x=HALF, y=torch.float32, roles=(*_GATED, "bias")),
    }


def planner_layer(format):
    """The linear layers of one block of the video network."""
    return {
        f"planner qkv {format}": linear(
            format, TOKENS, VIDEO, 3 * ATTENTION, roles=("shift", "scale", "bias", "squares"), norm=True
        ),
        f"planner up {format}": linear(
            format, TOKENS, VIDEO, VIDEO_HIDDEN, roles=("shift", "scale", "bias"), norm=True, activation="gelu"
        ),
        f"planner down {format}": linear(
            format, TOKENS, VIDEO_HIDDEN, VIDEO, x=HALF, y=torch.float32, roles=("gate", "residual", "bias")
        ),
    }


def router(format):
    """Merged queries of all layers over one input, and the two layers of the delta."""
    return {
        f"ask {format}": linear(
            format, QUERIES, 4096, ATTENTION, layers=LAYERS, shared_x=True, roles=("bias",), norm=True, eps=1e-5
        ),
        f"delta up {format}": linear(
            format,
            TOKENS,
            ATTENTION,
            ATTENTION,
            layers=LAYERS,
            x=HALF,
            roles=("bias",),
            norm=True,
            eps=1e-5,
            activation="gelu_exact",
        ),
        f"delta down {format}": linear(
            format, TOKENS, ATTENTION, 2 * ATTENTION, layers=LAYERS, x=HALF, roles=("bias", "residual"), pairs=True
        ),
    }


HEAD = {
    "head": linear(
        "bf16", ROWS, WIDTH, ACTIONS, y=torch.float32, roles=(*_MODULATED, "bias", "residual", "delta", "prefix"), norm=True
    ),
    "state": linear("bf16", 1, 4096, LAYERS * 2 * ATTENTION, roles=("bias", "squares")),
}

_PAIRS = ATTENTION // HEADS // 2
_GROUPS = ATTENTION // 64
_F32 = torch.float32
ATTENTIONS = {
    "chunk_attention": Case(
        "chunk_attention",
        {
            "qkv": ((ROWS, 3 * ATTENTION), HALF), "squares": ((ROWS, 3 * _GROUPS), _F32), "gains": ((2, ATTENTION), _F32),
            "cos": ((ROWS, _PAIRS), _F32), "sin": ((ROWS, _PAIRS), _F32), "routed": ((2, TOKENS, ATTENTION), HALF),
            "y": ((ROWS, ATTENTION), HALF),
        },
        {"num_heads": HEADS},
    ),
    "text_attention": Case(
        "text_attention",
        {
            "q": ((ROWS, ATTENTION), HALF), "squares": ((ROWS, _GROUPS), _F32), "kv": ((2, TEXT + 1, ATTENTION), HALF),
            "bias": ((TEXT + 1,), _F32), "y": ((ROWS, ATTENTION), HALF),
        },
        {"num_heads": HEADS},
    ),
    "text_attention of the planner": Case(
        "text_attention",
        {
            "q": ((TOKENS, ATTENTION), HALF), "squares": ((TOKENS, _GROUPS), _F32), "kv": ((2, TEXT + 1, ATTENTION), HALF),
            "bias": ((TEXT + 1,), _F32), "gain": ((ATTENTION,), _F32), "y": ((TOKENS, ATTENTION), HALF),
        },
        {"num_heads": HEADS},
    ),
    "memory_attention": Case(
        "memory_attention",
        {
            "qkv": ((TOKENS, 3 * ATTENTION), HALF), "squares": ((TOKENS, 3 * _GROUPS), _F32), "gains": ((2, ATTENTION), _F32),
            "cos": ((TOKENS, _PAIRS), _F32), "sin": ((TOKENS, _PAIRS), _F32), "memory_bias": ((SLOTS,), _F32),
            "memory": ((SLOTS, 2, TOKENS, ATTENTION), HALF), "context": ((2, TOKENS, ATTENTION), HALF),
            "y": ((TOKENS, ATTENTION), HALF),
        },
        {"num_heads": HEADS},
    ),
    "router_attention": Case(
        "router_attention",
        {
            "asked": ((LAYERS, QUERIES, ATTENTION), HALF), "context": ((LAYERS, 2, TOKENS, ATTENTION), HALF),
            "y": ((LAYERS, TOKENS, ATTENTION), HALF),
        },
        {"num_heads": HEADS},
    ),
    "context_write": Case(
        "context_write",
        {
            "kv": ((TOKENS, 2 * ATTENTION), HALF), "squares": ((TOKENS, 2 * _GROUPS), _F32), "gain": ((ATTENTION,), _F32),
            "cos": ((TOKENS, _PAIRS), _F32), "sin": ((TOKENS, _PAIRS), _F32), "context": ((2, TOKENS, ATTENTION), HALF),
        },
    ),
    "state_write": Case(
        "state_write",
        {
            "raw": ((1, LAYERS * 2 * ATTENTION), HALF), "squares": ((1, LAYERS * 2 * _GROUPS), _F32),
            "gains": ((LAYERS, ATTENTION), _F32), "text": ((LAYERS, 2, TEXT, ATTENTION), HALF),
            "y": ((LAYERS, 2, TEXT + 1, ATTENTION), HALF),
        },
    ),
}  # fmt: skip

CASES = {**HEAD, **ATTENTIONS}
for _format in FORMATS:
    CASES |= {**denoise_layer(_format), **planner_layer(_format), **router(_format)}

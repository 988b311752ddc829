"""Calls of every op with odd shapes, dtypes and strides, as `tests/contracts/test_kernel.py` puts them to the kernels.

Widths are those of `small` (4 heads of 48, no power of two) and stranger ones.  What is written is filled with NaN first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewam.kernels.call import Call
from edgewam.kernels.weights import pack

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
HEADS, WIDTH = 4, 192


@dataclass(frozen=True)
class Case:
    """One call and its operands by role.  must: a kernel of this op has to take it; others may be refused with a reason."""

    name: str
    call: Call
    operands: Mapping[str, Tensor]
    must: bool = True

    def copy(self):
        """The operands again, with their strides; what was one tensor stays one."""
        made = {
            id(tensor): torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            for tensor in self.operands.values()
        }
        return {role: made[id(tensor)].copy_(tensor) for role, tensor in self.operands.items()}


def make(op, name, roles, attributes=None, must=True):
    """A case out of role -> tensor."""
    call = Call(op, {role: role for role in roles}, attributes or {})
    return Case(f"{op}-{name}", call, roles, must)


class Draw:
    """Random tensors from one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, dtype=torch.float32, size=1.0):
        return (size * torch.randn(shape, generator=self.generator)).to(dtype)

    def positive(self, *shape):
        return 0.5 + torch.rand(shape, generator=self.generator)

    def mask(self, rows):
        return torch.arange(rows) % 3 == 0


def empty(*shape, dtype=torch.float32):
    return torch.full(shape, torch.nan).to(dtype)


def linear_cases():
    """Prologues, epilogues, batches, and every format of weights."""
    draw = Draw(0)

    def case(
        name, rows, ins, outs, dtype=torch.float32, weight="", group=0, batch=0, shared=False, must=True, attributes=None, **roles
    ):
        many = (batch,) if batch else ()
        packed = pack(draw(*many, outs, ins, size=ins**-0.5), weight or str(dtype).removeprefix("torch."), group)
        x_dtype = torch.float32 if (attributes or {}).get("norm") else dtype
        operands = {
            "x": draw(*(() if shared else many), rows, ins, dtype=x_dtype),
            "weight": packed.codes,
            "bias": draw(*many, outs),
        }
        if packed.scale is not None:
            operands["weight_scale"] = packed.scale
        operands |= {"y": empty(*many, rows, outs, dtype=dtype), **roles}
        return make("linear", name, operands, attributes, must)

    for name, dtype in FLOATS.items():
        yield case(f"bias-{name}", 5, 136, 72, dtype)
        squares = {"squares": empty(16, 3)}
        yield case(f"norm-squares-{name}", 16, 192, 192, dtype, attributes={"norm": True}, **squares)
    yield case("one-row", 1, 192, 320)
    yield case("many-rows", 130, 128, 64)
    modulation = {role: draw(128) for role in ("shift", "scale", "clean_shift", "clean_scale")} | {"mask": draw.mask(16)}
    yield case("modulated-gelu", 16, 128, 256, torch.float16, attributes={"norm": True, "activation": "gelu"}, **modulation)
    yield case("affine-norm", 7, 128, 192, attributes={"norm": True}, shift=draw(128), scale=draw(128))
    gates = {"gate": draw(136), "clean_gate": draw(136), "mask": draw.mask(16)}
    for name, dtype in FLOATS.items():
        stream = draw(16, 136)  # the residual stream is written where it was read, in float32
        x = draw(16, 192, dtype=dtype)
        made = case(f"gate-residual-{name}", 16, 192, 136, dtype, x=x, residual=stream, y=stream, **gates)
        yield made
    euler = {"delta": draw(1, size=0.1), "prefix": draw(16, 14), "mask": draw.mask(16), "residual": draw(16, 14)}
    yield case("euler", 16, 128, 14, torch.float32, **euler)
    coded = {"x": draw(16, 192, dtype=torch.float16), "y": empty(16, 96, dtype=torch.float16)}
    for weight, group in (("fp8", 0), ("int8", 0), ("int4", 0), ("int4", 64), ("int8", 64), ("fp8", 64)):
        yield case(f"{weight}-weights-{group}", 16, 192, 96, torch.float16, weight, group, attributes={"activations": "float16"},
                   must=weight == "int4" or not group, **coded)  # fmt: skip
    for weight in ("fp8", "int8"):
        scale = {"input_scale": torch.tensor([2.0 / {"fp8": 448, "int8": 127}[weight]])}
        yield case(f"{weight}-{weight}", 16, 192, 96, torch.float16, weight, attributes={"activations": weight}, **coded, **scale)
        smooth = {"smooth": draw.positive(192), **scale, "squares": empty(16, 3)}
        yield case(
            f"{weight}-smooth-norm",
            16,
            192,
            192,
            torch.float32,
            weight,
            attributes={"activations": weight, "norm": True},
            **smooth,
        )
    router = {"norm": True, "eps": 1e-5}
    yield case("batch-exact-gelu", 7, 192, 192, batch=3, attributes={**router, "activation": "gelu_exact"})
    yield case("batch-shared-x", 8, 128, 192, batch=3, shared=True, attributes=router)
    pairs = {"residual": draw(3, 2, 7, 192), "y": empty(3, 2, 7, 192)}
    yield case("batch-pairs-residual", 7, 192, 384, batch=3, attributes={"pairs": True}, **pairs)


def attention_cases():
    """All six other ops."""
    draw = Draw(1)
    angles = draw(16, WIDTH // HEADS // 2)

    def projected(rows, columns, dtype):
        qkv = draw(rows, columns, dtype=dtype)
        return qkv, qkv.float().pow(2).unflatten(-1, (-1, 64)).sum(-1)

    def turned(rows):
        return {"cos": angles[:rows].cos().contiguous(), "sin": angles[:rows].sin().contiguous()}

    for name, dtype in FLOATS.items():
        for rows, tokens in ((16, 30), (5, 7)):
            qkv, squares = projected(rows, 3 * WIDTH, dtype)
            own = {"qkv": qkv, "squares": squares, "gains": draw.positive(2, WIDTH) * 0.3, **turned(rows)}
            heads = {"num_heads": HEADS}
            routed = {"routed": draw(2, tokens, WIDTH, dtype=dtype), "y": empty(rows, WIDTH, dtype=dtype)}
            yield make("chunk_attention", f"{rows}-{name}", own | routed, heads)
            context = {"context": empty(2, rows, WIDTH, dtype=dtype)}
            slots = draw(3, 4, 2, tokens, WIDTH, dtype=dtype)[:, 1]  # one layer of a ring of slots
            hidden = torch.tensor([0.0, -torch.inf, 0.0])
            planner = own | context | {"y": routed["y"]}
            yield make("memory_attention", f"{rows}-{name}", planner | {"memory": slots, "memory_bias": hidden}, heads)
            nothing = {"memory": slots[:0], "memory_bias": hidden[:0]}
            yield make("memory_attention", f"empty-{rows}-{name}", planner | nothing, heads, must=False)
            kv, squares = projected(rows, 2 * WIDTH, dtype)
            last = {"kv": kv, "squares": squares, "gain": own["gains"][1], **turned(rows)}
            yield make("context_write", f"{rows}-{name}", last | context)
            behind = {"kv": qkv[:, WIDTH:], "squares": own["squares"][:, WIDTH // 64 :]}
            yield make("context_write", f"behind-queries-{rows}-{name}", last | behind | context)
            q, squares = projected(rows, WIDTH, dtype)
            bias = draw(tokens + 3)
            bias[1] = -torch.inf
            text = {"q": q, "squares": squares, "kv": draw(2, tokens + 3, WIDTH, dtype=dtype), "bias": bias, "y": routed["y"]}
            yield make("text_attention", f"{rows}-{name}", text, heads)
            yield make("text_attention", f"gain-{rows}-{name}", text | {"gain": draw.positive(WIDTH)}, heads)
            asked = {"asked": draw(3, 8, WIDTH, dtype=dtype, size=0.2), "context": draw(3, 2, tokens, WIDTH, dtype=dtype)}
            yield make("router_attention", f"{tokens}-{name}", asked | {"y": empty(3, tokens, WIDTH, dtype=dtype)}, heads)
            raw, squares = projected(1, 3 * 2 * WIDTH, dtype)
            state = {"raw": raw, "squares": squares, "gains": draw.positive(3, WIDTH)}
            state |= {"text": draw(3, 2, tokens, WIDTH, dtype=dtype), "y": empty(3, 2, tokens + 1, WIDTH, dtype=dtype)}
            yield make("state_write", f"{tokens}-{name}", state)


CASES = [*linear_cases(), *attention_cases()]

"""Random operands of the attention ops, one run of an op in the interpreter, and what its reference says in float64."""

import importlib
from dataclasses import replace

import torch

from edgewam.kernels.bound import bind_kernel
from edgewam.kernels.call import Call
from edgewam.kernels.reference import REFERENCES, SQUARE_COLUMNS
from edgewam.kernels.target import target_of

INTERPRETER = target_of("cpu")
# Tolerances of one result, whose values are averages of numbers of size 1.
TOLERANCE = {
    torch.float32: 2e-5,  # 24 bits, sums of at most 300 terms in another order, sines of size 1
    torch.float16: 4e-3,  # queries, weights and the result are rounded to 11 bits, logits of size 4 so to 2e-3
    torch.bfloat16: 2e-2,  # the interpreter stores the upper 8 bits as they are, without rounding
}


def op_module(op):
    return importlib.import_module(f"edgewam.kernels.ops.{op}")


def ran(op, inputs, outputs, attributes=None, **changed):
    """Outputs of an op; they start as NaN.  changed: fields of the default variant."""
    for tensor in outputs.values():
        tensor.fill_(float("nan"))
    module, call, tensors = op_module(op), Call(op, {}, attributes or {}), {**inputs, **outputs}
    assert module.support(call, tensors, INTERPRETER) == ""
    variant = replace(module.variants(call, tensors, INTERPRETER)[0], **changed)
    bind_kernel(module, call, tensors, variant, INTERPRETER)()
    return outputs


def check(op, inputs, outputs, attributes=None, tolerance=None, **changed):
    """An op equals its reference, which gets the same numbers in float64."""
    found = ran(op, inputs, outputs, attributes, **changed)
    wanted = REFERENCES[op](**{role: tensor.double() for role, tensor in inputs.items()}, **(attributes or {}))
    for role, tensor in found.items():
        limit = tolerance or TOLERANCE[tensor.dtype]
        torch.testing.assert_close(tensor.double(), wanted[role], atol=limit, rtol=limit)


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def squares_of(x):
    return x.float().pow(2).unflatten(-1, (-1, SQUARE_COLUMNS)).sum(-1)


def turned_inputs(rows, num_heads, head, parts, dtype):
    """qkv of `parts` (3, or 2 without queries), its squares, gains with the softmax scale, and angles."""
    width = num_heads * head
    qkv = 3.0 * normal(rows, parts * width, dtype=dtype)  # its RMS is not 1
    gains = 1 + 0.2 * normal(parts - 1, width)
    if parts == 3:
        gains[0] *= head**-0.5
    angles = 3 * normal(rows, head // 2, seed=1)
    return {"qkv": qkv, "squares": squares_of(qkv), "gains": gains, "cos": angles.cos(), "sin": angles.sin()}


def chunk(rows, tokens, num_heads, head, dtype):
    width = num_heads * head
    inputs = turned_inputs(rows, num_heads, head, 3, dtype) | {"routed": normal(2, tokens, width, dtype=dtype)}
    return inputs, {"y": torch.empty(rows, width, dtype=dtype)}, {"num_heads": num_heads}


def text(rows, keys, num_heads, head, dtype, gain=True):
    width = num_heads * head
    q = 3.0 * normal(rows, width, dtype=dtype)
    scale = head**-0.5 * (1 + 0.2 * normal(width))
    kv = normal(2, keys, width, dtype=dtype)
    if not gain:
        kv[0] *= scale
    inputs = {"q": q, "squares": squares_of(q), "kv": kv, "bias": normal(keys)} | ({"gain": scale} if gain else {})
    return inputs, {"y": torch.empty(rows, width, dtype=dtype)}, {"num_heads": num_heads}


def memory(rows, slots, tokens, num_heads, head, dtype, layers=2):
    """The memory is one layer's part of a state [slots, layers, 2, tokens, A]; the slot in the middle is empty."""
    width = num_heads * head
    bias = torch.zeros(slots)
    bias[slots // 2 : slots // 2 + 1] = float("-inf")
    seen = {"memory": normal(slots, layers, 2, tokens, width, dtype=dtype)[:, 1], "memory_bias": bias}
    outputs = {"context": torch.empty(2, rows, width, dtype=dtype), "y": torch.empty(rows, width, dtype=dtype)}
    return turned_inputs(rows, num_heads, head, 3, dtype) | seen, outputs, {"num_heads": num_heads}


def router(layers, queries, tokens, num_heads, head, dtype):
    """The queries are a view of one product's output [Q, layers x A]."""
    width = num_heads * head
    asked = (head**-0.5 * normal(queries, layers * width, dtype=dtype)).unflatten(1, (layers, width)).transpose(0, 1)
    inputs = {"asked": asked, "context": normal(layers, 2, tokens, width, dtype=dtype)}
    return inputs, {"y": torch.empty(layers, tokens, width, dtype=dtype)}, {"num_heads": num_heads}


def state(layers, rows, width, dtype, raw_dtype=torch.float32):
    raw = 3.0 * normal(1, layers * 2 * width, dtype=raw_dtype)
    inputs = {
        "raw": raw,
        "squares": squares_of(raw),
        "gains": 1 + 0.2 * normal(layers, width),
        "text": normal(layers, 2, rows, width, dtype=dtype),
    }
    return inputs, {"y": torch.empty(layers, 2, rows + 1, width, dtype=dtype)}, {}


def last(rows, num_heads, head, dtype, queries=False):
    """Keys and values of the last layer; with `queries`, as a part of a projection that has them in front."""
    width = num_heads * head
    inputs = turned_inputs(rows, num_heads, head, 3 if queries else 2, dtype)
    inputs |= {"kv": inputs.pop("qkv")[:, -2 * width :], "gain": inputs.pop("gains")[-1]}
    inputs["squares"] = inputs["squares"][:, -2 * width // SQUARE_COLUMNS :]
    return inputs, {"context": torch.empty(2, rows, width, dtype=dtype)}, {}


# one small case of every op
SMALL = {
    "chunk_attention": lambda dtype: chunk(7, 30, 4, 16, dtype),
    "text_attention": lambda dtype: text(7, 31, 4, 16, dtype),
    "memory_attention": lambda dtype: memory(7, 3, 5, 4, 48, dtype),
    "router_attention": lambda dtype: router(2, 8, 30, 2, 16, dtype),
    "context_write": lambda dtype: last(7, 4, 16, dtype),
    "state_write": lambda dtype: state(2, 5, 64, dtype),
}

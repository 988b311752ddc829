"""What the attention ops refuse, in one sentence, and what they offer to autotuning and to ahead-of-time compilation."""

import pytest
import torch

from edgewam.kernels.call import Call
from edgewam.kernels.source import source
from edgewam.kernels.target import TARGETS
from tests.kernels.attention_inputs import INTERPRETER, SMALL, chunk, last, memory, op_module, router, state, text

pytest.importorskip("triton")
F16, F32 = torch.float16, torch.float32


def _strided(tensor):
    return tensor.repeat_interleave(2, -1)[..., ::2]


REFUSALS = {
    "'qkv' and 'routed' of two dtypes": ("chunk_attention", chunk(7, 5, 4, 16, F16), "routed", torch.Tensor.float, "one dtype"),
    "float64": ("chunk_attention", chunk(7, 5, 4, 16, F32), "qkv", torch.Tensor.double, "float64"),
    "cos of 16 bits": ("chunk_attention", chunk(7, 5, 4, 16, F16), "cos", torch.Tensor.half, "'cos' is float16, not float32"),
    "a spread last axis": ("chunk_attention", chunk(7, 5, 4, 16, F32), "routed", _strided, "stride 2"),
    "too many keys": ("chunk_attention", chunk(1, 1025, 1, 64, F32), None, None, "up to 1024"),
    "a wide head": ("chunk_attention", chunk(1, 5, 1, 320, F32), None, None, "up to 256"),
    "an odd head": ("text_attention", text(1, 5, 64, 1, F32), None, None, "1 wide"),
    "squares of another width": ("text_attention", text(7, 5, 4, 16, F32), "squares", lambda x: x.repeat(1, 2), "128, not 64"),
    "a bias of another length": ("text_attention", text(7, 5, 4, 16, F32), "bias", lambda x: x[1:], "'bias' is 4, not 5"),
    "a missing axis": ("text_attention", text(7, 5, 4, 16, F32), "kv", lambda x: x[0], "2 axes, not 3"),
    "another device": ("memory_attention", memory(7, 2, 5, 4, 16, F32), None, None, "on cuda"),
    "too many queries": ("router_attention", router(1, 65, 5, 2, 16, F32), None, None, "up to 64"),
    "gains without keys": ("memory_attention", memory(7, 2, 5, 4, 32, F32), "gains", lambda x: x[:1], "'gains' is 1, not 2"),
    "rows of text that are apart": ("state_write", state(2, 5, 64, F32), "text", lambda x: x[:, :, ::2], "stride of the rows"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_support_says_why_not(name):
    op, (inputs, outputs, attributes), role, change, words = REFUSALS[name]
    tensors = {**inputs, **outputs}
    if role:
        tensors[role] = change(tensors[role])
    if name.startswith("rows of text"):
        tensors["y"] = tensors["y"][:, :, :4]
    why = op_module(op).support(Call(op, {}, attributes), tensors, TARGETS[90] if name == "another device" else INTERPRETER)
    assert words in why and why.endswith(".") and why.count(". ") == 0, why


def test_a_tensor_that_is_not_there_is_named():
    inputs, outputs, attributes = SMALL["text_attention"](F32)
    why = op_module("text_attention").support(Call("text_attention", {}, attributes), inputs, INTERPRETER)
    assert outputs and why == "There is no tensor for 'y'."


FULL = {  # sizes of the released model; tensors without memory
    "chunk_attention": lambda: _chunk(16, 120, 24, 128),
    "text_attention": lambda: _text(120, 131, 24, 128),
    "memory_attention": lambda: _memory(),
    "router_attention": lambda: _router(),
    "context_write": lambda: _last(),
    "state_write": lambda: _state(),
}


def _empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def _turned(rows):
    angles = {name: _empty(rows, 64, dtype=F32) for name in ("cos", "sin")}
    return {"qkv": _empty(rows, 9216), "squares": _empty(rows, 144, dtype=F32), "gains": _empty(2, 3072, dtype=F32), **angles}


def _chunk(rows, tokens, num_heads, head):
    width = num_heads * head
    return {**_turned(rows), "routed": _empty(2, tokens, width), "y": _empty(rows, width)}, {"num_heads": num_heads}


def _text(rows, keys, num_heads, head):
    width = num_heads * head
    wide = {"squares": _empty(rows, width // 64, dtype=F32), "bias": _empty(keys, dtype=F32)}
    return {"q": _empty(rows, width), **wide, "kv": _empty(2, keys, width), "y": _empty(rows, width)}, {"num_heads": num_heads}


def _memory():
    seen = {"memory": _empty(6, 30, 2, 120, 3072)[:, 3], "memory_bias": _empty(6, dtype=F32)}
    return {**_turned(120), **seen, "context": _empty(30, 2, 120, 3072)[7], "y": _empty(120, 3072)}, {"num_heads": 24}


def _router():
    asked = _empty(32, 30 * 3072).view(32, 30, 3072).transpose(0, 1)
    return {"asked": asked, "context": _empty(30, 2, 120, 3072), "y": _empty(30, 120, 3072)}, {"num_heads": 24}


def _last():
    wide = {"squares": _empty(120, 96, dtype=F32), "gain": _empty(3072, dtype=F32)}
    angles = {name: _empty(120, 64, dtype=F32) for name in ("cos", "sin")}
    return {"kv": _empty(120, 6144), **wide, **angles, "context": _empty(30, 2, 120, 3072)[29]}, {}


def _state():
    wide = {"squares": _empty(1, 30 * 96, dtype=F32), "gains": _empty(30, 3072, dtype=F32)}
    return {"raw": _empty(1, 30 * 6144), **wide, "text": _empty(30, 2, 50, 3072), "y": _empty(30, 2, 51, 3072)}, {}


@pytest.mark.parametrize("sm", TARGETS)
@pytest.mark.parametrize("op", FULL)
def test_full_size_is_supported_and_its_programs_name_every_argument(op, sm):
    tensors, attributes = FULL[op]()
    module, call, target = op_module(op), Call(op, {}, attributes), TARGETS[sm]
    assert module.support(call, tensors, target) == ""
    found = module.variants(call, tensors, target)
    assert len(set(found)) == len(found) > 1
    assert found[0].dependent == target.has_dependent_launch and not any(v.dependent for v in found if sm < 90)
    for variant in found:
        (launch,) = module.launches(call, tensors, variant, target)
        program = launch.program()
        kernel = getattr(source(program.source, interpreted=False), program.function)
        assert sorted([*program.signature, *program.constants]) == sorted(kernel.arg_names)
        assert program.constants["DEPENDENT"] == variant.dependent


@pytest.mark.parametrize("op", SMALL)
def test_the_widest_heads_in_float32_leave_tiles_to_choose_on_the_smallest_target(op):
    inputs, outputs, attributes = {
        "chunk_attention": lambda: chunk(16, 120, 1, 256, F32),
        "text_attention": lambda: text(16, 131, 1, 256, F32),
        "memory_attention": lambda: memory(30, 2, 120, 1, 256, F32),
        "router_attention": lambda: router(1, 32, 120, 1, 256, F32),
        "context_write": lambda: last(16, 1, 256, F32),
        "state_write": lambda: state(1, 120, 256, F32),
    }[op]()
    assert op_module(op).variants(Call(op, {}, attributes), {**inputs, **outputs}, TARGETS[89])

"""Every fused op in plain PyTorch: what the kernels are defined by, and what runs where there is none.

Letters: S rows, D width, A attention width, N heads, K head width, L layers.  Numbers: whatever comes in is made float32 (or
float64, for proofs), `activations` says what a product's input is rounded to, and whoever calls rounds the result to the
output's dtype.  A norm, a gain or a modulation that is absent is not applied.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewam.kernels.weights import LARGEST, from_nibbles

EPS = 1e-6  # of the norms of the DiT blocks; the router's have 1e-5 (facts/aha_wam.md)
SQUARE_COLUMNS = 64  # columns whose squares are summed together: a divisor of every attention width there is
_ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_GELU = {"gelu": "tanh", "gelu_exact": "none"}


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    clean_shift: Tensor | None = None,
    clean_scale: Tensor | None = None,
    mask: Tensor | None = None,
    smooth: Tensor | None = None,
    input_scale: Tensor | None = None,
    gate: Tensor | None = None,
    clean_gate: Tensor | None = None,
    residual: Tensor | None = None,
    delta: Tensor | None = None,
    prefix: Tensor | None = None,
    *,
    norm: bool = False,
    eps: float = EPS,
    activation: str = "none",
    activations: str = "none",
    pairs: bool = False,
    **_: Any,
) -> dict[str, Tensor]:
    """y = residual + gate * activation(W (norm(x) * scale + shift) + bias), for one layer or a batch of them.

    Args:
        x: [S, in], or [L, S, in] for L layers (a shared [S, in] too).
        weight: [out, in] or [L, out, in] in a float dtype or codes; INT4 codes are two a byte, [out, in / 2].
        weight_scale: of codes: [out], or [out, in / group] for groups of inputs; with L in front for a batch.
        bias: [out] or [L, out].
        shift, scale: [in], after the norm; clean_shift and clean_scale take their place in rows where `mask` [S] is true.
        smooth: [in], multiplied in before rounding (SmoothQuant).
        input_scale: [1] of one code, for `activations` of 8 bits.
        gate, clean_gate: [out], chosen by `mask` like the modulation.
        residual: like y.
        delta, prefix: [1] and [S, out]: an Euler step, y = prefix where `mask`, else residual + delta * product.
        norm: LayerNorm without weights over `in`.
        eps: of that norm.
        activation: "none", "gelu" (tanh form) or "gelu_exact" (erf form, as the router has it).
        activations: "none", "float16", "bfloat16", "fp8" or "int8": what the product's input is rounded to.
        pairs: y is [.., 2, S, out / 2], the halves of `out` apart, as keys and values lie.

    Returns:
        y, and squares [.., S, out / 64]: sums of squares of (product + bias) over 64 columns each.
    """
    x = _float(x)
    if norm:
        x = F.layer_norm(x, x.shape[-1:], eps=eps)
    if scale is not None and shift is not None:
        x = x * _chosen(scale, clean_scale, mask) + _chosen(shift, clean_shift, mask)
    if smooth is not None:
        x = x * smooth
    x = _rounded(x, activations, input_scale)
    product = x @ dequantized(weight, weight_scale, x.dtype).transpose(-1, -2)
    if bias is not None:
        product = product + _float(bias)[..., None, :]
    squares = product.pow(2).unflatten(-1, (-1, SQUARE_COLUMNS)).sum(-1) if product.shape[-1] % SQUARE_COLUMNS == 0 else None
    assert activation == "none" or activation in _GELU, activation
    if activation != "none":
        product = F.gelu(product, approximate=_GELU[activation])
    if pairs:
        product = product.unflatten(-1, (2, -1)).transpose(-2, -3)
    if gate is not None:
        product = product * _chosen(gate, clean_gate, mask)
    if delta is not None:
        product = product * delta
    if residual is not None:
        product = _float(residual) + product
    if prefix is not None:
        assert mask is not None
        product = torch.where(mask[:, None], _float(prefix), product)
    return {"y": product} if squares is None else {"y": product, "squares": squares}


def dequantized(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The numbers that codes stand for, [.., out, in]; a float weight is only cast.

    INT4: byte i of a row holds input 2 i in its low and input 2 i + 1 in its high half, each + 8.
    """
    if weight.dtype == torch.uint8:
        weight = from_nibbles(weight)
    weight = weight.to(dtype)
    if scale is None:
        return weight
    scale = scale.to(dtype)
    if scale.dim() == weight.dim():
        return (weight.unflatten(-1, (scale.shape[-1], -1)) * scale[..., None]).flatten(-2)
    return weight * scale[..., None]


def chunk_attention(
    qkv: Tensor, squares: Tensor, gains: Tensor, cos: Tensor, sin: Tensor, routed: Tensor, *, num_heads: int, **_: Any
) -> dict[str, Tensor]:
    """Self-attention of the chunk's rows over routed keys and their own, from one projection.

    qkv [S, 3 A] and its squares [S, 3 A / 64], gains [2, A] of queries (with the softmax scale) and keys, cos and sin [S, K / 2],
    routed [2, tokens, A] ready keys and values -> y [S, A].
    """
    q, own = _queries_and_context(qkv, squares, gains, cos, sin)
    k, v = torch.cat([_float(routed), own], dim=1).unbind(0)
    return {"y": _attend(q, k, v, num_heads)}


def context_write(kv: Tensor, squares: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> dict[str, Tensor]:
    """Keys normed over all heads, multiplied with their gains and turned; keys and values as a context.

    kv [S, 2 A] and its squares [S, 2 A / 64], gain [A] of the keys, cos and sin [S, K / 2] -> context [2, S, A].
    """
    k, v = _float(kv).chunk(2, dim=-1)
    k = _turned(k * _spread(squares, gain.shape[-1])[:, :1] * gain, cos, sin)
    return {"context": torch.stack([k, v])}


def text_attention(
    q: Tensor, squares: Tensor, kv: Tensor, bias: Tensor, gain: Tensor | None = None, *, num_heads: int, **_: Any
) -> dict[str, Tensor]:
    """Cross-attention over ready keys and values: q [S, A] raw, squares [S, A / 64], kv [2, keys, A], bias [keys] -> y [S, A].

    gain [A]: of the queries, with the softmax scale, where it is not part of the keys.
    """
    width = q.shape[-1]
    q = _float(q) * _spread(squares, width)
    k, v = _float(kv).unbind(0)
    return {"y": _attend(q if gain is None else q * gain, k, v, num_heads, _float(bias))}


def memory_attention(
    qkv: Tensor, squares: Tensor, gains: Tensor, cos: Tensor, sin: Tensor, memory: Tensor, memory_bias: Tensor, *,
    num_heads: int, **_: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Self-attention of a frame's rows over remembered frames and their own keys, which become its context.

    qkv [S, 3 A], squares, gains [2, A], cos and sin as for `chunk_attention`, memory [slots, 2, tokens, A], memory_bias [slots]
    (0 or -inf) -> y [S, A], context [2, S, A].
    """
    q, own = _queries_and_context(qkv, squares, gains, cos, sin)
    k, v = torch.cat([_float(memory).transpose(0, 1).flatten(1, 2), own], dim=1).unbind(0)
    bias = torch.cat([_float(memory_bias).repeat_interleave(memory.shape[2]), torch.zeros_like(k[: own.shape[1], 0])])
    return {"y": _attend(q, k, v, num_heads, bias), "context": own}


def router_attention(asked: Tensor, context: Tensor, *, num_heads: int, **_: Any) -> dict[str, Tensor]:
    """Queries read the context, and the context reads what they found.

    asked [L, Q, A] with the softmax scale, context [L, 2, tokens, A] -> y [L, tokens, A].
    """
    scale = (asked.shape[-1] // num_heads) ** -0.5
    out = []
    for q, (k, v) in zip(_float(asked), _float(context).unbind(0), strict=True):
        read = _attend(q, k, v, num_heads)
        out.append(_attend(k * scale, read, read, num_heads))
    return {"y": torch.stack(out)}


def state_write(raw: Tensor, squares: Tensor, gains: Tensor, text: Tensor, **_: Any) -> dict[str, Tensor]:
    """The state's key and value of every layer behind those of the text.

    raw [1, L 2 A], squares of it, gains [L, A], text [L, 2, R, A] -> y [L, 2, R + 1, A].
    """
    layers, width = gains.shape
    own, spread = _float(raw).view(layers, 2, width), _spread(squares, width).view(layers, 2, 1)
    own = torch.stack([own[:, 0] * spread[:, 0] * gains, own[:, 1]], dim=1)
    return {"y": torch.cat([_float(text), own[:, :, None]], dim=2)}


REFERENCES = {
    function.__name__: function
    for function in (linear, chunk_attention, text_attention, memory_attention, context_write, router_attention, state_write)
}


def _float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _chosen(row: Tensor, clean: Tensor | None, mask: Tensor | None) -> Tensor:
    """`row` [D], or in rows where the mask is true, `clean`."""
    return row if clean is None or mask is None else torch.where(mask[:, None], clean, row)


def _rounded(x: Tensor, activations: str, input_scale: Tensor | None) -> Tensor:
    if activations in _ROUNDED:
        return x.to(_ROUNDED[activations]).to(x.dtype)
    if activations in ("fp8", "int8"):
        assert input_scale is not None
        largest = LARGEST[activations]
        codes = (x / input_scale).clamp(-largest - (activations == "int8"), largest)
        return (codes.round() if activations == "int8" else codes.to(torch.float8_e4m3fn).to(x.dtype)) * input_scale
    return x


def _spread(squares: Tensor, width: int) -> Tensor:
    """One over the RMS of each group of `width` columns, [S, groups]."""
    return (_float(squares).unflatten(-1, (-1, width // SQUARE_COLUMNS)).sum(-1) / width + EPS).rsqrt()


def _queries_and_context(qkv: Tensor, squares: Tensor, gains: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [S, A], and keys and values [2, S, A], from a projection qkv [S, 3 A]."""
    width = gains.shape[-1]
    q = _float(qkv[:, :width]) * _spread(squares, width)[:, :1] * gains[0]
    kv = context_write(qkv[:, width:], squares[:, width // SQUARE_COLUMNS :], gains[1], cos, sin)
    return _turned(q, cos, sin), kv["context"]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved pairs of every head of x [S, A] turned by cos and sin [S, K / 2]."""
    a, b = x.unflatten(-1, (-1, cos.shape[-1], 2)).unbind(-1)  # [S, N, K / 2]
    cos, sin = _float(cos)[:, None], _float(sin)[:, None]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(0, 1) for x in (q, k, v))
    logits = q @ k.transpose(1, 2)
    return ((logits if bias is None else logits + bias).softmax(-1) @ v).transpose(0, 1).flatten(1)

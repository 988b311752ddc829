"""The reference is the model: in float64, fused ops give what the plain layers of the stages give, rewritten or not."""

import pytest
import torch
from torch import nn

from edgewam.compile.rewritten_layers import FoldedCross, LastKeyValue
from edgewam.compile.rewritten_router import BatchEdit, LayerAsk, LayerEdit, MergedAsk
from edgewam.compile.rewritten_stage import changed
from edgewam.kernels import reference
from edgewam.kernels.weights import nibbles
from edgewam.models.dit_block import DitBlock
from edgewam.models.ovcr import KeyValueEditor
from edgewam.models.stage_layers import CrossAttention, FeedForward, KeyValues, QueryKeyValue, Turn, apply, attention, modulated
from tests.compile.rewritten import in_float64

SAME = 1e-12  # relative to the largest value, in float64: the same sums, regrouped
HEADS, WIDTH, DIM, ROWS, TOKENS = 4, 192, 40, 5, 7


@pytest.fixture(autouse=True)
def everything_is_float64():
    torch.manual_seed(3)
    with in_float64(), torch.no_grad():
        yield


def lively(module):
    """float64, with every one-dimensional parameter away from ones and zeros."""
    for parameter in module.requires_grad_(False).parameters():
        if parameter.dim() == 1 or not parameter.any():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double().eval()


def block():
    return lively(DitBlock(DIM, 56, WIDTH, HEADS))


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def table(rows):
    """cos and sin [rows, K / 2], and as `Turn` wants them."""
    angles = draw(rows, WIDTH // HEADS // 2)
    return angles.cos(), angles.sin(), Turn.prepare(angles.cos(), angles.sin())


def same(found, expected):
    assert found.dtype == torch.float64 and found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < SAME


def linear(layer, x, **roles):
    return reference.linear(x, layer.weight, bias=layer.bias, **roles)


def modulation():
    """Rows of the step and of timestep 0, and the mask that chooses: (roles of linear, shift and scale and gate per row)."""
    step, clean = draw(3, DIM), draw(3, DIM)
    mask = torch.arange(ROWS) < 2
    shift, scale, gate = torch.where(mask[:, None], clean[:, None], step[:, None])
    roles = {"shift": step[0], "scale": step[1], "clean_shift": clean[0], "clean_scale": clean[1], "mask": mask}
    gates = {"gate": step[2], "clean_gate": clean[2], "mask": mask}
    return roles, gates, (shift, scale, gate)


def test_self_attention_of_a_chunk():
    layer = block().self_attn
    qkv, h, routed = QueryKeyValue(layer).double(), draw(ROWS, DIM), draw(2, TOKENS, WIDTH)
    cos, sin, prepared = table(ROWS)
    roles, gates, (shift, scale, gate) = modulation()
    q, own = qkv(modulated(h, shift, scale), prepared)
    k, v = torch.cat([routed, own], dim=1).unbind(0)
    expected = h + gate * apply(layer.o, attention(q, k, v, HEADS))

    projected = linear(qkv.project, h, norm=True, **roles)
    y = reference.chunk_attention(projected["y"], projected["squares"], qkv.gains, cos, sin, routed, num_heads=HEADS)["y"]
    same(linear(layer.o, y, residual=h, **gates)["y"], expected)


def test_keys_and_values_with_their_turn():
    qkv, x = QueryKeyValue(block().self_attn).double(), draw(ROWS, DIM)
    cos, sin, prepared = table(ROWS)
    last = LastKeyValue(qkv)
    projected = linear(last.project, x)
    found = reference.context_write(projected["y"], projected["squares"], last.gain, cos, sin)["context"]
    same(found, last(x, prepared)[1])
    same(found, qkv(x, prepared)[1])


@pytest.mark.parametrize("form", ["plain", "folded", "late"])
def test_text_attention(form):
    whole = block()
    cross, h, kv, bias = CrossAttention(whole.norm3, whole.cross_attn), draw(ROWS, DIM), draw(2, TOKENS, WIDTH), draw(TOKENS)
    bias[2] = -torch.inf
    norm = {"shift": cross.norm_bias, "scale": cross.norm_weight}
    layer, gain = cross, cross.gain
    if form != "plain":
        layer, norm, gain = changed(FoldedCross(cross), norm_weight=None, norm_bias=None, gain=None), {}, None
        layer.late = form == "late"
    q = linear(cross.query, h, norm=True, **norm)
    y = reference.text_attention(q["y"], q["squares"], kv, bias, gain, num_heads=HEADS)["y"]
    same(linear(cross.out, y, residual=h)["y"], h + layer(h, kv, bias))


def test_feed_forward():
    ffn, h = FeedForward(block().ffn), draw(ROWS, DIM)
    roles, gates, (shift, scale, gate) = modulation()
    up = linear(ffn.up, h, norm=True, activation="gelu", **roles)["y"]
    same(linear(ffn.down, up, residual=h, **gates)["y"], h + gate * ffn(modulated(h, shift, scale)))


def test_memory_attention():
    memory, hidden = draw(3, 2, TOKENS, WIDTH), torch.tensor([0.0, -torch.inf, 0.0], dtype=torch.float64)
    qkv, x = QueryKeyValue(block().self_attn).double(), draw(ROWS, DIM)
    cos, sin, prepared = table(ROWS)
    q, own = qkv(x, prepared)
    projected = linear(qkv.project, x)
    given = (projected["y"], projected["squares"], qkv.gains, cos, sin)
    k, v = torch.cat([memory.transpose(0, 1).flatten(1, 2), own], dim=1).unbind(0)
    bias = torch.cat([hidden.repeat_interleave(TOKENS), torch.zeros(ROWS)])
    found = reference.memory_attention(*given, memory, hidden, num_heads=HEADS)
    same(found["y"], attention(q, k, v, HEADS, bias))
    same(found["context"], own)
    alone = reference.memory_attention(*given, memory[:0], hidden[:0], num_heads=HEADS)["y"]
    same(alone, attention(q, *own.unbind(0), HEADS))


def test_router_edit():
    editor = lively(KeyValueEditor(3, HEADS, WIDTH, DIM, 0.5))
    ask = LayerAsk(editor.layer_query_proj, (WIDTH // HEADS) ** -0.5)
    queries, context = draw(8, DIM), draw(3, 2, TOKENS, WIDTH)
    expected = LayerEdit(editor.layer_delta_proj, None, HEADS)(context, ask(queries))

    merged = MergedAsk(ask)
    asked = linear(merged.project, queries, norm=True, eps=merged.norm.eps)["y"].unflatten(-1, (3, WIDTH)).transpose(0, 1)
    same(asked, ask(queries))
    y = reference.router_attention(asked, context, num_heads=HEADS)["y"]
    edit = BatchEdit(LayerEdit([_bare(delta) for delta in editor.layer_delta_proj], None, HEADS))
    up = reference.linear(y, edit.up_weight, bias=edit.up_bias, norm=True, eps=edit.norm.eps, activation="gelu_exact")["y"]
    found = reference.linear(up, edit.down_weight, bias=edit.down_bias, residual=context, pairs=True)["y"]
    same(found, edit(context, asked))
    same(found, expected)


def _bare(delta):
    """The norm's weights in the layer behind it, as `fold_delta` puts them there."""
    norm, up, activation, down = delta
    folded = nn.Linear(up.in_features, up.out_features, dtype=torch.float64)
    folded.weight.copy_(up.weight * norm.weight)
    folded.bias.copy_(up.bias + up.weight @ norm.bias)
    return nn.Sequential(nn.LayerNorm(WIDTH, norm.eps, elementwise_affine=False, dtype=torch.float64), folded, activation, down)


def test_the_keys_and_values_of_the_state():
    layers = KeyValues([block().cross_attn for _ in range(3)])
    embedded, text = draw(1, DIM), draw(3, 2, TOKENS, WIDTH)
    raw = linear(layers.project, embedded)
    found = reference.state_write(raw["y"], raw["squares"], layers.gains, text)["y"]
    same(found, torch.cat([text, layers(embedded)], dim=2))


def test_an_euler_step_restores_the_prefix():
    head, h, x, prefix, delta = nn.Linear(DIM, 14, dtype=torch.float64), draw(ROWS, DIM), draw(ROWS, 14), draw(ROWS, 14), draw(1)
    mask = torch.arange(ROWS) < 2
    found = linear(head, h, residual=x, delta=delta, prefix=prefix, mask=mask)["y"]
    same(found, torch.where(mask[:, None], prefix, x + delta * head(h)))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_batch_is_its_layers_one_by_one(batch):
    weight, bias, x = draw(3, 128, DIM), draw(3, 128), draw(*batch, ROWS, DIM)
    found = reference.linear(x, weight, bias=bias, norm=True, pairs=True)
    for index in range(3):
        alone = reference.linear(x[index] if batch else x, weight[index], bias=bias[index], norm=True, pairs=True)
        for role in ("y", "squares"):
            same(found[role][index], alone[role])


def test_codes_of_four_bits_with_a_scale_per_group():
    codes = torch.randint(-8, 8, (6, 128), dtype=torch.int8)
    scale = draw(6, 2).abs()
    found = reference.dequantized(nibbles(codes), scale, torch.float64)
    for group in range(2):
        same(found[:, 64 * group : 64 * (group + 1)], codes[:, 64 * group : 64 * (group + 1)] * scale[:, group, None])

"""Rewrites of planner, executor and the text and state stages that feed them: norms, gains, rotations, linear after linear.

`fold_cross_gains` changes what the buffers `planner_text`, `executor_text` and `cross` hold (keys times the query's gain), so it
changes all their writers and readers together; every other rewrite here leaves buffers as they were.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewam.compile.rewritten_stage import (
    RewriteRefused,
    Stages,
    changed,
    fold_affine,
    fold_chain,
    linear,
    module_of,
    with_modules,
)
from edgewam.core.stage import Stage
from edgewam.models.dit_block import NORM_EPS
from edgewam.models.planner_stage import PlannerLayers
from edgewam.models.stage_layers import CrossAttention, KeyValues, QueryKeyValue, apply, attention, rms, split_heads
from edgewam.models.wam_stages import DenoiseStage, StatesStage, StateStage, TextStage


class FoldedCross(nn.Module):
    """Text cross-attention whose constants may have moved: affine norm and gain are absent where they are folded.

    `late`: the RMS of a query divides its logits and not its channels.
    """

    def __init__(self, layer: CrossAttention) -> None:
        super().__init__()
        self.num_heads, self.query, self.out, self.late = layer.num_heads, layer.query, layer.out, False
        for name in ("gain", "norm_weight", "norm_bias"):
            self.register_buffer(name, getattr(layer, name), persistent=False)
        self.gain: Tensor | None
        self.norm_weight: Tensor | None
        self.norm_bias: Tensor | None

    def forward(self, x: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
        """x [S, D], kv [2, Sk, A], bias [Sk] -> update [S, D]."""
        affine = (None if part is None else part.to(x.dtype) for part in (self.norm_weight, self.norm_bias))
        q = apply(self.query, F.layer_norm(x, x.shape[-1:], *affine, NORM_EPS))
        if not self.late:
            q = rms(q) if self.gain is None else rms(q) * self.gain
            return apply(self.out, attention(q, kv[0], kv[1], self.num_heads, bias))
        spread = torch.sqrt(q.float().pow(2).mean(-1, keepdim=True) + NORM_EPS)
        q = q if self.gain is None else q * self.gain
        return apply(self.out, _attention_of_raw(q, spread, kv[0], kv[1], self.num_heads, bias))


def _attention_of_raw(q: Tensor, spread: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor) -> Tensor:
    """Attention of q / spread, dividing logits: q [Sq, A], spread [Sq, 1], k and v [Sk, A], bias [Sk] -> [Sq, A]."""
    q, k, v = split_heads(q, num_heads).to(v.dtype), split_heads(k, num_heads).to(v.dtype), split_heads(v, num_heads)
    logits = (q @ k.transpose(1, 2)).float() / spread + bias
    return (logits.softmax(-1).to(v.dtype) @ v).transpose(0, 1).flatten(1)


class PairTurn(nn.Module):
    """Turns interleaved pairs without a product, bit for bit like `Turn`: (a, b) -> (a cos - b sin, b cos + a sin)."""

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """x [S, P, A] (P kinds, such as queries and keys) -> the same, turned."""
        cos, sin = table
        split = x.unflatten(-1, (-1, cos.shape[-1]))
        a, b = split.unflatten(-1, (-1, 2)).unbind(-1)
        return (split * cos + torch.stack([-b, a], -1).flatten(-2) * sin).flatten(-2)


_READERS = {"planner": PlannerLayers, "denoise": DenoiseStage}
_TEXT_BUFFERS = ("planner_text", "planner_cross", "cross")  # what readers of one family or another attend to


def _reader(stages: Stages, name: str) -> PlannerLayers | DenoiseStage:
    return module_of(stages, name, _READERS[name])


def _cross_layers(stage: PlannerLayers | DenoiseStage) -> list[FoldedCross]:
    return [layer if isinstance(layer, FoldedCross) else FoldedCross(layer) for layer in stage.cross]


def fold_cross_norms(stages: Stages) -> dict[str, Stage]:
    """W (g n + h) + b = (W g) n + (W h + b): the affine norm before the cross-attention goes into its query projection."""
    modules = {}
    for name in _READERS:
        stage, layers = _reader(stages, name), []
        for layer in _cross_layers(stage):
            if layer.norm_weight is None or layer.norm_bias is None:
                raise RewriteRefused(f"the cross-attention norms of stage '{name}' are folded already")
            query = fold_affine(layer.query, layer.norm_weight, layer.norm_bias)
            layers.append(changed(layer, query=query, norm_weight=None, norm_bias=None))
        modules[name] = changed(stage, cross=nn.ModuleList(layers))
    return with_modules(stages, modules)


def fold_cross_gains(stages: Stages) -> dict[str, Stage]:
    """(q g).k = q.(k g): the query's RMS gain and the softmax scale go into the text keys, once per prompt and state."""
    text, state = module_of(stages, "text", TextStage), module_of(stages, "state", StateStage, StatesStage)
    modules: dict[str, nn.Module] = {}
    gains: dict[str, list[Tensor]] = {}
    for name in _READERS:
        stage = _reader(stages, name)
        layers = _cross_layers(stage)
        found = [layer.gain for layer in layers if layer.gain is not None]
        if len(found) != len(layers):
            raise RewriteRefused(f"the cross-attention gains of stage '{name}' are folded already")
        gains[name] = found
        modules[name] = changed(stage, cross=nn.ModuleList(changed(layer, gain=None) for layer in layers))
    modules["text"] = changed(
        text, planner=_with_gains(text.planner, gains["planner"]), executor=_with_gains(text.executor, gains["denoise"])
    )
    read_by = {"planner": gains["planner"], "executor": gains["denoise"]}
    modules["state"] = _with_each_state(
        state, lambda expert, part: changed(part, key_values=_with_gains(part.key_values, read_by[expert]))
    )
    return with_modules(stages, modules)


def _state_parts(stage: StateStage | StatesStage) -> dict[str, StateStage]:
    """The state's keys and values of each expert that has them."""
    return {"executor": stage} if isinstance(stage, StateStage) else {"planner": stage.planner, "executor": stage.executor}


def _with_each_state(
    stage: StateStage | StatesStage, change: Callable[[str, StateStage], StateStage]
) -> StateStage | StatesStage:
    """The stage with each expert's part, of which `change` is given the expert's name, exchanged."""
    parts = {expert: change(expert, part) for expert, part in _state_parts(stage).items()}
    return parts["executor"] if isinstance(stage, StateStage) else changed(stage, **parts)


def _with_gains(layer: KeyValues, gains: list[Tensor]) -> KeyValues:
    """Keys times gains, one [A] per layer; the planner's last layer has no reader and keeps its own."""
    own = layer.gains.double()
    read = torch.stack(gains).double()
    return changed(layer, gains=torch.cat([own[: len(read)] * read, own[len(read) :]]).to(layer.gains.dtype))


def scale_cross_logits(stages: Stages) -> dict[str, Stage]:
    """(q / r).k = (q.k) / r: the RMS of a query divides heads * keys logits and not `A` channels, where those are fewer.

    Raises:
        RewriteRefused: nowhere fewer (keys >= head width), or float16 weights, in which a raw logit may overflow.
    """
    modules = {}
    for name in _READERS:
        stage = _reader(stages, name)
        layers = _cross_layers(stage)
        if layers[0].query.weight.dtype == torch.float16:
            raise RewriteRefused("logits before their division can exceed the range of float16; use bfloat16 or float32")
        if all(layer.late for layer in layers):
            raise RewriteRefused(f"the cross-attention logits of stage '{name}' are divided already")
        keys = _num_keys(stages[name])
        if keys * layers[0].num_heads < layers[0].query.out_features:
            late = [changed(layer) for layer in layers]
            for layer in late:
                layer.late = True
            modules[name] = changed(stage, cross=nn.ModuleList(late))
    if not modules:
        raise RewriteRefused(
            "the text bucket holds at least as many keys as a head has channels, so dividing logits saves nothing"
        )
    return with_modules(stages, modules)


def _num_keys(stage: Stage) -> int:
    """Cross-attention keys of a reader: its text buffer [layers, 2, keys, A]."""
    (text,) = (spec for spec in stage.inputs if spec.name in _TEXT_BUFFERS)
    return text.shape[2]


def rotate_pairs(stages: Stages) -> dict[str, Stage]:
    """Rotary pairs turned element by element: no product with a constant matrix, which nothing can be fused with."""
    modules = {}
    for name in _READERS:
        stage = _reader(stages, name)
        layers: list[QueryKeyValue | LastKeyValue] = list(stage.qkv)
        if all(isinstance(layer.turn, PairTurn) for layer in layers):
            raise RewriteRefused(f"stage '{name}' turns pairs element by element already")
        modules[name] = changed(stage, qkv=nn.ModuleList(changed(layer, turn=PairTurn()) for layer in layers))
    return with_modules(stages, modules)


class LastKeyValue(nn.Module):
    """Keys and values of the planner's last layer, whose queries nothing reads."""

    def __init__(self, layer: QueryKeyValue) -> None:
        super().__init__()
        project, width = layer.project, layer.width
        rows = (part[width:].clone() for part in (project.weight, project.bias))  # a view would keep the queries' rows alive
        self.project = linear(*rows, project.weight)
        self.register_buffer("gain", layer.gains[1], persistent=False)
        self.gain: Tensor
        self.turn = layer.turn

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> tuple[None, Tensor]:
        """x [S, D] -> no queries, and keys and values [2, S, A] in the weights' dtype."""
        k, v = apply(self.project, x).chunk(2, dim=-1)
        k = self.turn(rms(k[:, None]) * self.gain, table)[:, 0]
        return None, torch.stack([k.to(v.dtype), v])


def drop_last_query(stages: Stages) -> dict[str, Stage]:
    """The planner ends with the keys and values of its last layer: the queries of that layer are not computed."""
    planner = module_of(stages, "planner", PlannerLayers)
    *before, last = planner.qkv
    if isinstance(last, LastKeyValue):
        raise RewriteRefused("the queries of the planner's last layer are dropped already")
    assert isinstance(last, QueryKeyValue)
    return with_modules(stages, {"planner": changed(planner, qkv=nn.ModuleList([*before, LastKeyValue(last)]))})


def fold_state(stages: Stages) -> dict[str, Stage]:
    """Linear behind linear: encoder and first embedding layer; last embedding layer and all keys and values."""
    state = module_of(stages, "state", StateStage, StatesStage)
    if any(len(part.embedding) == 1 for part in _state_parts(state).values()):
        raise RewriteRefused("the layers of stage 'state' are folded already")
    return with_modules(stages, {"state": _with_each_state(state, lambda _, part: _folded_state(part))})


def _folded_state(part: StateStage) -> StateStage:
    first, activation, last = part.embedding
    key_values = changed(part.key_values, project=fold_chain(last, part.key_values.project))
    encoder = fold_chain(part.encoder, first)  # type: ignore[arg-type]
    return changed(part, encoder=encoder, embedding=nn.ModuleList([activation]), key_values=key_values)

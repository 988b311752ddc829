"""The router in four exchangeable parts, and its rewrites: `Router(visual, pool, pooled, ask, edit)`.

    latent -> visual tokens -> pool (32 rows) -> queries -> ask (queries of every layer) -> edit (context of every layer)

A router that was only taken apart computes what `RouterStage` computes.  Linear layers stay so, with names for a quantiser:
visual.1, visual.3, pool.value.1, pool.value.3 (or pool.after), pooled.1, pooled.3, ask.project, edit.delta_proj.<layer>.1 and .3;
only `BatchEdit` holds its weights as stacks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewam.compile.rewritten_stage import (
    RewriteRefused,
    Stages,
    bare_norm,
    changed,
    fold_affine,
    linear,
    module_of,
    with_modules,
)
from edgewam.core.stage import Stage
from edgewam.models.aha_wam_stages import RouterStage
from edgewam.models.stage_layers import attention, merged


class Pool(nn.Module):
    """Visual tokens [S, D] -> weighted averages [Q, D] by constant queries [Q, D], which hold the softmax scale."""

    def __init__(self, queries: Tensor, norm: nn.Module, key: nn.Module, value: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.register_buffer("queries", queries, persistent=False)
        self.queries: Tensor
        self.norm, self.key, self.value, self.after = norm, key, value, after

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        tokens = self.norm(tokens)
        return self.after(attention(self.queries, self.key(tokens), self.value(tokens), num_heads=1))


class LayerAsk(nn.Module):
    """Routing queries [Q, D] -> those of every layer [layers, Q, A], one norm and product per layer."""

    def __init__(self, query_proj: Iterable[nn.Sequential], scale: float) -> None:
        super().__init__()
        self.query_proj, self.scale = nn.ModuleList(query_proj), scale

    def forward(self, queries: Tensor) -> Tensor:
        """See the class."""
        return torch.stack([project(queries) for project in self.query_proj]) * self.scale


class MergedAsk(nn.Module):
    """The same from one norm without weights and one product."""

    def __init__(self, ask: LayerAsk) -> None:
        super().__init__()
        self.num_layers = len(ask.query_proj)
        self.norm = bare_norm(ask.query_proj[0][0])
        # layer by layer, so that only one is in float64 at a time
        self.project = merged(*(fold_affine(p[1], p[0].weight, p[0].bias, ask.scale) for p in ask.query_proj))

    def forward(self, queries: Tensor) -> Tensor:
        """See the class."""
        return self.project(self.norm(queries)).unflatten(-1, (self.num_layers, -1)).transpose(0, 1)


class LayerEdit(nn.Module):
    """Context [layers, 2, S, A] and scaled queries [layers, Q, A] -> edited context, layer by layer; gates [layers] or none."""

    def __init__(self, delta_proj: Iterable[nn.Sequential], gates: Tensor | None, num_heads: int) -> None:
        super().__init__()
        self.delta_proj, self.num_heads = nn.ModuleList(delta_proj), num_heads
        self.register_buffer("gates", gates, persistent=False)
        self.gates: Tensor | None

    def forward(self, context: Tensor, asked: Tensor) -> Tensor:
        """See the class."""
        width = context.shape[-1]
        scale = (width // self.num_heads) ** -0.5
        edited = []
        for index, delta in enumerate(self.delta_proj):
            k, v = context[index].unbind(0)
            read = attention(asked[index], k, v, self.num_heads)
            back = attention(k * scale, read, read, self.num_heads)
            change = delta(back).unflatten(-1, (2, width)).transpose(0, 1)
            edited.append(context[index] + (change if self.gates is None else self.gates[index] * change))
        return torch.stack(edited)


class BatchEdit(nn.Module):
    """The same for all layers at once: attentions over layers x heads, delta MLPs as two batched products.

    Weights [layers, out, in] hold norms and gates; `up` A -> A, `down` A -> 2 A.
    """

    def __init__(self, edit: LayerEdit) -> None:
        super().__init__()
        assert edit.gates is None, "gates are folded before layers are stacked"
        self.num_heads = edit.num_heads
        self.norm: nn.LayerNorm = edit.delta_proj[0][0]
        for name, index in (("up", 1), ("down", 3)):
            layers: list[nn.Linear] = [delta[index] for delta in edit.delta_proj]
            for part in ("weight", "bias"):
                stack = torch.stack([getattr(layer, part).detach() for layer in layers])
                self.register_parameter(f"{name}_{part}", nn.Parameter(stack, requires_grad=False))

    def forward(self, context: Tensor, asked: Tensor) -> Tensor:
        """See `LayerEdit`."""
        k, v = (self._heads(part) for part in context.unbind(1))
        scale = k.shape[-1] ** -0.5
        read = _attend(self._heads(asked), k, v)
        back = _attend(k, read * scale, read).transpose(1, 2).flatten(2)  # [layers, S, A]
        hidden = F.gelu(torch.baddbmm(self.up_bias[:, None], self.norm(back), self.up_weight.transpose(1, 2)))
        change = torch.baddbmm(self.down_bias[:, None], hidden, self.down_weight.transpose(1, 2))
        return context + change.unflatten(-1, (2, -1)).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [layers, S, A] -> [layers, N, S, K]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q.to(v.dtype) @ k.transpose(-1, -2)).float().softmax(-1).to(v.dtype) @ v


class Router(nn.Module):
    """Latent [Cz, h, w] of the newest image and context [layers, 2, tokens, A] -> routed context, same shape."""

    def __init__(self, visual: nn.Sequential, pool: Pool, pooled: nn.Sequential, ask: nn.Module, edit: nn.Module) -> None:
        super().__init__()
        self.visual, self.pool, self.pooled, self.ask, self.edit = visual, pool, pooled, ask, edit

    def forward(self, latent: Tensor, context: Tensor) -> tuple[Tensor]:
        """See the class."""
        tokens = self.visual(latent.flatten(1).transpose(0, 1).to(self.visual[0].weight.dtype))
        return (self.edit(context, self.ask(self.pooled(self.pool(tokens)))),)


def take_apart(stage: RouterStage | Router) -> Router:
    """The router as `Router`; one that is apart already is returned as it is."""
    if isinstance(stage, Router):
        return stage
    width = stage.query_proj[0][1].out_features
    return Router(
        nn.Sequential(*stage.visual),
        Pool(stage.queries, nn.Identity(), nn.Sequential(*stage.key), nn.Sequential(*stage.value), nn.Identity()),
        nn.Sequential(*stage.pooled),
        LayerAsk((nn.Sequential(*p) for p in stage.query_proj), (width // stage.num_heads) ** -0.5),
        LayerEdit((nn.Sequential(*p) for p in stage.delta_proj), stage.gates, stage.num_heads),
    )


def _router(stages: Stages) -> Router:
    return take_apart(module_of(stages, "router", RouterStage, Router))


def fold_observation_key(stages: Stages) -> dict[str, Stage]:
    """q.(W (g n + h) + b) = (W'q g).n + a constant that cancels in the softmax: the key projection becomes part of the queries.

    n is the norm of the visual tokens, which the values then share: their norm's weights go into their first layer.
    """
    router = _router(stages)
    pool = router.pool
    if isinstance(pool.key, nn.Identity):
        raise RewriteRefused("the observation key is folded already")
    (key_norm, key), (value_norm, value) = pool.key, (pool.value[0], pool.value[1])
    queries = pool.queries.double() @ key.weight.double() * key_norm.weight.double()
    folded = nn.Sequential(nn.Identity(), fold_affine(value, value_norm.weight, value_norm.bias), *pool.value[2:])
    parts = {"queries": queries.to(pool.queries.dtype), "norm": bare_norm(key_norm), "key": nn.Identity(), "value": folded}
    return with_modules(stages, {"router": changed(router, pool=changed(pool, **parts))})


def commute_observation_value(stages: Stages) -> dict[str, Stage]:
    """Weights of a softmax sum to one, so P (V W + b) = (P V) W + b: the last value layer runs on averages, not on tokens."""
    router = _router(stages)
    pool = router.pool
    if not isinstance(pool.after, nn.Identity):
        raise RewriteRefused("the last value layer runs on the averages already")
    *before, last = pool.value
    return with_modules(stages, {"router": changed(router, pool=changed(pool, value=nn.Sequential(*before), after=last))})


def merge_editor_queries(stages: Stages) -> dict[str, Stage]:
    """The norms of all layers see the same rows: one norm, its weights and the softmax scale folded, one product."""
    router = _router(stages)
    if not isinstance(router.ask, LayerAsk):
        raise RewriteRefused("the query projections of the editor are merged already")
    return with_modules(stages, {"router": changed(router, ask=MergedAsk(router.ask))})


def fold_delta(stages: Stages) -> dict[str, Stage]:
    """Weights of the delta norm go into the layer behind it, the gate into the last layer."""
    router = _router(stages)
    if not isinstance(router.edit, LayerEdit) or router.edit.gates is None:
        raise RewriteRefused("norms and gates of the editor are folded already")
    return with_modules(stages, {"router": changed(router, edit=_folded(router.edit))})


def batch_editor(stages: Stages) -> dict[str, Stage]:
    """Layers do not depend on each other: all attentions and delta MLPs as batched products.  Implies `fold_delta`.

    Their weights are stacks afterwards, not linear layers: leave this out where those are wanted, as by quantisers and TensorRT.
    """
    router = _router(stages)
    if not isinstance(router.edit, LayerEdit):
        raise RewriteRefused("the layers of the editor are batched already")
    edit = router.edit if router.edit.gates is None else _folded(router.edit)
    return with_modules(stages, {"router": changed(router, edit=BatchEdit(edit))})


def _folded(edit: LayerEdit) -> LayerEdit:
    assert edit.gates is not None
    deltas = []
    for gate, (norm, up, activation, down) in zip(edit.gates.double(), edit.delta_proj, strict=True):
        gated = linear(gate * down.weight.detach().double(), gate * down.bias.detach().double(), down.weight)
        deltas.append(nn.Sequential(bare_norm(norm), fold_affine(up, norm.weight, norm.bias), activation, gated))
    return changed(edit, delta_proj=nn.ModuleList(deltas), gates=None)

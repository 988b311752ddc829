"""The router: a few averages of the newest image ask all layers at once, and the context is edited in two batched products.

Visual tokens are hundreds of rows, where PyTorch's own products are as fast as any; they stay a program of their own unless they
are quantised, which PyTorch would multiply in float32.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgewam.compile.fused.builder import Builder, Layer, Lowered, NotLowered
from edgewam.compile.fused.chains import Named, lower_chain
from edgewam.compile.rewritten_router import BatchEdit, LayerEdit, MergedAsk, Pool, Router
from edgewam.compile.rewritten_stage import changed
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.models.stage_layers import attention
from edgewam.quantize.arithmetic import QuantizedLinear

_WHY_AVERAGES = "its rows are as many as PyTorch's own products need to be fast"
_WHY_TOKENS = "pixels and channels change places, which no view can express"
_WHY_POOL = "no attention kernel has one head over a whole row"


class Averages(nn.Module):
    """Latent [Cz, h, w] -> visual tokens, pooled [Q, D]."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.visual, self.pool = router.visual, changed(router.pool, after=nn.Identity())

    def forward(self, latent: Tensor) -> tuple[Tensor]:
        """See the class."""
        tokens = latent.flatten(1).transpose(0, 1).to(self.visual[0].weight.dtype)  # type: ignore[arg-type]
        return (self.pool(self.visual(tokens)),)


class Tokens(nn.Module):
    """Latent [Cz, h, w] -> [h w, Cz]."""

    def forward(self, latent: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (latent.flatten(1).transpose(0, 1).contiguous(),)


class PooledValues(nn.Module):
    """Visual tokens [S, D] and their values [S, D] -> averages [Q, D]."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = changed(pool, value=nn.Identity(), after=nn.Identity())

    def forward(self, tokens: Tensor, values: Tensor) -> tuple[Tensor]:
        """See the class."""
        keys = self.pool.key(self.pool.norm(tokens))
        return (attention(self.pool.queries, keys, values, num_heads=1),)


def lower_router(stage: Stage, module: Router) -> Lowered:
    """latent [Cz, h, w], context [layers, 2, tokens, A] -> routed context.

    Raises:
        NotLowered: a router whose query projections or gates are not folded, or a layer of another form.
    """
    ask, edit = module.ask, module.edit
    if not isinstance(ask, MergedAsk) or not (isinstance(edit, BatchEdit) or (type(edit) is LayerEdit and edit.gates is None)):
        raise NotLowered("its query projections, norms and gates are not folded; compile it with its exact rewrites")
    layers, _, tokens, width = stage.outputs[0].shape
    builder = Builder(stage, stage.outputs[0].dtype)
    builder.require_width(width)
    context, routed = builder.inputs[1], builder.outputs[0]
    averages = _quantised_averages(builder, module) if _is_quantised(module) else _averages(builder, module)
    queries = builder.spec(averages).shape[0]
    asked = builder.workspace("asked", (layers, queries, width))
    pooled = [("pool.after", module.pool.after), *_named("pooled", module.pooled), ("ask.norm", ask.norm)]
    lower_chain(builder, [*pooled, ("ask.project", ask.project)], averages, queries, asked, batch=layers)
    read = builder.workspace("read", (layers, tokens, width))
    builder.call("router_attention", {"num_heads": edit.num_heads}, asked=asked, context=context, y=read)
    if isinstance(edit, BatchEdit):
        _edit_together(builder, edit, read, context, routed)
    else:
        for index, delta in enumerate(edit.delta_proj):
            own = builder.view(context, index)
            named = _named(f"edit.delta_proj.{index}", delta)  # type: ignore[arg-type]
            lower_chain(
                builder, named, builder.view(read, index), tokens, builder.view(routed, index), pairs=True, residual=own
            )  # fmt: skip
    return builder.finished()


def _edit_together(builder: Builder, edit: BatchEdit, read: str, context: str, routed: str) -> None:
    """Both layers of the delta MLPs, each of all layers in one call."""

    def stack(name: str) -> Layer:
        weight, bias = getattr(edit, f"{name}_weight"), getattr(edit, f"{name}_bias")
        operands = {"weight": builder.weight(f"edit.{name}.weight", weight)}
        operands["bias"] = builder.weight(f"edit.{name}.bias", bias, wide=True)
        return Layer(operands, builder.rounding, weight.shape[1])

    up, down = stack("up"), stack("down")
    hidden = builder.workspace("hidden", (*builder.spec(read).shape[:2], up.outs))
    builder.linear(up, read, hidden, norm=edit.norm.eps, activation="gelu_exact")
    builder.linear(down, hidden, routed, pairs=True, residual=context)


def _averages(builder: Builder, router: Router) -> str:
    latent, pool = builder.stage.inputs[0], router.pool
    out = TensorSpec("averages", tuple(pool.queries.shape), builder.dtype)
    return builder.piece("averages", Averages(router), (latent,), out, _pixels(latent), _WHY_AVERAGES)


def _quantised_averages(builder: Builder, router: Router) -> str:
    latent, pool = builder.stage.inputs[0], router.pool
    pixels, depth = _pixels(latent), pool.queries.shape[1]
    spread = TensorSpec("tokens", (pixels, latent.shape[0]), latent.dtype)
    x = builder.piece("tokens", Tokens(), (latent,), spread, pixels, _WHY_TOKENS)
    visual, values = (TensorSpec(name, (pixels, depth), builder.dtype) for name in ("visual", "values"))
    for spec in (visual, values):
        builder.workspace(spec.name, spec.shape, spec.dtype)
    lower_chain(builder, _named("visual", router.visual), x, pixels, visual.name)
    lower_chain(builder, [("pool.norm", pool.norm), *_named("pool.value", pool.value)], visual.name, pixels, values.name)
    out = TensorSpec("averages", tuple(pool.queries.shape), builder.dtype)
    return builder.piece("pooled", PooledValues(pool), (visual, values), out, pixels, _WHY_POOL)


def _is_quantised(router: Router) -> bool:
    parts = (*router.visual.modules(), *router.pool.value.modules(), *router.pool.key.modules())
    return any(isinstance(part, QuantizedLinear) for part in parts)


def _named(path: str, layers: nn.Module) -> list[Named]:
    return [(f"{path}.{name}", layer) for name, layer in layers.named_children()]


def _pixels(latent: TensorSpec) -> int:
    return latent.shape[1] * latent.shape[2]

"""The planner: whole, a group of its layers, or a prefill without a memory; keys and values go straight into the context."""

from __future__ import annotations

from torch import Tensor, nn

from edgewam.compile.fused.blocks import Block, Modulation, Stream
from edgewam.compile.fused.builder import Builder, Lowered
from edgewam.compile.rewritten_layers import LastKeyValue
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.reference import SQUARE_COLUMNS
from edgewam.models.planner_stage import PlannerGroup, PlannerStage, PrefillStage

_WHY_PATCHES = "pixels of a patch change places, which no view can express"


class Patches(nn.Module):
    """Latent [Cz, h, w] -> the pixels of each 2x2 patch [h/2 * w/2, 4 Cz], as `planner_stage.embed` orders them."""

    def forward(self, latent: Tensor) -> tuple[Tensor]:
        """See the class."""
        channels, height, width = latent.shape
        patches = latent.reshape(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
        return (patches.reshape(height * width // 4, 4 * channels),)


def lower_planner(stage: Stage, module: PlannerStage | PlannerGroup | PrefillStage) -> Lowered:
    """See the forward methods for the inputs.

    Raises:
        NotLowered: a layer of another form.
    """
    out = stage.outputs[-1]  # [layers, 2, tokens, A]
    builder, tokens, width = Builder(stage, out.dtype), out.shape[2], out.shape[3]
    builder.require_width(width)
    if isinstance(module, PrefillStage):
        start, text, text_bias, cos, sin = builder.inputs[:5]
        memory = builder.workspace("memory", (0, *out.shape))
        memory_bias = builder.workspace("memory_bias", (0,), builder.wide)
    else:
        start, memory, memory_bias, text, text_bias, cos, sin = builder.inputs[:7]
    words = builder.view(text_bias, (0, stage.input(text).shape[2]))  # a refresh does not see the state, the last of all words
    rows = builder.weight("rows", module.rows, wide=True)
    first = module.first if isinstance(module, PlannerGroup) else 0
    end = builder.outputs[0] if len(stage.outputs) > 1 else builder.workspace("h", (tokens, module.rows.shape[-1]), builder.wide)
    block = Block(builder, Stream(start, end), tokens, width, module.num_heads)
    if module.patch is not None:
        _embed(builder, module.patch, stage.inputs[0], end)
        block.stream.read = end
    for index, qkv in enumerate(module.qkv):
        modulation = Modulation.of(builder, rows, index)
        own = builder.view(out.name, index)
        projected = block.project(f"qkv.{index}", qkv, modulation)
        if index == len(module.ffn):
            builder.call("context_write", {}, **_keys_and_values(builder, projected, qkv, width), cos=cos, sin=sin, context=own)
            break
        seen = {"memory": builder.view(memory, None, first + index), "memory_bias": memory_bias}
        heads = {"num_heads": module.num_heads}
        builder.call("memory_attention", heads, **projected, cos=cos, sin=sin, **seen, context=own, y=block.attended)
        block.add(f"out.{index}", module.out[index], block.attended, **modulation.behind(0))
        block.read_text(f"cross.{index}", module.cross[index], builder.view(text, first + index), words)
        block.feed_forward(f"ffn.{index}", module.ffn[index], modulation)
    return builder.finished()


def _keys_and_values(builder: Builder, projected: dict[str, str], layer: nn.Module, width: int) -> dict[str, str]:
    """The projection of the last layer without the queries that it may begin with."""
    kv, squares = projected["qkv"], projected["squares"]
    if isinstance(layer, LastKeyValue):
        return {"kv": kv, "squares": squares, "gain": builder.view(projected["gains"], 0)}
    kv = builder.view(kv, None, (width, 3 * width))
    squares = builder.view(squares, None, (width // SQUARE_COLUMNS, 3 * width // SQUARE_COLUMNS))
    return {"kv": kv, "squares": squares, "gain": builder.view(projected["gains"], 1)}


def _embed(builder: Builder, patch: nn.Linear, latent: TensorSpec, y: str) -> None:
    channels, height, width = latent.shape
    tokens = height * width // 4
    patches = TensorSpec("patches", (tokens, 4 * channels), latent.dtype)
    x = builder.piece("patches", Patches(), (latent,), patches, tokens, _WHY_PATCHES)
    builder.linear(builder.layer("patch", patch), x, y)

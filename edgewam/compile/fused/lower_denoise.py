"""The denoise step: eight kernels a layer, one in front of the first and one behind the last, which takes the Euler step too."""

from __future__ import annotations

from edgewam.compile.fused.blocks import Block, Modulation, Stream
from edgewam.compile.fused.builder import Builder, Lowered
from edgewam.core.stage import Stage
from edgewam.models.wam_stages import DenoiseStage


def lower_denoise(stage: Stage, module: DenoiseStage) -> Lowered:
    """See `DenoiseStage.forward` for the inputs; a last one of a quantised stage holds the activation scales of this step.

    Raises:
        NotLowered: a layer of another form.
    """
    context = stage.inputs[4]
    builder, rows, width = Builder(stage, context.dtype), stage.inputs[0].shape[0], context.shape[-1]
    builder.require_width(width)
    x, time_row, clean_row, delta, routed, cross, cross_bias, cos, sin, prefix, mask = builder.inputs[:11]
    encoder = builder.layer("encoder", module.encoder)
    h = builder.workspace("h", (rows, encoder.outs), builder.wide)
    block = Block(builder, Stream(h, h), rows, width, module.num_heads)
    builder.linear(encoder, x, h)
    for index, qkv in enumerate(module.qkv):
        modulation = Modulation.of(builder, time_row, index, clean_row, mask)
        projected = block.project(f"qkv.{index}", qkv, modulation)
        operands = {"cos": cos, "sin": sin, "routed": builder.view(routed, index), "y": block.attended}
        builder.call("chunk_attention", {"num_heads": module.num_heads}, **projected, **operands)
        block.add(f"out.{index}", module.out[index], block.attended, **modulation.behind(0))
        block.read_text(f"cross.{index}", module.cross[index], builder.view(cross, index), cross_bias)
        block.feed_forward(f"ffn.{index}", module.ffn[index], modulation)
    euler = {"residual": x, "delta": delta, "prefix": prefix, "mask": mask}
    builder.linear(builder.layer("head", module.head), h, builder.outputs[0], **euler)
    return builder.finished()

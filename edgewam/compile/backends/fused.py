"""Build half of `fused`: a stage as calls of fused kernels over packed weights, tuned on the card that will run it.

What no kernel computes stays an exported program, a whole stage or a piece of one, and the record says which and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from edgewam.compile.backends import eager
from edgewam.compile.build_options import ANY_MACHINE, BuildOptions
from edgewam.compile.exporting import exporting
from edgewam.compile.fused import NotLowered, lower
from edgewam.core.artifacts import write_json
from edgewam.core.errors import PluginError
from edgewam.core.stage import Stage
from edgewam.kernels.autotune import tune
from edgewam.kernels.bound import without_kernel
from edgewam.kernels.target import target_of
from edgewam.quantize.layers import quantized_layers
from edgewam.runtime.engine import Support

FORMATS = ("int8", "fp8", "fp8_weights", "int8_weights", "int4_weights")
STEP_SCALES = True  # a kernel reads its scale from the table's row
PRECISIONS = ("float32", "bf16", "fp16")
REWRITES_LEFT_OUT: tuple[str, ...] = ()  # the kernels are made for what the rewrites leave
TOLERANCE = 2e-5  # float32: sums in tiles and splits, a few thousand terms in another order


def supports(stage: Stage) -> Support:
    """Every stage that can be exported, with its layers in formats that the kernels multiply in."""
    for path, layer in quantized_layers(stage).items():
        if layer.kind.name not in FORMATS:
            return Support(
                False,
                f"stage '{stage.name}' has its layer '{path}' in {layer.kind.name}, and the fused kernels multiply in "
                f"{', '.join(FORMATS)}. Quantise for them: edgewam quantize --backend fused",
            )
    return eager.supports(stage)


def check(options: BuildOptions) -> None:
    """Refuse what cannot be built here before any work is done.

    Raises:
        PluginError: a target, an unknown device, or Triton is not installed.
    """
    if options.target is not None:
        raise PluginError(
            f"The backend 'fused' tunes its kernels on the card that runs them, so it cannot build for '{options.target}' from "
            "here. Compile there with --device cuda, or here with --backend tensorrt."
        )
    target_of(options.device)


def remark(options: BuildOptions) -> str:
    """What a user should know before it starts; "" for nothing."""
    if options.device != "cpu":
        return ""
    return (
        "Triton's interpreter runs the kernels on this processor: a proof of what they compute, and slow. For speed compile with "
        "--device cuda on the machine that has the GPU."
    )


def build(stage: Stage, directory: Path, options: BuildOptions = ANY_MACHINE) -> dict[str, Any]:
    """Write recipe, weights and pieces of a stage into `directory` and return the record that the run half reads.

    Raises:
        EdgewamError: weights that are not finite, or a stage that can neither be lowered nor exported.
    """
    try:
        with exporting(stage):
            lowered = lower(stage)
    except NotLowered as reason:
        return eager.build(stage, directory, options) | {"why": str(reason)}
    target, specs = target_of(options.device), lowered.specs(stage)
    choices = tune(lowered.recipe, specs, target, options.device)
    recipe, weights = f"{stage.name}.json", f"{stage.name}.safetensors"
    pieces = [{**eager.build(piece.stage, directory), "why": piece.why} for piece in lowered.pieces.values()]
    write_json(directory / recipe, lowered.recipe.to_json())
    _save(directory / weights, lowered.weights)
    return {
        "recipe": recipe,
        "weights": weights,
        "pieces": pieces,
        "choices": choices.to_json(),
        "unsupported": [list(entry) for entry in without_kernel(lowered.recipe, specs, target, choices)],
        "kernels": dict(Counter(call.op for call in lowered.recipe.calls)),
    }


def _save(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights; those that are one in memory are written once for every name."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.cpu() if place not in seen else tensor.cpu().clone()
        seen.add(place)
    save_file(separate, path)
    path.chmod(0o644)  # the package leaves files that only their owner may read

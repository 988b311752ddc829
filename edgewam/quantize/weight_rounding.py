"""GPTQ with NVIDIA's modelopt: each weight is rounded so that later columns make up for the error of earlier ones.

The scales stay those of `weight_scales`; only the codes change, by what the layer's inputs have in common (Frantar et al. 2023).
It halved the action error of INT8 weights here (benchmarks/NOTES.md).  The grid may be that of FP8, or of four bits with groups.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Stage
from edgewam.quantize.arithmetic import per_channel
from edgewam.quantize.calibrate import modelopt_quantization, quietly
from edgewam.quantize.formats import FORMATS, GROUPS, Format, encode, weight_scales
from edgewam.quantize.layers import LayerName
from edgewam.quantize.record import Progress, Recording

_INT8 = FORMATS["int8_weights"]
_DAMPING = 0.01  # of the mean diagonal of the inputs' second moments, GPTQ's own; needed where a stage saw few rows


def round_weights(
    stages: Mapping[str, Stage],
    layers: Iterable[LayerName],
    recording: Recording,
    progress: Progress | None = None,
    kind: Format = _INT8,
    group: int = GROUPS[0],
) -> dict[LayerName, tuple[Tensor, Tensor]]:
    """Codes [out, in] and scales of linear layers, for inputs as they were recorded (no SmoothQuant).

    Args:
        stages: of any dtype, with modules as functions; they stay as they are.
        layers: linear layers.
        recording: what the stages saw.
        progress: called with (stages done, stages).
        kind: whose grid the weights are rounded to; group: so many inputs share a scale where it has groups.

    Raises:
        MissingExtraError: modelopt is not installed.
        EdgewamError: a stage that the recording never ran.
    """
    found: dict[LayerName, tuple[Tensor, Tensor]] = {}
    paths: dict[str, list[str]] = {}
    for stage, path in layers:
        paths.setdefault(stage, []).append(path)
    for done, (stage, names) in enumerate(paths.items()):
        if not recording.calls.get(stage):
            raise EdgewamError(f"Calibration never ran the stage {stage}, so it cannot round its weights.")
        function = stages[stage].function
        assert isinstance(function, nn.Module)
        module = _gptq(copy.deepcopy(function).float(), names, recording.calls[stage], kind, group)
        for path in names:
            scale = weight_scales(function.get_submodule(path).weight.detach().float(), None, None, kind, group)
            weight = module.get_submodule(path).weight.detach().float()
            found[stage, path] = encode(weight, per_channel(scale, weight), kind), scale
        if progress:
            progress(done + 1, len(paths))
    return found


def _gptq(module: nn.Module, paths: list[str], calls: Any, kind: Format, group: int) -> nn.Module:
    bits: Any = kind.bits if kind.dtype == torch.int8 else (4, 3)
    grid = {"num_bits": bits, "axis": 0} if kind.bits == 8 else {"num_bits": bits, "block_sizes": {-1: group}}
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    rules += [{"quantizer_name": f"{path}.weight_quantizer", "cfg": grid} for path in paths]

    def loop(model: nn.Module) -> None:
        for inputs in calls:
            model(*(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in inputs))

    quantization = modelopt_quantization()
    with quietly(), torch.no_grad():
        quantization.quantize(module, {"quant_cfg": rules, "algorithm": {"method": "gptq", "perc_damp": _DAMPING}}, loop)
    return module

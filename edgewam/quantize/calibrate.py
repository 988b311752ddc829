"""Scales from real activations, with NVIDIA's modelopt: SmoothQuant for INT8, then a percentile of what each layer sees.

Two passes over the recording: the first finds the largest magnitude of each input channel and moves half of it into the
weights (INT8 linear layers), the second fills a histogram of what then reaches the rounding and cuts its tail off.
Without the cut one rare value sets the scale of everything; `PrecisionPlan.percentile` says how rare.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from edgewam.core.errors import EdgewamError, require
from edgewam.core.stage import Stage
from edgewam.quantize.formats import FORMATS, Format
from edgewam.quantize.layers import LayerName, Scales
from edgewam.quantize.record import Progress, Recording

_SMALLEST = 1e-6  # an input that is always zero still needs a scale
_BITS = {"int8": 8, "fp8": (4, 3)}  # modelopt's names: integer bits, or exponent and mantissa bits


def calibrate(
    stages: Mapping[str, Stage],
    formats: Mapping[LayerName, str],
    recording: Recording,
    alpha: float,
    percentile: float,
    progress: Progress | None = None,
) -> dict[LayerName, Scales]:
    """The scales of every layer in `formats`.

    Args:
        stages: float32, with modules as functions; they stay as they are.
        formats: layer -> name of its format, `none` left out.
        recording: what the stages saw.
        alpha: of SmoothQuant.
        percentile: of the magnitudes of an input.
        progress: called with (passes done, passes).

    Raises:
        MissingExtraError: modelopt is not installed.
        EdgewamError: a stage that the recording never ran, or a layer whose activations are not finite.
    """
    found = {name: Scales(kind) for name, kind in formats.items() if not FORMATS[kind].calibrated}
    groups = [(f, [n for n, kind in formats.items() if kind == f.name]) for f in FORMATS.values() if f.calibrated]
    groups = [(kind, names) for kind, names in groups if names]
    for done, (kind, names) in enumerate(groups):
        if unseen := {stage for stage, _ in names if not recording.calls.get(stage)}:
            raise EdgewamError(f"Calibration never ran the stages {', '.join(sorted(unseen))}, so it knows no scales for them.")
        for stage in dict.fromkeys(stage for stage, _ in names):
            _check_weights(stages[stage])
        found |= _calibrate_format(stages, names, kind, recording, alpha, percentile)
        if progress:
            progress(done + 1, len(groups))
    return {name: found[name] for name in formats}


def fake_quantized(
    stages: Mapping[str, Stage], names: list[LayerName], kind: Format, recording: Recording, alpha: float, percentile: float
) -> nn.ModuleDict:
    """Copies of the stages' modules with modelopt's calibrated quantisers around the layers `names`."""
    quantization = modelopt_quantization()
    calibrator = require("modelopt.torch.quantization.calib", extra="quant").HistogramCalibrator
    modules = nn.ModuleDict({s: copy.deepcopy(stages[s].function) for s in dict.fromkeys(s for s, _ in names)})  # type: ignore

    def loop(model: nn.Module) -> None:
        for stage in modules:
            for inputs in recording.calls[stage]:
                model.get_submodule(stage)(*inputs)

    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for stage, path in names:
        parts = {"weight_quantizer": 0, "input_quantizer": None}
        if isinstance(modules[stage].get_submodule(path), nn.Conv2d):
            parts["output_quantizer"] = None
        for part, axis in parts.items():
            rules.append({"quantizer_name": f"{stage}.{path}.{part}", "cfg": {"num_bits": _BITS[kind.name], "axis": axis}})
    method: Any = {"method": "smoothquant", "alpha": alpha} if kind.name == "int8" else "max"
    with quietly(), torch.no_grad():
        quantization.quantize(modules, {"quant_cfg": rules, "algorithm": method}, loop)
        quantizers = list(_activation_quantizers(modules, names))
        for _, quantizer in quantizers:
            quantizer._calibrator = calibrator(quantizer.num_bits, None, False)
            quantizer.disable_quant()
            quantizer.enable_calib()
        loop(modules)
        for _, quantizer in quantizers:
            quantizer.load_calib_amax("percentile", percentile=percentile)
            quantizer.enable_quant()
            quantizer.disable_calib()
    return modules


def _calibrate_format(
    stages: Mapping[str, Stage], names: list[LayerName], kind: Format, recording: Recording, alpha: float, percentile: float
) -> dict[LayerName, Scales]:
    modules = fake_quantized(stages, names, kind, recording, alpha, percentile)
    found: dict[LayerName, Scales] = {}
    for stage, path in names:
        layer: Any = modules[stage].get_submodule(path)  # modelopt's own class, whose quantisers torch does not type
        smooth = layer.input_quantizer.pre_quant_scale
        output = layer.output_quantizer.amax if isinstance(layer, nn.Conv2d) else None
        found[stage, path] = Scales(
            kind.name,
            input_scale=_scale(layer.input_quantizer.amax, kind, (stage, path)),
            output_scale=_scale(output, kind, (stage, path)),
            smooth=None if smooth is None else smooth.detach().float().flatten().clone(),
        )
    return found


def _check_weights(stage: Stage) -> None:
    """Refuse weights that would end modelopt's calibration in the middle of nowhere."""
    for name, parameter in stage.function.named_parameters():  # type: ignore[union-attr]
        if not torch.isfinite(parameter).all():
            raise EdgewamError(
                f"The weights '{stage.name}.{name}' are not finite, so there is nothing to calibrate. Train the policy again, or "
                "start from an earlier checkpoint."
            )


def _scale(amax: Any, kind: Format, name: LayerName) -> torch.Tensor | None:
    if amax is None:
        return None
    if not torch.isfinite(amax).all():
        raise EdgewamError(
            f"Layer '{'.'.join(name)}' saw values that are not finite while calibrating. Look for NaN in the policy's weights."
        )
    scale: torch.Tensor = (amax.detach().float().reshape(()) / kind.largest).clamp_min(_SMALLEST / kind.largest)
    return scale


def _activation_quantizers(modules: nn.ModuleDict, names: list[LayerName]) -> Iterator[tuple[LayerName, Any]]:
    for stage, path in names:
        layer: Any = modules[stage].get_submodule(path)
        yield (stage, path), layer.input_quantizer
        if layer.output_quantizer.is_enabled:
            yield (stage, path), layer.output_quantizer


def modelopt_quantization() -> Any:
    """`modelopt.torch.quantization`; MissingExtraError when it or what it needs is not installed."""
    for package in ("requests", "huggingface_hub"):  # modelopt needs both and declares neither
        require(package, extra="quant")
    with quietly():
        return require("modelopt.torch.quantization", extra="quant")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """modelopt reports on stdout, where only results belong, and warns of GPU parts that nobody asked for."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

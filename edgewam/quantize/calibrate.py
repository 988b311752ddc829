"""Scales from real activations, with NVIDIA's modelopt: SmoothQuant for INT8, then a percentile of what each layer sees.

Two passes over the recording: the first finds the largest magnitude of each input channel and moves half of it into the
weights (INT8 linear layers), the second fills a histogram of what then reaches the rounding and cuts its tail off.
Without the cut one rare value sets the scale of everything; `PrecisionPlan.percentile` says how rare.
With scales per step the second pass is done for the calls of each step alone.  Everything is computed on float32 copies.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgewam.core.errors import EdgewamError, require
from edgewam.core.stage import Stage
from edgewam.quantize.formats import FORMATS, Format
from edgewam.quantize.layers import LayerName, Scales
from edgewam.quantize.record import Progress, Recording

_SMALLEST = 1e-6  # an input that is always zero still needs a scale
_HALF = (torch.bfloat16, torch.float16)
_BITS = {"int8": 8, "fp8": (4, 3)}  # modelopt's names: integer bits, or exponent and mantissa bits


def calibrate(
    stages: Mapping[str, Stage],
    formats: Mapping[LayerName, str],
    recording: Recording,
    alpha: float,
    percentile: float,
    progress: Progress | None = None,
    per_step: bool = False,
) -> dict[LayerName, Scales]:
    """The scales of every layer in `formats`.

    Args:
        stages: of any dtype, with modules as functions; they stay as they are.
        formats: layer -> name of its format, `none` left out.
        recording: what the stages saw.
        alpha: of SmoothQuant.
        percentile: of the magnitudes of an input.
        progress: called with (passes done, passes).
        per_step: linear layers of stages that a loop calls get one activation scale for each of its rows.

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
        found |= _calibrate_format(stages, names, kind, recording, alpha, percentile, per_step)
        if progress:
            progress(done + 1, len(groups))
    return {name: found[name] for name in formats}


def fake_quantized(
    stages: Mapping[str, Stage], names: list[LayerName], kind: Format, recording: Recording, alpha: float, percentile: float
) -> nn.ModuleDict:
    """Copies of the stages' modules with modelopt's calibrated quantisers around the layers `names`."""
    quantization = modelopt_quantization()
    copies = {stage: copy.deepcopy(stages[stage].function).float() for stage in dict.fromkeys(stage for stage, _ in names)}  # type: ignore
    modules = nn.ModuleDict(copies)
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for stage, path in names:
        parts = {"weight_quantizer": 0, "input_quantizer": None}
        if isinstance(modules[stage].get_submodule(path), nn.Conv2d):
            parts["output_quantizer"] = None
        for part, axis in parts.items():
            rules.append({"quantizer_name": f"{stage}.{path}.{part}", "cfg": {"num_bits": _BITS[kind.name], "axis": axis}})
    method: Any = {"method": "smoothquant", "alpha": alpha} if kind.name == "int8" else "max"
    calls = {stage: recording.calls[stage] for stage in modules}
    with quietly(), torch.no_grad():
        quantization.quantize(modules, {"quant_cfg": rules, "algorithm": method}, lambda model: _run(model, calls))
    _set_ranges(modules, names, calls, percentile)
    return modules


def _set_ranges(modules: nn.ModuleDict, names: list[LayerName], calls: Mapping[str, Any], percentile: float) -> None:
    """Let the activation quantisers of `names` cover what they see in `calls`, but for the tail."""
    calibrator = require("modelopt.torch.quantization.calib", extra="quant").HistogramCalibrator
    quantizers = list(_activation_quantizers(modules, names))
    with quietly(), torch.no_grad():
        for _, quantizer in quantizers:
            quantizer._calibrator = calibrator(quantizer.num_bits, None, False)
            quantizer.disable_quant()
            quantizer.enable_calib()
        _run(modules, calls)
        for _, quantizer in quantizers:
            quantizer.load_calib_amax("percentile", percentile=percentile)
            quantizer.enable_quant()
            quantizer.disable_calib()


def _run(modules: nn.Module, calls: Mapping[str, Any]) -> None:
    for stage, inputs in calls.items():
        for tensors in inputs:
            modules.get_submodule(stage)(*(t.float() if t.dtype in _HALF else t for t in tensors))


def _calibrate_format(
    stages: Mapping[str, Stage],
    names: list[LayerName],
    kind: Format,
    recording: Recording,
    alpha: float,
    percentile: float,
    per_step: bool,
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
    for stage in dict.fromkeys(stage for stage, _ in names) if per_step else ():
        linear = [(s, path) for s, path in names if s == stage and not isinstance(modules[s].get_submodule(path), nn.Conv2d)]
        for name, scales in _scales_per_step(modules, stage, linear, kind, recording, percentile).items():
            found[name] = replace(found[name], input_scale=scales)
    return found


def _scales_per_step(
    modules: nn.ModuleDict, stage: str, names: list[LayerName], kind: Format, recording: Recording, percentile: float
) -> dict[LayerName, torch.Tensor]:
    """Input scales [steps] of the layers of one stage; nothing for a stage without a loop, or with one of a single row."""
    rows = recording.rows.get(stage, ())
    if not names or len(set(rows)) < 2:
        return {}
    scales: dict[LayerName, list[torch.Tensor]] = {name: [] for name in names}
    for step in range(max(rows) + 1):
        calls = [call for call, row in zip(recording.calls[stage], rows, strict=True) if row == step]
        _set_ranges(modules, names, {stage: calls}, percentile)
        for name in names:
            scale = _scale(modules[stage].get_submodule(name[1]).input_quantizer.amax, kind, name)  # type: ignore[union-attr]
            assert scale is not None
            scales[name].append(scale)
    return {name: torch.stack(values) for name, values in scales.items()}


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

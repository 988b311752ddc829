"""Artifacts of kind "quantized": packed codes and scales of the layers that a plan chose, on top of the policy they belong to.

`weights.safetensors` (per layer: codes, those of 4 bits two a byte, weight_scale, and where they exist input_scale, output_scale,
smooth), `plan.json` (the precision plan), `parent.json` (where the policy is, relative, and its digest).  Everything that stays
in float32 is read from that policy.  Reading needs no modelopt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgewam.core.artifacts import Manifest, read_manifest, replaced_file, write_artifact, write_json
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.core.program import Programs
from edgewam.core.stage import Stage
from edgewam.kernels.weights import from_nibbles, nibbles
from edgewam.quantize.formats import FORMATS, WEIGHTS_ONLY
from edgewam.quantize.layers import LayerName, QuantizedConv2d, QuantizedLinear, Scales, find_layers, quantized, with_layers
from edgewam.quantize.plan import PrecisionPlan
from edgewam.quantize.steps import with_scale_rows, with_scale_tables

KIND = "quantized"
WEIGHTS, PLAN, PARENT = "weights.safetensors", "plan.json", "parent.json"
SCALES_VERSION = 2  # of the meaning of scales and codes: since 2 an input_scale may be [steps], one for each step of the sampler
_READABLE = (1, 2)


@dataclass(frozen=True)
class QuantizedArtifact:
    """What was read: the manifest, the plan, the policy's place and digest, and the layers' tensors by name."""

    path: Path
    manifest: Manifest
    plan: PrecisionPlan
    policy: Path
    policy_digest: str
    formats: Mapping[LayerName, str]
    tensors: Mapping[str, Tensor]

    @property
    def precision(self) -> str:
        """For the timing contract: "int8", "fp8", or both; "fp8_weights" and the like where no activations are rounded."""
        kinds = {kind if kind in WEIGHTS_ONLY else kind.split("_")[0] for kind in self.formats.values()}
        return "+".join(sorted(kind for kind in kinds if kind.removesuffix("_weights") not in kinds - {kind}))

    def apply(self, stages: Mapping[str, Stage]) -> dict[str, Stage]:
        """The policy's stages with their layers in the formats of this artifact.

        Raises:
            ArtifactError: layers that the stages do not have, or of other shapes.
        """
        layers = find_layers(stages)
        made: dict[LayerName, nn.Module] = {}
        for name, kind in self.formats.items():
            codes, scale = self._get(name, "codes"), self._get(name, "weight_scale")
            if codes is not None and FORMATS[kind].bits < 8:
                codes = from_nibbles(codes)
            layer = layers.get(name)
            if layer is None or codes is None or scale is None or codes.shape != layer.weight.shape:
                found = "does not exist" if layer is None else f"is {list(layer.weight.shape)}"
                raise ArtifactError(
                    f"'{self.path}' quantises the layer {'.'.join(name)}, which {found} in '{self.policy}'. "
                    "Quantise that policy again."
                )
            parts = {part: self._get(name, part) for part in ("input_scale", "output_scale", "smooth")}
            made[name] = quantized(layer, Scales(kind, **parts), codes, scale)
        return with_scale_rows(with_layers(stages, made))

    def apply_programs(self, programs: Programs, stages: Mapping[str, Stage]) -> Programs:
        """The policy's programs for the stages that `apply` made: with the table of scales where there is one per step.

        Raises:
            ContractError: programs with another number of steps than the scales.
        """
        return with_scale_tables(programs, stages)

    def _get(self, name: LayerName, part: str) -> Tensor | None:
        return self.tensors.get(f"{name[0]}.{name[1]}.{part}")


def write_quantized(
    out: Path | str,
    layers: Mapping[LayerName, QuantizedLinear | QuantizedConv2d],
    plan: PrecisionPlan,
    policy: Path,
    policy_digest: str,
    config: Mapping[str, Any],
    measured: dict[str, Any],
) -> None:
    """Write the artifact whole or not at all; `config` says how it was calibrated, `measured` holds the table of layers."""
    tensors: dict[str, Tensor] = {}
    for (stage, path), layer in layers.items():
        codes = nibbles(layer.codes) if layer.kind.bits < 8 else layer.codes
        parts = {"codes": codes, "weight_scale": layer.weight_scale}
        parts |= layer.stored_scales
        tensors |= {f"{stage}.{path}.{part}": tensor.cpu().contiguous().clone() for part, tensor in parts.items()}
    formats = [{"stage": stage, "layer": path, "format": layer.kind.name} for (stage, path), layer in layers.items()]
    config = {"scales_version": SCALES_VERSION, "layers": formats, **config}
    out = Path(out)
    with write_artifact(out, KIND, config=config, parents={"policy": policy_digest}, measured=measured) as directory:
        with replaced_file(directory / WEIGHTS) as temporary:
            save_file(tensors, temporary)
        write_json(directory / PLAN, plan.to_json())
        write_json(directory / PARENT, {"policy": os.path.relpath(policy.resolve(), out.resolve()), "digest": policy_digest})


def read_quantized(directory: Path | str, policy: Path | None = None) -> QuantizedArtifact:
    """Read the artifact and check that its policy is there and is the one it was made for.

    Args:
        directory: the artifact.
        policy: where the policy is, when not at its recorded place.

    Raises:
        ArtifactError: damaged, of another version, or its policy is missing or another one.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, kind=KIND)
    version = manifest.config.get("scales_version")
    if version not in _READABLE:
        raise ArtifactError(
            f"'{directory}' has scales of version {version}; this edgewam reads {', '.join(map(str, _READABLE))}. "
            "Quantise the policy again, or use the edgewam that wrote it."
        )
    try:
        plan = PrecisionPlan.read(directory / PLAN)
        parent = json.loads((directory / PARENT).read_text())
        recorded, digest = directory / parent["policy"], str(parent["digest"])
        formats = {(entry["stage"], entry["layer"]): entry["format"] for entry in manifest.config["layers"]}
        tensors = load_file(directory / WEIGHTS)
    except (EdgewamError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"'{directory}' is damaged: {error}. Quantise the policy again.") from error
    if unknown := sorted(set(formats.values()) - set(FORMATS)):
        raise ArtifactError(
            f"'{directory}' uses the format {unknown[0]}, which this edgewam does not know. Quantise the policy again."
        )
    place = recorded if policy is None else policy
    if not place.is_dir():
        raise ArtifactError(f"'{directory}' holds scales for the policy at '{place}', which is not there. Copy it there too.")
    if read_manifest(place).digest != digest:
        raise ArtifactError(
            f"'{directory}' holds scales of another checkpoint than '{place}' (its digest differs from {digest[:12]}). "
            "Quantise that policy again."
        )
    return QuantizedArtifact(directory, manifest, plan, place, digest, formats, tensors)


def packed_bytes(layers: Mapping[LayerName, QuantizedLinear | QuantizedConv2d]) -> dict[str, int]:
    """Bytes of the quantised layers' weights with their scales as stored, and of the same weights in float32."""
    return {
        "packed": sum(layer.packed_bytes for layer in layers.values()),
        "float32": sum(4 * layer.weight.numel() for layer in layers.values()),
        "layers": len(layers),
    }


def is_quantized(directory: Path) -> bool:
    """Whether a directory holds an artifact of this kind; ArtifactError when it holds none at all."""
    return read_manifest(directory, verify=False).kind == KIND

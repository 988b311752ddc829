"""What a precision plan makes of a model's costs: bytes per weight, and the formats of the products, stage by stage.

A plan here is a name (`PACKINGS`), a name with other ones for single stages ("fp8,image_encoder=fp8"), or the layers of a
quantised artifact.  It is what would have to move and to be computed, not how an engine does it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Cost
from edgewam.profiles.device import Device
from edgewam.profiles.model_costs import PLAIN_BYTES, ModelCosts, StageWork
from edgewam.profiles.roofline import Formats

KEPT_STAGES = ("image_encoder",)  # convolutions: named plans leave them alone (quantize/named.py), the paper's engines too
# One row, or once per instruction: calibration sees too little of them for static scales, and engines have no others
# (quantize/named.py), so plans that quantise activations leave them alone too.
UNSTEADY_STAGES = ("text", "state")
_STATIC_PLANS = ("fp8", "int8")


@dataclass(frozen=True)
class Packing:
    """Bytes of one packed weight with its share of the scales, and the format of its products; None: they are not quantised."""

    weight_bytes: float
    products: str | None
    text: str


PACKINGS = {
    "fp32": Packing(4.0, "fp32", "float32"),
    "bf16": Packing(2.0, "bf16", "bfloat16"),
    "fp16": Packing(2.0, "fp16", "float16"),
    "fp8": Packing(1.0, "fp8", "8-bit float weights and activations"),
    "int8": Packing(1.0, "int8", "8-bit integer weights and activations"),
    "fp8_weights": Packing(1.0, None, "8-bit float weights, 16-bit products"),
    "int8_weights": Packing(1.0, None, "8-bit integer weights, 16-bit products"),
    "int4_weights": Packing(0.5 + 2 / 64, None, "4-bit integer weights with a 16-bit scale per 64, 16-bit products"),
    "nvfp4": Packing(0.5 + 1 / 16, "fp4", "4-bit float weights and activations with an 8-bit scale per 16"),
}


@dataclass(frozen=True)
class Planned:
    """Costs and formats of every stage under a plan, and the plan in words."""

    name: str
    text: str
    costs: Mapping[str, Cost]
    formats: Mapping[str, Formats]


def as_it_is(model: ModelCosts, device: Device) -> Planned:
    """The model in the precision that it has: a stage counts as the fastest format that was read back from its engine.

    Without such a record it counts as the fastest of the model's formats, and `text` says so.

    Raises:
        EdgewamError: the device has no such products; names what it has.
    """

    def fastest(kinds: Collection[str]) -> str:
        plain = [kind in PLAIN_BYTES or kind.endswith("_weights") for kind in kinds]  # packed weights are unpacked to multiply
        here = [device.plain_format if is_plain else kind for kind, is_plain in zip(kinds, plain, strict=True)]
        here = here or [device.plain_format]
        for kind in here:
            device.require_format(kind)
        return max(here, key=lambda kind: device.peak_tflops[device.compute_format(kind)].value)

    names = model.precision.split("+")
    best = fastest(names)
    formats = {name: fastest(model.read_back[name]) if name in model.read_back else best for name in model.stages}
    words = ["as it is"]
    if model.read_back:
        words.append("formats as read back from its engines, the fastest of each stage")
    if (unseen := [name for name in model.stages if name not in model.read_back]) and model.precision not in PLAIN_BYTES:
        which = f"of {', '.join(unseen)} " if model.read_back else ""
        words.append(f"all products {which}counted at the rate of {best}, though not all need be {best}")
    elif best not in names and unseen:
        words.append(f"products counted at the rate of {best}")
    return Planned(model.precision, ", ".join(words), {name: work.cost for name, work in model.stages.items()}, formats)


def named(model: ModelCosts, plan: str, device: Device) -> Planned:
    """The model under a named plan, such as "fp8" or "fp8,image_encoder=bf16".

    Convolutions of `KEPT_STAGES`, and on a GPU `UNSTEADY_STAGES` in fp8 and int8, stay as they are unless the plan names the
    stage.  What is not packed (norms, tables, keys and values) stays in the plain format.

    Raises:
        EdgewamError: unknown plan or stage, a model that is quantised already, a format that the device lacks.
    """
    if model.precision not in PLAIN_BYTES:
        raise EdgewamError(
            f"{model.title} is {model.precision} already; a plan needs it unquantised. Leave --plan out, or give that bundle."
        )
    main, chosen = _parse(plan, model)
    plain = main if main in PLAIN_BYTES else device.plain_format
    device.require_format(plain)
    # a processor runs ONNX Runtime, which measures ranges in every call: nothing is unsteady there
    kept = KEPT_STAGES + (UNSTEADY_STAGES if main in _STATIC_PLANS and device.sm else ())
    costs, formats = {}, {}
    for name, work in model.stages.items():
        packing = PACKINGS[chosen.get(name, plain if name in kept else main)]
        costs[name] = _packed(work, model.precision, plain, work.packable_weights, packing.weight_bytes)
        products = packing.products or plain
        device.require_format(products)
        share = work.packable_flops / work.cost.flops if work.cost.flops else 0.0
        formats[name] = {products: 1.0} if products == plain else {products: share, plain: 1.0 - share}
    left = [name for name in kept if name in model.stages and name not in chosen and main not in PLAIN_BYTES]
    words = [PACKINGS[main].text.replace("16-bit products", f"{plain} products")]
    if plain not in device.peak_tflops:
        words.append(f"{plain} products counted at the rate of {device.compute_format(plain)}")
    words += [f"{stage} in {packing}" for stage, packing in {**chosen, **dict.fromkeys(left, plain)}.items()]
    return Planned(plan, "; ".join(words), costs, formats)


def of_artifact(model: ModelCosts, plan: Path, device: Device) -> Planned:
    """The model with the layers of a quantised artifact, whose `plan.json` is given.

    A stage with layers of several formats counts as the fastest of them throughout: less than it takes, so a floor.

    Raises:
        EdgewamError: no such artifact, layers that do not fit the model, a format that the device lacks.
    """
    layers = _layers(plan)
    plain = device.plain_format
    costs, formats = {}, {}
    if unknown := {layer["stage"] for layer in layers} - set(model.stages):
        raise EdgewamError(f"'{plan}' names the stages {sorted(unknown)}; {model.title} has: {', '.join(model.stages)}.")
    for name, work in model.stages.items():
        own = [layer for layer in layers if layer["stage"] == name and layer["format"] != "none"]
        count = sum(layer["float32_bytes"] for layer in own) // PLAIN_BYTES["fp32"]
        if count > work.packable_weights:
            raise EdgewamError(
                f"'{plan}' packs {count} weights of '{name}', which has {work.packable_weights}: another policy's."
            )
        packed = sum(layer["packed_bytes"][layer["format"]] for layer in own)
        costs[name] = _packed(work, model.precision, plain, count, packed / count if count else 0.0)
        # "int8_dynamic" multiplies in int8; "int8_weights" does not
        kinds = {layer["format"].split("_")[0] for layer in own if not layer["format"].endswith("_weights")}
        for kind in kinds:
            device.require_format(kind)
        formats[name] = max(kinds or {plain}, key=lambda kind: device.peak_tflops[device.compute_format(kind)].value)
    return Planned(str(plan), f"the layers of '{plan}', what remains in {plain}", costs, formats)


def _parse(plan: str, model: ModelCosts) -> tuple[str, dict[str, str]]:
    main, *rest = plan.split(",")
    chosen = dict(part.partition("=")[::2] for part in rest)
    for name in (main, *chosen.values()):
        if name not in PACKINGS:
            raise EdgewamError(
                f"Unknown plan '{name}'. Available: {', '.join(PACKINGS)}, each also for one stage (fp8,image_encoder=bf16), "
                "or the plan.json of a quantised artifact."
            )
    if unknown := set(chosen) - set(model.stages):
        raise EdgewamError(f"The plan names the stages {sorted(unknown)}. Available: {', '.join(model.stages)}.")
    return main, chosen


def _packed(work: StageWork, precision: str, plain: str, count: int, weight_bytes: float) -> Cost:
    """The cost with `count` weights packed; all other weights, keys and values follow the plain format."""
    size = PLAIN_BYTES[precision]
    scale = PLAIN_BYTES[plain] / size
    rest = work.cost.weight_bytes - size * count
    return replace(work.cost, weight_bytes=round(rest * scale + count * weight_bytes), io_bytes=round(work.cost.io_bytes * scale))


def _layers(plan: Path) -> list[dict[str, Any]]:
    manifest = plan.parent / "manifest.json"
    try:
        found = json.loads(manifest.read_text())["measured"]["layers"]
        if not all({"stage", "format", "float32_bytes", "packed_bytes"} <= set(layer) for layer in found):
            raise KeyError("float32_bytes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgewamError(
            f"'{plan}' is no plan of a quantised artifact: '{manifest}' must list its layers with their bytes ({error}). "
            "Make one with 'edgewam quantize', or name a plan."
        ) from error
    return list(found)

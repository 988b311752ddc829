"""AHA-WAM and Fast-WAM so small that their stages run in milliseconds, but of widths that the fused kernels take; and how to run
a lowered stage with nothing but the references of its ops.
"""

from dataclasses import replace

import numpy as np
import torch

from edgewam.compile.samples import random_inputs
from edgewam.core.observation import Normalizer
from edgewam.kernels.call import PROGRAM, Recipe
from edgewam.kernels.reference import REFERENCES
from edgewam.models import aha_wam, fast_wam
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder

HALF = ("bfloat16", "float16")
BUCKET = 5  # keys are fewer than a head is wide, so that every rewrite fits
# attention 64 wide, the least that sums of squares divide; every other width is odd in some way
SIZES = {
    "num_layers": 2, "num_heads": 2, "head_dim": 32, "video_dim": 48, "video_ffn_dim": 80, "action_hidden_dim": 40,
    "action_ffn_dim": 72, "text_dim": 24, "text_len": 6, "freq_dim": 8, "image_height": 96, "image_width": 64,
}  # fmt: skip
FAMILIES = {
    "aha_wam": (aha_wam, {"chunk_size": 6, "horizon": 12, "num_queries": 3, "memory_slots": 2}),
    "fast_wam": (fast_wam, {"horizon": 10}),
}


def small_model(family, **sizes):
    """A network with every constant moved away from ones and zeros."""
    module, own = FAMILIES[family]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = module.build(replace(module.small(), **{**SIZES, **own, **sizes})).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1 or not parameter.any():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model


def stage_arguments(dtype=torch.float32):
    """What the stages of a policy need besides its model."""
    rng = np.random.default_rng(0)
    state, action = (
        Normalizer(rng.normal(size=14).astype(np.float32), rng.uniform(0.5, 2, 14).astype(np.float32)) for _ in range(2)
    )
    torch.manual_seed(1)
    encoder = image_encoder(WanVae(WanVaeConfig(dim=4, dec_dim=4)).to(dtype))
    return {"image_encoder": encoder, "state_normalizer": state, "action_normalizer": action}


def stages_of(model, dtype=torch.float32, bucket=BUCKET):
    """The stages of a model of `small_model`."""
    family = aha_wam if isinstance(model, aha_wam.AhaWam) else fast_wam
    return family.stages(model.to(dtype), **stage_arguments(dtype), text_bucket=bucket)


def drawn(stage, seed=0):
    """Random tensors for a stage's inputs; scales are positive."""
    arrays = random_inputs([replace(s, dtype="float32") if s.dtype in HALF else s for s in stage.inputs], seed)
    tensors = {s.name: torch.from_numpy(arrays[s.name]).to(getattr(torch, s.dtype)) for s in stage.inputs}
    if "scale_row" in tensors:
        tensors["scale_row"] = 0.02 + 0.01 * tensors["scale_row"].abs()
    return tensors


def eagerly(stage, inputs):
    """What the stage's own function gives, by name."""
    with torch.no_grad():
        found = stage.function(*(inputs[spec.name] for spec in stage.inputs))
    return {spec.name: tensor for spec, tensor in zip(stage.outputs, found, strict=True)}


def run_lowered(lowered, stage, inputs, through_json=False):
    """What a recipe gives with the references of its ops, by name; whatever it does not write is NaN."""
    recipe = Recipe.from_json(lowered.recipe.to_json()) if through_json else lowered.recipe
    made = {s.name: torch.full(s.shape, torch.nan, dtype=getattr(torch, s.dtype)) for s in recipe.workspaces.values()}
    made |= {s.name: torch.full(s.shape, torch.nan, dtype=getattr(torch, s.dtype)) for s in stage.outputs}
    tensors = recipe.resolve({**inputs, **lowered.weights, **made})
    with torch.no_grad():
        for call in recipe.calls:
            operands = {role: tensors[name] for role, name in call.operands.items()}
            if call.op == PROGRAM:
                given = [operands[f"in{i}"] for i in range(len(operands)) if f"in{i}" in operands]
                results = {f"out{i}": t for i, t in enumerate(lowered.programs[call.attributes["file"]](*given))}
            else:
                results = REFERENCES[call.op](**operands, **call.attributes)
            for role, value in results.items():
                if role in operands:
                    operands[role].copy_(value)
    return {spec.name: tensors[spec.name] for spec in stage.outputs}


def largest_deviation(found, expected):
    """Of any output, relative to its maximum; NaN counts as infinite."""
    worst = [float((found[n].double() - expected[n].double()).abs().max() / expected[n].double().abs().max()) for n in expected]
    return max(np.inf if np.isnan(value) else value for value in worst)

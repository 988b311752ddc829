"""Costs of the full-size AHA-WAM, counted on the meta device: `python -m edgewam.recipes.roofline_table` writes the file anew.

Nothing is estimated: operations are those that the stages run, weights those of their parameters.  A test compares the file
with what this makes, so a change of a stage shows as a change of the file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgewam.profiles.model_costs import MODELS, ModelCosts, StageWork, calls_of

if TYPE_CHECKING:
    from torch import Tensor

    from edgewam.core.program import Program
    from edgewam.core.stage import Stage

FULL = "aha_wam_full"
_NARROW_CHANNELS = 8  # of convolutions, as in quantize/named.py
NUM_STEPS = 2  # of the student; a roofline may ask for another number


def count_full() -> ModelCosts:
    """The costs of `aha_wam.full()` in bf16, its image encoder included; needs torch, but no memory for the weights."""
    stages = full_stages()
    work = {}
    for name, stage in stages.items():
        weights = _packable(stage)
        work[name] = StageWork(stage.cost, sum(weight.numel() for weight in weights), _flops_with(stage, weights))
    programs = _programs()
    return ModelCosts(
        "AHA-WAM, full size (7.35 billion parameters)", "bf16", work,
        {name: calls_of(program, list(stages)) for name, program in programs.items()},
        {name: program.loop.num_rows if program.loop else 0 for name, program in programs.items()},
    )  # fmt: skip


def full_stages() -> dict[str, Stage]:
    """The stages of the full size with every exact rewrite, on the meta device."""
    import numpy as np
    import torch

    from edgewam.compile.rewrites import rewrite
    from edgewam.core.observation import Normalizer
    from edgewam.models import aha_wam
    from edgewam.models.wan_vae import WanVae
    from edgewam.models.wan_vae_image import image_encoder

    config = aha_wam.full()
    state, action = (Normalizer(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (config.proprio_dim, config.action_dim))
    with torch.device("meta"):
        model = aha_wam.build(config).to(torch.bfloat16)
        return rewrite(aha_wam.stages(model, image_encoder(WanVae().to(torch.bfloat16)), state, action))


def _programs() -> dict[str, Program]:
    """The programs of the family.  Which stage they call does not depend on sizes, so a tiny model gives the tables."""
    from dataclasses import replace

    from edgewam.models import aha_wam

    tiny = replace(aha_wam.small(), num_layers=1, video_dim=32, video_ffn_dim=32, action_hidden_dim=32, action_ffn_dim=32)
    return dict(aha_wam.programs(aha_wam.build(tiny), NUM_STEPS).programs)


def _packable(stage: Stage) -> list[Tensor]:
    """Weights of the products that a plan may pack, whatever layer holds them; by the rule of `quantize/named.py`."""
    from edgewam.quantize.named import NARROW

    found = []
    for weight in stage.function.parameters():  # type: ignore[union-attr]
        is_kernel = weight.dim() == 4
        sizes = weight.shape[:2] if is_kernel else weight.shape[-2:]
        if weight.dim() >= 2 and min(sizes) >= (_NARROW_CHANNELS if is_kernel else NARROW):
            found.append(weight)
    return found


def _flops_with(stage: Stage, weights: list[Tensor]) -> int:
    """Operations of the products in one call of which one side is one of `weights`, 2 per multiply-add."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    storages = {weight.untyped_storage()._cdata for weight in weights}  # a view of a weight is the weight

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            if func.overloadpacket in flop_registry and any(t.untyped_storage()._cdata in storages for t in tensors):
                self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            return out

    assert stage.function is not None
    arguments = [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta") for spec in stage.inputs]
    with torch.no_grad(), Count() as count:
        stage.function(*arguments)
    return count.total


def main() -> None:
    """Write the file."""
    from edgewam.core.artifacts import write_json

    path = MODELS / f"{FULL}.json"
    costs = count_full()
    write_json(path, costs.to_json())
    print(json.dumps({name: work.cost.flops / 1e9 for name, work in costs.stages.items()}))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

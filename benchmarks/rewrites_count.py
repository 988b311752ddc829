"""What every exact rewrite saves at full size, counted on the meta device: GFLOP, MB of weights read, kernels launched.

Kernels are operations of eager PyTorch that do not only make a view; a compiler fuses many of them, so they are an upper limit.
No weights are allocated.  The rewrites that stages hold from the start are counted against the plain form that they replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.upstream import UpstreamEager
from edgewam.compile.rewrites import REWRITES, rewrite
from edgewam.core.observation import Normalizer
from edgewam.core.stage import Stage
from edgewam.models import aha_wam
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.dit_block import attend
from edgewam.models.stage_layers import QueryKeyValue, Turn
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.models.wan_vae_image import image_encoder

_FREE = {"_unsafe_view", "detach", "empty", "empty_like", "new_empty", "lift_fresh"}  # launch nothing, and no schema says so


@dataclass(frozen=True)
class Count:
    """Of one call; weights are counted once however often they are read."""

    gflop: float = 0.0
    weight_mb: float = 0.0
    kernels: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.gflop + other.gflop, self.weight_mb + other.weight_mb, self.kernels + other.kernels)

    def to_json(self) -> dict[str, float | int]:
        """Plain-JSON form, rounded to what the table shows."""
        return {"gflop": round(self.gflop, 3), "weight_mb": round(self.weight_mb, 2), "kernels": self.kernels}


class _Meter(TorchDispatchMode):
    """Counts kernels and notes the storages that they read."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.read: dict[int, int] = {}  # storage -> bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returned = [r.alias_info for r in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if not is_view and func.overloadpacket.__name__ not in _FREE:
            self.kernels += 1
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor):
                    self.read[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return out


@torch.no_grad()
def count(call: Callable[[], object], *owners: torch.nn.Module) -> Count:
    """Cost of `call`; weights are parameters and buffers of `owners`."""
    kept = [tensor for owner in owners for tensor in (*owner.parameters(), *owner.buffers())]
    storages = {tensor.untyped_storage()._cdata for tensor in kept}
    with _Meter() as meter:
        call()
    with FlopCounterMode(display=False) as flops:
        call()
    weights = sum(size for storage, size in meter.read.items() if storage in storages)
    return Count(flops.get_total_flops() / 1e9, weights / 1e6, meter.kernels)


def count_stage(stage: Stage) -> Count:
    """Cost of one call of a stage whose module is on the meta device."""
    inputs = [torch.empty(s.shape, dtype=getattr(torch, s.dtype), device="meta") for s in stage.inputs]
    return count(lambda: stage.function(*inputs), stage.function)


def full_size() -> tuple[AhaWam, WanVae]:
    """The paper's policy in bfloat16 without memory behind its weights."""
    with torch.device("meta"):
        return AhaWam(aha_wam.full()).to(torch.bfloat16), WanVae(WanVaeConfig()).to(torch.bfloat16)


def full_size_stages(model: AhaWam, vae: WanVae, text_bucket: int | None = None) -> dict[str, Stage]:
    """Its stages; the default bucket holds 48 text keys."""
    unit = Normalizer(np.zeros(14, np.float32), np.ones(14, np.float32))
    return aha_wam.stages(model, image_encoder(vae), unit, unit, text_bucket)


Pair = tuple[Count, Count]


def changing_counts(stages: Mapping[str, Stage]) -> dict[str, dict[str, Pair]]:
    """Rewrite -> touched stage -> cost before and after, each rewrite on top of those before it."""
    found, now = {}, dict(stages)
    for name, row in REWRITES.items():
        if row.function is not None:
            after = rewrite(now, [name])
            touched = [key for key in now if after[key].function is not now[key].function]
            found[name] = {key: (count_stage(now[key]), count_stage(after[key])) for key in touched}
            now = after
    return found


def held_counts(model: AhaWam, vae: WanVae) -> dict[str, Pair]:
    """Rewrite -> cost of the plain form and of what the stages hold, per denoise step unless the name says image or planner."""
    config, executor, planner = model.config, model.executor, model.planner

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    time = meta(1, 1, dtype=torch.float32)
    x, rope = (
        meta(config.chunk_size, config.action_hidden_dim),
        meta(config.chunk_size, config.head_dim // 2, dtype=torch.float32),
    )
    keys = config.frame_tokens + config.chunk_size
    q, kv = meta(1, config.chunk_size, config.attention_dim), meta(1, keys, config.attention_dim)
    qkv = [QueryKeyValue(block.self_attn).to("meta") for block in executor.blocks]

    def modulations() -> None:
        projected = executor.embed_time(time)[1]
        for block in executor.blocks:
            block.modulations(projected)

    def single() -> None:
        for block in executor.blocks:
            block.self_attn.query(x[None], (rope, rope))
            block.self_attn.key_value(x[None], (rope, rope))

    def merged() -> None:
        table = Turn.prepare(rope, rope)
        for layer in qkv:
            layer(x, table)

    def attended(masked: bool) -> None:
        for _ in executor.blocks:
            mask = torch.zeros(config.chunk_size, keys, dtype=q.dtype, device="meta") if masked else None
            attend(q, kv, kv, config.num_heads, mask)

    latents = meta(1, config.latent_dim, 1, config.latent_height, config.latent_width)
    frame = (meta(config.frame_tokens, config.head_dim // 2, dtype=torch.float32),) * 2
    text = [(meta(1, config.text_len, config.attention_dim),) * 2 for _ in planner.blocks]
    wide, narrow = (full_size_stages(model, vae, bucket)["denoise"] for bucket in (config.text_len, None))
    encoder = image_encoder(vae)
    image = meta(config.image_height, config.image_width, 3, dtype=torch.uint8)
    pixels = meta(1, 3, 1, config.image_height, config.image_width)
    words, proprio = meta(1, config.text_len, config.text_dim), meta(1, config.proprio_dim)
    pairs = {
        "text_once": (count(lambda: model.executor_text(words, proprio), model), Count()),
        "pad_collapse": (count_stage(wide), count_stage(narrow)),
        "time_tables": (count(modulations, model), Count()),
        "merged_qkv": (count(single, model), count(merged, *qkv)),
        "no_masks": (count(lambda: attended(True)), count(lambda: attended(False))),
        "planner_tail": (
            count(lambda: planner.velocity(latents, time, frame, text), model),
            count(lambda: planner.context(latents, frame, text), model),
        ),
        "image_vae_2d": (Count(), count(lambda: encoder(image), encoder)),
    }
    released = UpstreamEager(model, vae).vae  # last, because it changes the VAE's convolutions
    return pairs | {"image_vae_2d": (count(lambda: released.encode(pixels), released), pairs["image_vae_2d"][1])}

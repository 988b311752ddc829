"""AHA-WAM as stages and programs: `prompt` per instruction, `plan` per refresh, `act` per chunk (DESIGN section 3).

Hosts feed what is not in the weights: the image, the state, noise, positions as rotary rows, free memory slots as a
bias, and actions already under way as a prefix.  `host_config` tells them the numbers they need for that.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from edgewam.core.observation import Normalizer
from edgewam.core.program import Program, Programs, Push, State
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.flow.schedule import TableDtype
from edgewam.models.aha_wam_config import AhaWamConfig
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.aha_wam_stages import RouterStage
from edgewam.models.planner_stage import PlannerStage
from edgewam.models.program_parts import (
    buffers_of,
    common_host_config,
    common_shapes,
    default_text_bucket,
    denoise_loop,
    prompt_inputs,
    prompt_program,
    sampler_tables,
    weights_dtype,
    wired_call,
    wired_stages,
)
from edgewam.models.wam_stages import BeginStage, DenoiseStage, FinishStage, ImageStage, StateStage, TextStage

__all__ = ["host_config", "programs", "prompt_inputs", "specs", "stages"]


def specs(config: AhaWamConfig, text_bucket: int, dtype: str = "float32") -> dict[str, TensorSpec]:
    """Every buffer of the programs by name; keys and values have the weights' dtype, everything else is as hosts give it."""
    shapes = common_shapes(config, text_bucket, dtype)
    context = shapes["context"][0]
    shapes |= {
        "memory": ((config.memory_slots, *context), dtype),
        "memory_bias": ((config.memory_slots,), "float32"),
        "slot": ((1,), "int64"),
        "routed": (context, dtype),
    }
    return buffers_of(shapes)


# stage -> (inputs, outputs), in the order of the module's positional tensors; names are those of `specs`
_WIRING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text_rows", "text_bias"), ("planner_text", "executor_text", "key_bias")),
    "image_encoder": (("image",), ("latent",)),
    "planner": (("latent", "memory", "memory_bias", "planner_text", "key_bias", "frame_cos", "frame_sin"), ("context",)),
    "router": (("latent", "context"), ("routed",)),
    "state": (("state", "executor_text"), ("cross",)),
    "begin": (("noise", "prefix", "prefix_mask"), ("x", "prefix_normalised")),
    "denoise": (
        ("x", "time_row", "clean_row", "delta", "routed", "cross", "key_bias", "chunk_cos", "chunk_sin",
         "prefix_normalised", "prefix_mask"),
        ("x",),
    ),
    "finish": (("x",), ("actions",)),
}  # fmt: skip


def stages(
    model: AhaWam,
    image_encoder: nn.Module,
    state_normalizer: Normalizer,
    action_normalizer: Normalizer,
    text_bucket: int | None = None,
) -> dict[str, Stage]:
    """All stages of a policy, in the order in which they first run.

    image_encoder: uint8 [H, W, 3] -> latent [1, Cz, h, w].  The normalizers hold the robot's units.  Linear layers share
    memory with the model except where projections are merged.
    """
    config = model.config
    bucket = text_bucket or default_text_bucket(config)
    modules: dict[str, tuple[nn.Module, int]] = {
        "text": (TextStage(model), bucket + 1),
        "image_encoder": (ImageStage(image_encoder), config.latent_height * config.latent_width),
        "planner": (PlannerStage(model), config.frame_tokens),
        "router": (RouterStage(model), config.frame_tokens),
        "state": (StateStage(model.proprio_encoder, model.executor, state_normalizer), 1),
        "begin": (BeginStage(action_normalizer), config.chunk_size),
        "denoise": (DenoiseStage(model), config.chunk_size),
        "finish": (FinishStage(action_normalizer), config.chunk_size),
    }
    return wired_stages(_WIRING, modules, specs(config, bucket, weights_dtype(model)), model)


def programs(model: AhaWam, num_action_steps: int, tables: TableDtype = "float32", text_bucket: int | None = None) -> Programs:
    """The three programs, their states, and the constant tables of an Euler sampler with `num_action_steps` steps."""
    config = model.config
    buffers = specs(config, text_bucket or default_text_bucket(config), weights_dtype(model))
    act = Program(
        "act",
        tuple(buffers[name] for name in ("image", "state", "noise", "prefix", "prefix_mask", "chunk_cos", "chunk_sin")),
        ("actions",),
        setup=tuple(wired_call(_WIRING, stage) for stage in ("image_encoder", "router", "state", "begin")),
        loop=denoise_loop(_WIRING, num_action_steps),
        finish=(wired_call(_WIRING, "finish"),),
    )
    plan = Program(
        "plan",
        tuple(buffers[name] for name in ("image", "memory_bias", "slot", "frame_cos", "frame_sin")),
        (),
        setup=(wired_call(_WIRING, "image_encoder"), wired_call(_WIRING, "planner"), Push("context", "memory", "slot")),
    )
    states = [State(buffers[name], "prompt") for name in ("planner_text", "executor_text", "key_bias")]
    states += [State(buffers[name], "plan") for name in ("context", "memory")]
    listed = {"prompt": prompt_program(_WIRING, buffers), "plan": plan, "act": act}
    return Programs(tuple(states), listed, sampler_tables(model, num_action_steps, tables))


def host_config(config: AhaWamConfig, text_bucket: int | None = None) -> dict[str, Any]:
    """What the host computes program inputs from, as plain JSON.

    Temporal position of a frame = control step // rope_stride, chunk rows = chunk index * chunk_size + 0..chunk_size-1;
    rotary rows are cos and sin of position * theta**(-2j/dim) per axis, axes concatenated in the order of `rope_dims`.
    """
    return {
        **common_host_config(config, text_bucket),
        "memory_slots": config.memory_slots,
        "rope_theta": config.rope_theta,
        "rope_dims": list(config.rope_dims),
        "head_dim": config.head_dim,
        "grid": list(config.grid),
        "rope_stride": config.rope_stride,
    }

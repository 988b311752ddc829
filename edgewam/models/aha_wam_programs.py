"""AHA-WAM as stages and programs: `prompt` per instruction, `plan` per refresh, `act` per chunk (DESIGN section 3).

Hosts feed what is not in the weights: the image, the state, noise, positions as rotary rows, free memory slots as a
bias, and actions already under way as a prefix.  `host_config` tells them the numbers they need for that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgewam.core.observation import Normalizer
from edgewam.core.program import Call, Loop, Program, Programs, Push, State
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.flow.schedule import TableDtype
from edgewam.flow.solver import euler_table
from edgewam.models.aha_wam_config import AhaWamConfig
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.aha_wam_planner_stage import PlannerStage, modulation_rows
from edgewam.models.aha_wam_stages import (
    BeginStage,
    DenoiseStage,
    FinishStage,
    ImageStage,
    RouterStage,
    StateStage,
    TextStage,
)
from edgewam.models.stage_cost import make_stage
from edgewam.models.text import pack_context

DEFAULT_TEXT_BUCKET = 48  # real prompts have 25 to 45 tokens; a longer one needs a bundle with 128


def default_text_bucket(config: AhaWamConfig) -> int:
    """Text rows of a bundle unless it is told otherwise."""
    return min(DEFAULT_TEXT_BUCKET, config.text_len)


def specs(config: AhaWamConfig, text_bucket: int, dtype: str = "float32") -> dict[str, TensorSpec]:
    """Every buffer of the programs by name; keys and values have the weights' dtype, everything else is as hosts give it."""
    layers, tokens, width = config.num_layers, config.frame_tokens, config.attention_dim
    chunk, half = (config.chunk_size, config.action_dim), config.head_dim // 2
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "text_rows": ((text_bucket, config.text_dim), "float32"),
        "text_bias": ((text_bucket + 1,), "float32"),
        "planner_text": ((layers, 2, text_bucket + 1, width), dtype),
        "executor_text": ((layers, 2, text_bucket + 1, width), dtype),
        "key_bias": ((text_bucket + 2,), "float32"),
        "image": ((config.image_height, config.image_width, 3), "uint8"),
        "latent": ((config.latent_dim, config.latent_height, config.latent_width), "float32"),
        "memory": ((config.memory_slots, layers, 2, tokens, width), dtype),
        "memory_bias": ((config.memory_slots,), "float32"),
        "slot": ((1,), "int64"),
        "frame_cos": ((tokens, half), "float32"),
        "frame_sin": ((tokens, half), "float32"),
        "context": ((layers, 2, tokens, width), dtype),
        "routed": ((layers, 2, tokens, width), dtype),
        "state": ((config.proprio_dim,), "float32"),
        "cross": ((layers, 2, text_bucket + 2, width), dtype),
        "noise": (chunk, "float32"),
        "prefix": (chunk, "float32"),
        "prefix_mask": ((config.chunk_size,), "bool"),
        "prefix_normalised": (chunk, "float32"),
        "x": (chunk, "float32"),
        "time_row": ((layers, 6, config.action_hidden_dim), "float32"),
        "clean_row": ((layers, 6, config.action_hidden_dim), "float32"),
        "delta": ((1,), "float32"),
        "chunk_cos": ((config.chunk_size, half), "float32"),
        "chunk_sin": ((config.chunk_size, half), "float32"),
        "actions": (chunk, "float32"),
    }
    return {name: TensorSpec(name, shape, kind) for name, (shape, kind) in shapes.items()}


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
    buffers = specs(config, bucket, _dtype(model))
    modules: dict[str, tuple[nn.Module, int]] = {
        "text": (TextStage(model), bucket + 1),
        "image_encoder": (ImageStage(image_encoder), config.latent_height * config.latent_width),
        "planner": (PlannerStage(model), config.frame_tokens),
        "router": (RouterStage(model), config.frame_tokens),
        "state": (StateStage(model, state_normalizer), 1),
        "begin": (BeginStage(action_normalizer), config.chunk_size),
        "denoise": (DenoiseStage(model), config.chunk_size),
        "finish": (FinishStage(action_normalizer), config.chunk_size),
    }
    built = {}
    for name, (module, rows) in modules.items():
        inputs, outputs = (tuple(buffers[buffer] for buffer in names) for names in _WIRING[name])
        if name == "denoise":  # exporters need different names in and out; the program maps both to one carry
            outputs = (TensorSpec("x_next", outputs[0].shape),)
        built[name] = make_stage(name, module.to(model.branch.device), inputs, outputs, rows)
    return built


def programs(model: AhaWam, num_action_steps: int, tables: TableDtype = "float32", text_bucket: int | None = None) -> Programs:
    """The three programs, their states, and the constant tables of an Euler sampler with `num_action_steps` steps."""
    config = model.config
    buffers = specs(config, text_bucket or default_text_bucket(config), _dtype(model))
    denoise = Call("denoise", _call("denoise").inputs, {"x_next": "x"})
    act = Program(
        "act",
        tuple(buffers[name] for name in ("image", "state", "noise", "prefix", "prefix_mask", "chunk_cos", "chunk_sin")),
        ("actions",),
        setup=(_call("image_encoder"), _call("router"), _call("state"), _call("begin")),
        loop=Loop(
            (Call("denoise", denoise.inputs, {"x_next": "x"}),), {"time_row": "time_rows", "delta": "deltas"}, num_action_steps
        ),
        finish=(_call("finish"),),
    )
    plan = Program(
        "plan",
        tuple(buffers[name] for name in ("image", "memory_bias", "slot", "frame_cos", "frame_sin")),
        (),
        setup=(_call("image_encoder"), _call("planner"), Push("context", "memory", "slot")),
    )
    prompt = Program("prompt", (buffers["text_rows"], buffers["text_bias"]), (), setup=(_call("text"),))
    states = [State(buffers[name], "prompt") for name in ("planner_text", "executor_text", "key_bias")]
    states += [State(buffers[name], "plan") for name in ("context", "memory")]
    return Programs(tuple(states), {"prompt": prompt, "plan": plan, "act": act}, _tables(model, num_action_steps, tables))


def _tables(model: AhaWam, num_action_steps: int, tables: TableDtype) -> dict[str, Any]:
    table = euler_table(num_action_steps, model.config.shift, tables)
    device = model.branch.device
    rows = modulation_rows(model.executor, torch.cat([table.timesteps, torch.zeros(1)]).to(device)).cpu().numpy()
    return {"time_rows": rows[:-1], "clean_row": rows[-1], "deltas": table.velocity[:, None].numpy()}


def _call(stage: str) -> Call:
    inputs, outputs = _WIRING[stage]
    return Call(stage, {name: name for name in inputs}, {name: name for name in outputs})


def _dtype(model: AhaWam) -> str:
    return str(model.branch.dtype).removeprefix("torch.")


def prompt_inputs(config: AhaWamConfig, embedding: npt.ArrayLike, text_bucket: int | None = None) -> dict[str, Any]:
    """Inputs of the program `prompt` from text rows [L, text_dim] with their zero padding.

    Raises:
        ValueError: more words than the bucket holds, or padding that is longer or shorter than in training.
    """
    if (length := len(np.asarray(embedding))) != config.text_len:
        raise ValueError(f"The prompt has {length} rows with its padding; this model was trained with {config.text_len}.")
    rows, bias = pack_context(embedding, text_bucket or default_text_bucket(config))
    return {"text_rows": rows, "text_bias": bias}


def host_config(config: AhaWamConfig, text_bucket: int | None = None) -> dict[str, Any]:
    """What the host computes program inputs from, as plain JSON.

    Temporal position of a frame = control step // rope_stride, chunk rows = chunk index * chunk_size + 0..chunk_size-1;
    rotary rows are cos and sin of position * theta**(-2j/dim) per axis, axes concatenated in the order of `rope_dims`.
    """
    return {
        "image_height": config.image_height,
        "image_width": config.image_width,
        "state_dim": config.proprio_dim,
        "action_dim": config.action_dim,
        "chunk_size": config.chunk_size,
        "horizon": config.horizon,
        "memory_slots": config.memory_slots,
        "rope_theta": config.rope_theta,
        "rope_dims": list(config.rope_dims),
        "head_dim": config.head_dim,
        "grid": list(config.grid),
        "rope_stride": config.rope_stride,
        "text_bucket": text_bucket or default_text_bucket(config),
        "text_len": config.text_len,
        "text_dim": config.text_dim,
    }

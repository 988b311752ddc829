"""What the programs of all families are put together from: common buffers, stages wired to them, sampler tables, prompts.

A family's wiring maps each stage to the buffers that it reads and writes, in the order of its module's positional tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgewam.core.program import Call, Loop, Program
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.flow.schedule import TableDtype
from edgewam.flow.solver import euler_table
from edgewam.models.planner_stage import modulation_rows
from edgewam.models.stage_cost import make_stage
from edgewam.models.text import pack_context
from edgewam.models.wam_config import WamConfig
from edgewam.models.wam_model import Wam

DEFAULT_TEXT_BUCKET = 48  # real prompts have 25 to 45 tokens; a longer one needs a bundle with 128

Shapes = dict[str, tuple[tuple[int, ...], str]]
Wiring = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


def default_text_bucket(config: WamConfig) -> int:
    """Text rows of a bundle unless it is told otherwise."""
    return min(DEFAULT_TEXT_BUCKET, config.text_len)


def common_shapes(config: WamConfig, text_bucket: int, dtype: str) -> Shapes:
    """Shape and dtype of every buffer that all families have; keys and values have the weights' dtype."""
    layers, tokens, width = config.num_layers, config.frame_tokens, config.attention_dim
    chunk, half = (config.chunk_size, config.action_dim), config.head_dim // 2
    return {
        "text_rows": ((text_bucket, config.text_dim), "float32"),
        "text_bias": ((text_bucket + 1,), "float32"),
        "planner_text": ((layers, 2, text_bucket + 1, width), dtype),
        "executor_text": ((layers, 2, text_bucket + 1, width), dtype),
        "key_bias": ((text_bucket + 2,), "float32"),
        "image": ((config.image_height, config.image_width, 3), "uint8"),
        "latent": ((config.latent_dim, config.latent_height, config.latent_width), "float32"),
        "frame_cos": ((tokens, half), "float32"),
        "frame_sin": ((tokens, half), "float32"),
        "context": ((layers, 2, tokens, width), dtype),
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


def buffers_of(shapes: Shapes) -> dict[str, TensorSpec]:
    """The specs of named shapes."""
    return {name: TensorSpec(name, shape, kind) for name, (shape, kind) in shapes.items()}


def wired_stages(
    wiring: Wiring, modules: Mapping[str, tuple[nn.Module, int]], buffers: Mapping[str, TensorSpec], model: Wam
) -> dict[str, Stage]:
    """A stage around each module, which comes with the rows of its main matrix products, on the model's device."""
    built = {}
    for name, (module, rows) in modules.items():
        inputs, outputs = (tuple(buffers[buffer] for buffer in names) for names in wiring[name])
        if name == "denoise":  # exporters need different names in and out; the program maps both to one carry
            outputs = (TensorSpec("x_next", outputs[0].shape),)
        built[name] = make_stage(name, module.to(model.proprio_encoder.weight.device), inputs, outputs, rows)
    return built


def wired_call(wiring: Wiring, stage: str) -> Call:
    """The call of a stage with the buffers of its wiring."""
    inputs, outputs = wiring[stage]
    return Call(stage, {name: name for name in inputs}, {name: name for name in outputs})


def prompt_program(wiring: Wiring, buffers: Mapping[str, TensorSpec]) -> Program:
    """`prompt`: the text's keys and values, once per instruction."""
    return Program("prompt", (buffers["text_rows"], buffers["text_bias"]), (), setup=(wired_call(wiring, "text"),))


def denoise_loop(wiring: Wiring, num_action_steps: int) -> Loop:
    """The solver's steps, which read the tables of `sampler_tables`."""
    call = Call("denoise", wired_call(wiring, "denoise").inputs, {"x_next": "x"})
    return Loop((call,), {"time_row": "time_rows", "delta": "deltas"}, num_action_steps)


def sampler_tables(model: Wam, num_action_steps: int, tables: TableDtype) -> dict[str, npt.NDArray[Any]]:
    """Constants of an Euler sampler: a modulation row and a step width per step, and the modulation row of clean actions."""
    table = euler_table(num_action_steps, model.config.shift, tables)
    timesteps = torch.cat([table.timesteps, torch.zeros(1)]).to(model.proprio_encoder.weight.device)
    rows = modulation_rows(model.executor, timesteps).cpu().numpy()
    return {"time_rows": rows[:-1], "clean_row": rows[-1], "deltas": table.velocity[:, None].numpy()}


def weights_dtype(model: Wam) -> str:
    """Name of the dtype of a model's weights."""
    return str(model.proprio_encoder.weight.dtype).removeprefix("torch.")


def prompt_inputs(config: WamConfig, embedding: npt.ArrayLike, text_bucket: int | None = None) -> dict[str, Any]:
    """Inputs of the program `prompt` from text rows [L, text_dim] with their zero padding.

    Raises:
        ValueError: more words than the bucket holds, or padding that is longer or shorter than in training.
    """
    if (length := len(np.asarray(embedding))) != config.text_len:
        raise ValueError(f"The prompt has {length} rows with its padding; this model was trained with {config.text_len}.")
    rows, bias = pack_context(embedding, text_bucket or default_text_bucket(config))
    return {"text_rows": rows, "text_bias": bias}


def common_host_config(config: WamConfig, text_bucket: int | None = None) -> dict[str, Any]:
    """Sizes that every host needs, as plain JSON."""
    return {
        "image_height": config.image_height,
        "image_width": config.image_width,
        "state_dim": config.proprio_dim,
        "action_dim": config.action_dim,
        "chunk_size": config.chunk_size,
        "horizon": config.horizon,
        "text_bucket": text_bucket or default_text_bucket(config),
        "text_len": config.text_len,
        "text_dim": config.text_dim,
    }

"""A toy family of three jointly denoised states (video, action, proprio) with a multistep solver, as X-WAM has them.

It exists so that stages, programs, pipeline and export are not shaped by one family: carries with solver memory, an
asynchronous schedule, and a policy mode that only runs the first rows of the full table.  It learns nothing useful.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewam.core.program import Call, Loop, Program, Programs, State
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.models.toy_unipc import COLUMNS, finished_rows, unipc_table

FAMILY = "toy-three"
STATES = ("video", "action", "proprio")
MEMORY = ("x", "last", "m1", "m2")  # what UniPC carries per state


@dataclass(frozen=True)
class ToyThreeConfig:
    """Rows and channels of the three states, network width, prompt size and the length of the full video schedule."""

    video: tuple[int, int] = (6, 8)
    action: tuple[int, int] = (4, 3)
    proprio: tuple[int, int] = (1, 5)
    width: int = 16
    text_len: int = 3
    text_dim: int = 8
    num_video_steps: int = 12

    def shape(self, state: str) -> tuple[int, int]:
        """(rows, channels) of one state."""
        shape: tuple[int, int] = getattr(self, state)
        return shape

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)


class ToyThree(nn.Module):
    """One attention layer over the tokens of all three states and the prompt, conditioned on one noise level per state."""

    def __init__(self, config: ToyThreeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.ModuleDict({name: nn.Linear(config.shape(name)[1], width) for name in STATES})
        self.head = nn.ModuleDict({name: nn.Linear(width, config.shape(name)[1]) for name in STATES})
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.text = nn.Linear(config.text_dim, 2 * width)

    def context(self, text: Tensor) -> Tensor:
        """Keys and values [2, text_len, width] of a prompt [text_len, text_dim]."""
        return torch.stack(self.text(text).chunk(2, dim=-1))

    def velocity(self, x: tuple[Tensor, ...], timesteps: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        """Velocities like x (video, action, proprio: [rows, channels]) at timesteps [3]."""
        tokens = torch.cat([self.embed[n](value) + _time_row(timesteps[i], self.config.width)
                            for i, (n, value) in enumerate(zip(STATES, x, strict=True))])  # fmt: skip
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        scores = query @ torch.cat([context[0], key]).T / self.config.width**0.5
        tokens = tokens + scores.softmax(-1) @ torch.cat([context[1], value])
        parts = (tokens + self.mlp(tokens)).split([self.config.shape(name)[0] for name in STATES])
        return tuple(self.head[name](part) for name, part in zip(STATES, parts, strict=True))


def _time_row(timestep: Tensor, width: int) -> Tensor:
    rates = torch.exp(torch.arange(width // 2, dtype=torch.float32) * (-9.2 / (width // 2)))
    angles = timestep * rates
    return torch.cat([angles.cos(), angles.sin()])


class _Context(nn.Module):
    """Stage `context`: prompt rows -> keys and values."""

    def __init__(self, model: ToyThree) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor) -> tuple[Tensor]:
        """Text [text_len, text_dim] -> (context,)."""
        return (self.model.context(text),)


class _Start(nn.Module):
    """Stage `start`: noise of every state -> the solver's carries, its memory empty."""

    def forward(self, *noise: Tensor) -> tuple[Tensor, ...]:
        """Noise per state -> (x, last, m1, m2) per state."""
        return tuple(value for x in noise for value in (x.clone(), *(torch.zeros_like(x) for _ in MEMORY[1:])))


class _Step(nn.Module):
    """Stage `step`: one joint network evaluation and one UniPC update of each state."""

    def __init__(self, model: ToyThree) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor, context: Tensor, *carries: Tensor) -> tuple[Tensor, ...]:
        """Solver rows [3, 10], context and (x, last, m1, m2) per state -> the carries after one step."""
        size = len(MEMORY)
        groups = [carries[i : i + size] for i in range(0, len(carries), size)]
        velocities = self.model.velocity(tuple(group[0] for group in groups), rows[:, 0], context)
        return tuple(
            value
            for row, group, velocity in zip(rows, groups, velocities, strict=True)
            for value in unipc_step(row, group, velocity)
        )


def unipc_step(row: Tensor, carries: tuple[Tensor, ...], velocity: Tensor) -> tuple[Tensor, ...]:
    """(x, last, m1, m2) after one step with one table row [10]; see `toy_unipc.unipc_table`."""
    x, last, m1, m2 = carries
    _, sigma, corr_x, corr_last, corr_m, corr_m1, corr_m2, pred_x, pred_m, pred_m1 = row
    m = x - sigma * velocity
    corrected = corr_x * x + corr_last * last + corr_m * m + corr_m1 * m1 + corr_m2 * m2
    return pred_x * corrected + pred_m * m + pred_m1 * m1, corrected, m, m1


def build(config: ToyThreeConfig | None = None) -> ToyThree:
    """A freshly initialised network, float32."""
    return ToyThree(config or ToyThreeConfig()).eval()


def solver_rows(config: ToyThreeConfig, num_action_steps: int) -> np.ndarray:
    """Rows float32 [num_video_steps, 3, 10]: actions and proprio run their own shorter schedule, then stay as they are.

    Raises:
        ValueError: more action steps than video steps.
    """
    if not 1 <= num_action_steps <= config.num_video_steps:
        raise ValueError(f"num_action_steps must lie in 1..{config.num_video_steps}, got {num_action_steps}.")
    short = np.concatenate([unipc_table(num_action_steps), finished_rows(config.num_video_steps - num_action_steps)])
    return np.stack([unipc_table(config.num_video_steps), short, short], axis=1).astype(np.float32)


def stages(model: ToyThree) -> dict[str, Stage]:
    """`context` (once per prompt), `start` (once per chunk) and `step` (once per solver row)."""
    config = model.config
    text = TensorSpec("text", (config.text_len, config.text_dim))
    context = TensorSpec("context", (2, config.text_len, config.width))
    rows = TensorSpec("rows", (len(STATES), len(COLUMNS)))
    noise = tuple(TensorSpec(f"{name}_noise", config.shape(name)) for name in STATES)
    carries = tuple(TensorSpec(f"{name}_{part}", config.shape(name)) for name in STATES for part in MEMORY)
    after = tuple(TensorSpec(f"{spec.name}_next", spec.shape) for spec in carries)
    declared = (
        _stage("context", (text,), (context,), _Context(model), config.text_len, model.text),
        _stage("start", noise, carries, _Start(), 0),
        _stage("step", (rows, context, *carries), after, _Step(model), sum(config.shape(n)[0] for n in STATES),
               model.embed, model.head, model.qkv, model.mlp),
    )  # fmt: skip
    return {stage.name: stage for stage in declared}


def _stage(
    name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], function: nn.Module, rows: int, *used: nn.Module
) -> Stage:
    num_weights = sum(p.numel() for module in used for p in module.parameters())
    io_bytes = sum(spec.size_bytes for spec in (*inputs, *outputs))
    return Stage(name, inputs, outputs, Cost(4 * num_weights, 2 * num_weights * rows, rows, io_bytes), function.eval())


def programs(model: ToyThree, num_action_steps: int = 4) -> Programs:
    """`prompt`; `act`, which ends when the actions are done; `imagine`, which goes on until the video is done too."""
    config = model.config
    noise = tuple(TensorSpec(f"{name}_noise", config.shape(name)) for name in STATES)
    carries = [f"{name}_{part}" for name in STATES for part in MEMORY]
    start = Call("start", {spec.name: spec.name for spec in noise}, {name: name for name in carries})
    step = Call(
        "step",
        {"rows": "rows", "context": "context"} | {name: name for name in carries},
        {f"{name}_next": name for name in carries},
    )
    text = TensorSpec("text", (config.text_len, config.text_dim))
    context = TensorSpec("context", (2, config.text_len, config.width))
    outputs = tuple(f"{name}_x" for name in STATES)

    def sampler(name: str, num_rows: int) -> Program:
        return Program(name, noise, outputs, (start,), Loop((step,), {"rows": "solver_rows"}, num_rows))

    prompt = Program("prompt", (text,), (), (Call("context", {"text": "text"}, {"context": "context"}),))
    return Programs(
        (State(context, "prompt"),),
        {"prompt": prompt, "act": sampler("act", num_action_steps), "imagine": sampler("imagine", config.num_video_steps)},
        {"solver_rows": solver_rows(config, num_action_steps)},
    )


def prompt_inputs(config: ToyThreeConfig, embedding: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the program `prompt` from text rows [text_len, text_dim]."""
    return {"text": np.asarray(embedding, np.float32).reshape(config.text_len, config.text_dim)}


def host_config(config: ToyThreeConfig) -> dict[str, Any]:
    """What a host needs to feed the programs: the configuration itself."""
    return config.to_json()

"""The Fast-WAM family: one network, its losses, its stages and its programs `prompt` and `act` (facts/aha_wam.md 9).

AHA-WAM without router, memory and chunks: every observation is prefilled anew, and its keys and values serve one whole horizon
of actions.  The state is a token of the text for both experts.  Experts, losses, samplers and stages are those of all families.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewam.core.errors import ContractError
from edgewam.core.observation import Normalizer
from edgewam.core.program import Program, Programs, State
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.flow.schedule import TableDtype
from edgewam.models import checkpoints
from edgewam.models.chunks import chunk_text, chunk_velocity
from edgewam.models.dit_block import KeyValue
from edgewam.models.flow_loss import (
    LossBatch,
    Losses,
    Noise,
    Predictions,
    draw_noise,
    joint_losses,
    noisy_actions,
    noisy_video,
)
from edgewam.models.flow_ode import Conditioning, draw_anchors, ode_loss, rollout_loss, sample_horizon, teacher_trajectory
from edgewam.models.masks import bias_of, first_frame_causal
from edgewam.models.planner_stage import PrefillStage
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
from edgewam.models.wam_config import WamConfig, released_sizes
from edgewam.models.wam_files import load_network
from edgewam.models.wam_model import MixtureOfTransformers, Wam
from edgewam.models.wam_stages import BeginStage, DenoiseStage, FinishStage, ImageStage, StatesStage, TextStage
from edgewam.models.wan_sizes import Shapes, transformer_sizes

FAMILY = "fast_wam"
OWN_CONDITIONING = True  # a student is conditioned by its own prefill
CHUNK_IMAGES = False  # actions see the picture of the planner
LEARNT_BY_STUDENTS = ("mot.mixtures.action.",)
MATRICES = (".blocks.",)
_EDITOR = "mot.chunk_kv_cache_editor."
_UNUSED = ("mot.action_branch_embedding",)  # AHA-WAM's re-implementation stores it; its forward pass never reads it
_RELEASED_EXECUTED = 0.75  # RoboTwin executes 24 of 32 actions, then replans

__all__ = [
    "BLOCKS", "CHUNK_IMAGES", "FAMILY", "LEARNT_BY_STUDENTS", "MATRICES", "OWN_CONDITIONING", "Config", "FastWam",
    "FastWamConfig", "build", "condition", "draw_anchors", "draw_noise", "from_release_json", "full", "host_config", "libero",
    "load", "matches", "ode_loss", "predict", "prefill", "programs", "prompt_inputs", "rollout_loss", "sample_horizon",
    "save", "sizes_of", "small", "stages", "teacher_trajectory", "training_loss",
]  # fmt: skip


@dataclass(frozen=True)
class FastWamConfig(WamConfig):
    """Sizes of planner and executor (`WamConfig`); the whole horizon is one chunk.

    `execute_steps`: actions of a horizon that are executed before the next one; None: three quarters of it.
    """

    horizon: int = 32
    execute_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no checkpoint of this family can have."""
        super().__post_init__()
        if self.execute_steps is not None and not 1 <= self.execute_steps <= self.horizon:
            raise ValueError(f"execute_steps must be from 1 to the horizon {self.horizon}, not {self.execute_steps}.")


Config = FastWamConfig


def full() -> FastWamConfig:
    """The 6.02 billion parameters of the RoboTwin release."""
    return FastWamConfig()


def libero() -> FastWamConfig:
    """The LIBERO release: two cameras side by side, one arm."""
    return FastWamConfig(image_height=224, image_width=448, action_dim=7, proprio_dim=8, execute_steps=10)


def small() -> FastWamConfig:
    """The experts of the small AHA-WAM that ships with the repository, for the same robot and cameras."""
    return FastWamConfig(
        num_layers=4, num_heads=4, head_dim=48, video_dim=192, video_ffn_dim=768, action_hidden_dim=128, action_ffn_dim=512,
        text_dim=128, text_len=16, freq_dim=64, image_height=192, image_width=160,
    )  # fmt: skip


def from_release_json(data: Mapping[str, Any], text_len: int = 128) -> FastWamConfig:
    """Sizes from a released-style configuration file, which does not hold the length of the text."""
    height, width = data["image_hw"]
    return FastWamConfig(
        **released_sizes(data),
        lambda_action=data["loss"]["lambda_action"],
        text_len=text_len,
        image_height=height,
        image_width=width,
    )


class FastWam(Wam):
    """The whole network."""

    config: FastWamConfig

    def __init__(self, config: FastWamConfig) -> None:
        super().__init__(config, MixtureOfTransformers(config))


def build(config: FastWamConfig) -> FastWam:
    """A freshly initialised network, float32."""
    return FastWam(config)


def load(path: Path | str, config: FastWamConfig | None = None, dtype: torch.dtype = torch.float32) -> FastWam:
    """A network from our own directory, or from a released `.pt` file of the sizes in `config` (default: `full`).

    Raises:
        ArtifactError: what is wrong with the file and what to do.
    """
    return load_network(path, FAMILY, FastWam, FastWamConfig, config or full(), dtype, _UNUSED)


def save(
    model: FastWam,
    directory: Path | str,
    storage: str = "float32",
    metadata: dict[str, object] | None = None,
    base: Path | str | None = None,
) -> None:
    """Write our own format; `storage` is float32, float16 or bfloat16, `base` a saved model to store differences from."""
    config = model.config.to_json()
    checkpoints.save(model, directory, family=FAMILY, config=config, storage=storage, metadata=metadata, base=base)


def BLOCKS(model: FastWam) -> list[nn.Module]:
    """All layers of both transformers."""
    return [*model.planner.blocks, *model.executor.blocks]


def predict(model: FastWam, batch: LossBatch, noise: Noise) -> Predictions:
    """One planner pass over the noisy clip, and K executor passes over its current frame.

    Frames have the temporal positions 0, 1, 2, ... whatever the batch says of them.
    """
    tokens, frame = model.proprio_encoder(batch.proprio), model.config.frame_tokens
    latents, timestep = noisy_video(batch, noise)
    num_frames = latents.shape[2]
    bias = bias_of(first_frame_causal(num_frames, frame)).to(latents.device)
    table = model.video_rope(torch.arange(num_frames, device=latents.device))
    text = model.planner.text_key_values(torch.cat([batch.context, tokens], 1))
    video, context = model.planner.velocity(latents, timestep, table, text, bias=bias)
    current = [(key[:, :frame], value[:, :frame]) for key, value in context]
    words = chunk_text(model, batch.context, tokens)
    return Predictions(video, chunk_velocity(model, *noisy_actions(batch, noise), current, words))


def training_loss(model: FastWam, batch: LossBatch, noise: Noise) -> Losses:
    """Joint loss of one batch; history and chunk images are not used, `proprio` is [B, 1, P]."""
    return joint_losses(predict(model, batch, noise), batch, noise, model.config)


def prefill(model: FastWam, latent: Tensor, context: Tensor, proprio: Tensor) -> Conditioning:
    """What actions are sampled from: latent [B, Cz, h, w] of the current image, text rows [B, L, Dt], state [B, P]."""
    token = model.proprio_encoder(proprio).unsqueeze(1)
    table = model.video_rope(torch.zeros(1, dtype=torch.int64, device=latent.device))
    text = model.planner.text_key_values(torch.cat([context, token], 1))
    current: list[KeyValue] = model.planner.context(latent.unsqueeze(2), table, text)
    return Conditioning(current, context, token)


@torch.no_grad()
def condition(model: FastWam, batch: LossBatch) -> Conditioning:
    """Conditioning from the current image and state of a batch; everything else of the clip is not needed."""
    return prefill(model, batch.video_latents[:, :, 0], batch.context, batch.proprio[:, 0])


# stage -> (inputs, outputs), in the order of the module's positional tensors; names are those of `specs`
_WIRING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text_rows", "text_bias"), ("planner_text", "executor_text", "key_bias")),
    "image_encoder": (("image",), ("latent",)),
    "state": (("state", "planner_text", "executor_text"), ("planner_cross", "cross")),
    "planner": (("latent", "planner_cross", "key_bias", "frame_cos", "frame_sin"), ("context",)),
    "begin": (("noise", "prefix", "prefix_mask"), ("x", "prefix_normalised")),
    "denoise": (
        ("x", "time_row", "clean_row", "delta", "context", "cross", "key_bias", "chunk_cos", "chunk_sin",
         "prefix_normalised", "prefix_mask"),
        ("x",),
    ),
    "finish": (("x",), ("actions",)),
}  # fmt: skip


def specs(config: FastWamConfig, text_bucket: int, dtype: str = "float32") -> dict[str, TensorSpec]:
    """Every buffer of the programs by name; keys and values have the weights' dtype, everything else is as hosts give it."""
    shapes = common_shapes(config, text_bucket, dtype)
    return buffers_of({**shapes, "planner_cross": shapes["cross"]})


def stages(
    model: FastWam,
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
        "state": (StatesStage(model, state_normalizer), 1),
        "planner": (PrefillStage(model), config.frame_tokens),
        "begin": (BeginStage(action_normalizer), config.chunk_size),
        "denoise": (DenoiseStage(model), config.chunk_size),
        "finish": (FinishStage(action_normalizer), config.chunk_size),
    }
    return wired_stages(_WIRING, modules, specs(config, bucket, weights_dtype(model)), model)


def programs(model: FastWam, num_action_steps: int, tables: TableDtype = "float32", text_bucket: int | None = None) -> Programs:
    """Both programs, their states and constants: an Euler sampler's tables, and rotary rows, which are always the same."""
    config = model.config
    buffers = specs(config, text_bucket or default_text_bucket(config), weights_dtype(model))
    act = Program(
        "act",
        tuple(buffers[name] for name in ("image", "state", "noise", "prefix", "prefix_mask")),
        ("actions",),
        setup=tuple(wired_call(_WIRING, stage) for stage in ("image_encoder", "state", "planner", "begin")),
        loop=denoise_loop(_WIRING, num_action_steps),
        finish=(wired_call(_WIRING, "finish"),),
    )
    states = tuple(State(buffers[name], "prompt") for name in ("planner_text", "executor_text", "key_bias"))
    turns = (*model.video_rope(torch.zeros(1, dtype=torch.int64)), *model.action_rope(torch.arange(config.horizon)))
    names = ("frame_cos", "frame_sin", "chunk_cos", "chunk_sin")
    constants = {name: table.numpy() for name, table in zip(names, turns, strict=True)}
    constants |= sampler_tables(model, num_action_steps, tables)
    return Programs(states, {"prompt": prompt_program(_WIRING, buffers), "act": act}, constants)


def host_config(config: FastWamConfig, text_bucket: int | None = None) -> dict[str, Any]:
    """What the host needs to know, as plain JSON; positions are constants of the programs."""
    execute = config.execute_steps or max(1, int(_RELEASED_EXECUTED * config.horizon))
    return {**common_host_config(config, text_bucket), "execute_steps": execute}


def matches(names: Iterable[str]) -> bool:
    """Whether tensors of these names (group.key) are a Fast-WAM's: both experts and a state token, but no editor."""
    names = list(names)
    wanted = ("mot.mixtures.video.", "mot.mixtures.action.", "proprio_encoder.")
    found = all(any(name.startswith(prefix) for name in names) for prefix in wanted)
    return found and not any(name.startswith(_EDITOR) for name in names)


def sizes_of(shapes: Shapes, **given: Any) -> FastWamConfig:
    """Sizes of a checkpoint.  What shapes cannot tell takes the released value, or that in `given` (fields of `FastWamConfig`).

    Raises:
        ContractError: tensors are missing, or something is ambiguous or contradictory; the message says what settles it.
    """
    try:
        return FastWamConfig(**transformer_sizes(shapes, given))
    except (TypeError, ValueError) as error:
        raise ContractError(f"These sizes make no Fast-WAM: {error} Give others than {dict(given)}.") from error

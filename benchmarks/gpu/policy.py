"""The policy that the jobs of one process share: weights drawn once, stages rewritten and compiled once, pipelines as asked for.

Our stages share their weights with the network except where projections are merged or folded, and the network is let go once
they are built, so that 32 GB are enough.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.compilers import fast_function
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.random_policy import Inputs, random_inputs, random_policy
from benchmarks.gpu.upstream import three_dimensional
from edgewam.compile.layer_groups import in_layer_groups
from edgewam.compile.rewrites import rewrite
from edgewam.core.errors import EdgewamError
from edgewam.core.observation import Normalizer
from edgewam.core.program import Programs
from edgewam.core.rope import axis_rope, frame_rope
from edgewam.core.stage import Stage
from edgewam.models.aha_wam import AhaWam, AhaWamConfig, programs, prompt_inputs, stages
from edgewam.models.stage_cost import make_stage
from edgewam.models.wam_stages import ImageStage
from edgewam.models.wan_vae import WanVae
from edgewam.models.wan_vae_blocks import pixels_to_channels
from edgewam.models.wan_vae_image import image_encoder
from edgewam.runtime.backends.eager import TorchEngine
from edgewam.runtime.backends.inductor import InductorEngine
from edgewam.runtime.engine import Engine
from edgewam.runtime.memory import Array
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.torch_memory import TorchMemory

Figures = Mapping[str, float | int | str | bool | None]  # of a section

CHUNK = 1  # index of the timed chunk in its horizon
STD = 0.5  # of states and actions, in the robot's units; their mean is 0
STEPS = (10, 4, 2, 1)  # the counts that pipelines can be asked for
NOT_COMPILED = ("text",)  # runs once per prompt


class ReleasedImage(nn.Module):
    """uint8 image [H, W, 3] -> latent [1, Cz, h, w] with the three-dimensional convolutions of the release; encoder only."""

    def __init__(self, vae: WanVae) -> None:
        super().__init__()
        three_dimensional(vae)
        self.encoder, self.conv1 = vae.encoder, vae.conv1
        self.register_buffer("mean", vae.latent_mean, persistent=False)
        self.register_buffer("std", vae.latent_std, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        pixels = image.permute(2, 0, 1)[None, :, None].to(self.conv1.weight.dtype) * (2 / 255) - 1
        moments = self.conv1(self.encoder(pixels_to_channels(pixels)))
        return ((moments.chunk(2, dim=1)[0] - self.mean) / self.std)[:, :, 0]


@dataclass(frozen=True)
class _Ours:
    """Everything that is left when the network has been let go."""

    stages: dict[str, Stage]
    released_image: Stage
    programs: dict[int, Programs]


class Policy:
    """One random policy on one device."""

    def __init__(self, size: str, dtype: torch.dtype, device: str, seed: int, compiler: str, layer_groups: int) -> None:
        """Draw the weights.

        compiler: "inductor", or a backend of torch.compile that makes no kernels, to try the code.
        layer_groups: stages that the planner is split into.  Dynamo keeps 8 compilations of one forward method and then fails.
        """
        self.device, self.dtype, self.compiler, self._layer_groups = device, dtype, compiler, layer_groups
        self._network: tuple[AhaWam, WanVae] | None = random_policy(size, dtype, device, seed)
        self.config: AhaWamConfig = self._network[0].config
        self.inputs: Inputs = random_inputs(self.config, device, seed)
        self.text = self.inputs.text.to(dtype)
        self.memory = TorchMemory(device)
        self.compile_s: dict[str, float] = {}
        self.robot: tuple[Pipeline, dict[str, Mapping[str, float | int | str | bool | None]]] | None = (
            None  # see program_timing.robot_pipeline
        )
        self._engines: dict[str, Engine] = {}
        self._refused: dict[tuple[bool, tuple[str, ...]], str] = {}

    @property
    def network(self) -> tuple[AhaWam, WanVae]:
        """Network and VAE; only until our stages are built."""
        assert self._network is not None, "the network was let go when the stages were built; measure the release first"
        return self._network

    @property
    def has_network(self) -> bool:
        """Whether the release can still be measured."""
        return self._network is not None

    @functools.cached_property
    def ours(self) -> _Ours:
        """Our stages with every exact rewrite, and what else is made of the network, which is let go."""
        model, vae = self.network
        dims = (self.config.proprio_dim, self.config.action_dim)
        normalizers = [Normalizer(np.zeros(dim, np.float32), np.full(dim, STD, np.float32)) for dim in dims]
        plain = stages(model, image_encoder(vae), *normalizers)
        image = plain["image_encoder"]
        released = make_stage(image.name, ImageStage(ReleasedImage(vae)), image.inputs, image.outputs, image.cost.rows)
        tables = {steps: programs(model, steps, "bf16" if self.dtype == torch.bfloat16 else "float32") for steps in STEPS}
        del model, vae
        self._network = None
        exact = rewrite(plain)
        del plain
        gc.collect()
        given = {steps: in_layer_groups(exact, table, self._layer_groups) for steps, table in tables.items()}
        return _Ours(given[STEPS[0]][0], released, {steps: table for steps, (_, table) in given.items()})

    def stages(self, released_image: bool = False) -> dict[str, Stage]:
        """The stages; with the released image encoder in place of ours if asked for."""
        return {**self.ours.stages, "image_encoder": self.ours.released_image} if released_image else self.ours.stages

    def engines(self, released_image: bool = False, eager: Sequence[str] = ()) -> dict[str, Engine]:
        """One engine per stage: compiled, or as it is for the stages in `eager` and the released image encoder."""
        as_is = {*NOT_COMPILED, *eager, *(("image_encoder",) if released_image else ())}
        return {
            name: TorchEngine(stage) if name in as_is else self._compiled(stage)
            for name, stage in self.stages(released_image).items()
        }

    def pipeline(
        self, steps: int, released_image: bool = False, eager: Sequence[str] = (), overlap: bool = False
    ) -> Pipeline:  # fmt: skip
        """A pipeline whose prompt is set and whose memory is full.

        Raises:
            EdgewamError: a stage that cannot be compiled; said again at once for the same stages, since each try takes minutes.
        """
        start = time.monotonic()
        table, given, asked = self.ours.programs[steps], self.stages(released_image), (released_image, tuple(eager))
        if asked in self._refused:
            raise EdgewamError(self._refused[asked])
        try:
            pipeline = Pipeline(table, given, self.engines(released_image, eager), self.memory, overlap)
        except EdgewamError as error:
            self._refused[asked] = str(error)
            raise
        self.compile_s[f"{steps} steps{', released image' * released_image}"] = time.monotonic() - start
        return self._fill(pipeline)

    def filled(self, engines: Mapping[str, Engine], steps: int, overlap: bool = False) -> Pipeline:
        """A pipeline of engines of the caller's own whose prompt is set and whose memory is full."""
        return self._fill(Pipeline(self.ours.programs[steps], self.stages(), engines, self.memory, overlap))

    def plan_inputs(self, number: int) -> dict[str, Array]:
        """Inputs of the refresh `number` of an episode."""
        config = self.config
        bias = np.full(config.memory_slots, -np.inf, np.float32)
        bias[:number] = 0.0
        cos, sin = frame_rope(self.frame_id(number), config.grid, config.rope_dims, config.rope_theta)
        slot = np.array([number % config.memory_slots])
        return {"image": self.image, "memory_bias": bias, "slot": slot, "frame_cos": cos, "frame_sin": sin}

    def act_inputs(self) -> dict[str, Array]:
        """Inputs of the timed chunk; no prefix."""
        config = self.config
        cos, sin = axis_rope(CHUNK * config.chunk_size + np.arange(config.chunk_size), config.head_dim, config.rope_theta)
        noise = self.inputs.noise[0].numpy()
        return {
            "image": self.image, "state": self.inputs.proprio[0].numpy() * np.float32(STD), "noise": noise,
            "prefix": np.zeros_like(noise), "prefix_mask": np.zeros(config.chunk_size, np.bool_), "chunk_cos": cos,
            "chunk_sin": sin,
        }  # fmt: skip

    def frame_id(self, number: int) -> int:
        """Temporal position of a refresh: one per horizon."""
        return number * self.config.horizon // self.config.rope_stride

    @functools.cached_property
    def image(self) -> Array:
        """The composed image, channels last."""
        return np.ascontiguousarray(self.inputs.image.permute(1, 2, 0).numpy())

    @property
    def planner(self) -> tuple[str, ...]:
        """Names of the stages that the planner is split into."""
        return tuple(name for name in self.ours.stages if name.startswith("planner"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What the timing contract says of the inputs."""
        config = self.config
        return {
            "image": (config.image_height, config.image_width, 3), "state": (config.proprio_dim,),
            "actions": (config.chunk_size, config.action_dim), "text": (config.text_len,),
            "memory": (config.memory_slots * config.frame_tokens,),
        }  # fmt: skip

    def _fill(self, pipeline: Pipeline) -> Pipeline:
        text = self.inputs.text[0].float().cpu().numpy()
        pipeline.run("prompt", prompt_inputs(self.config, text))
        for number in range(self.config.memory_slots):
            pipeline.run("plan", self.plan_inputs(number))
        return pipeline

    def _compiled(self, stage: Stage) -> Engine:
        if stage.name not in self._engines:
            assert stage.function is not None
            self._engines[stage.name] = InductorEngine(stage, fast_function(stage.function, self.compiler, self.device))
        return self._engines[stage.name]


@functools.lru_cache(maxsize=1)
def _policy(size: str, dtype: str, device: str, seed: int, compiler: str, layer_groups: int) -> Policy:
    return Policy(size, getattr(torch, dtype), device, seed, compiler, layer_groups)


def shared_policy(job: Job, device: str) -> Policy:
    """The policy of a job's parameters; the one that an earlier job of this process made, if they agree."""
    p = job.params
    return _policy(p["size"], p["dtype"], device, p["seed"], p["compiler"], p["layer_groups"])


def forget_policy() -> None:
    """Let the shared policy go, as for a job that needs the network after another has used it up."""
    _policy.cache_clear()
    gc.collect()

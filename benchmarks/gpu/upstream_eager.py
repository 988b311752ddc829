"""Full-size AHA-WAM with random bf16 weights, computed as released: action chunk and planner refresh, whole and per stage.

L_chunk: one composed uint8 image and the state on the host -> de-normalised actions on the host.  L_prefill: one planner
refresh with a full memory.  Weights are drawn on the device; speed does not depend on their values, actions would.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.gpu_clock import gpu_contract, time_stages
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.upstream import Mark, UpstreamEager
from benchmarks.results import ROOT, Section
from edgewam.core.observation import Normalizer
from edgewam.models.aha_wam import AhaWam, AhaWamConfig, full
from edgewam.models.aha_wam_config import from_release_json
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.profiles.contract import TimingContract

GIB = 2**30


@dataclass(frozen=True)
class Inputs:
    """What the robot's side hands over, on the host: image uint8 [3, H, W], normalised state [1, P]; text and noise are ready."""

    image: Tensor
    proprio: Tensor
    text: Tensor
    noise: Tensor


def sizes(name: str) -> tuple[AhaWamConfig, WanVaeConfig]:
    """Configurations of "full", or of "golden" (the sizes of the golden arrays)."""
    if name == "full":
        return full(), WanVaeConfig()
    release = json.loads((ROOT / "tests" / "golden" / "aha_wam" / "config_ahawam.json").read_text())
    vae = release["vae"]
    return from_release_json(release), WanVaeConfig(dim=vae["dim"], dec_dim=vae["dec_dim"], z_dim=vae["z_dim"])


def random_policy(name: str, dtype: torch.dtype, device: str, seed: int) -> UpstreamEager:
    """A policy whose weights were drawn on the device itself, in its own dtype: nothing is built on the host first."""
    model_config, vae_config = sizes(name)
    with torch.device("meta"):
        model, vae = AhaWam(model_config), WanVae(vae_config)
    for module in (model, vae):
        module.to(dtype).to_empty(device=device)
        fill_randomly(module, torch.Generator(device).manual_seed(seed))
        module.eval().requires_grad_(False)
    # buffers hold whatever was in memory: these two are constants of the configuration, and there are no others
    assert not list(model.buffers()) and {name for name, _ in vae.named_buffers()} == {"latent_mean", "latent_std"}
    shape = vae.latent_mean.shape
    vae.latent_mean.copy_(torch.tensor(vae_config.latent_mean).view(shape))
    vae.latent_std.copy_(torch.tensor(vae_config.latent_std).view(shape))
    return UpstreamEager(model, vae)


@torch.no_grad()
def fill_randomly(module: nn.Module, generator: torch.Generator) -> None:
    """Matrices get variance 1 / fan-in so that activations neither vanish nor overflow; vectors of norms stay near one."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and parameter.shape[0] > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight", ".0.weight")):
            parameter.normal_(1.0, 0.05, generator=generator)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)


def random_inputs(config: AhaWamConfig, device: str, seed: int) -> Inputs:
    """Seeded image and state on the host, text rows (a third of them real words, the rest zero rows) on the device."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, config.image_height, config.image_width), generator=generator, dtype=torch.uint8)
    text = torch.randn(1, config.text_len, config.text_dim, generator=generator)
    text[:, max(1, config.text_len // 3) :] = 0
    noise = torch.randn(1, config.chunk_size, config.action_dim, generator=generator)
    proprio = torch.randn(1, config.proprio_dim, generator=generator)
    return Inputs(image, proprio, text.to(device), noise)


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `prefill`, then `chunk_<steps>` in the order given, each with stages; `model` has memory and operations."""
    p = job.params
    dtype = getattr(torch, p["dtype"])
    policy = random_policy(p["size"], dtype, device, p["seed"])
    config = policy.model.config
    inputs = random_inputs(config, device, p["seed"])
    text = inputs.text.to(dtype)
    normalizer = Normalizer(np.zeros(config.action_dim, np.float32), np.full(config.action_dim, 0.5, np.float32))
    shapes = {
        "image": (config.image_height, config.image_width, 3), "state": (config.proprio_dim,),
        "actions": (config.chunk_size, config.action_dim), "text": (config.text_len,),
        "memory": (config.memory_slots * config.frame_tokens,),
    }  # fmt: skip
    ids = iter(range(10**9))

    def refresh(mark: Mark) -> None:
        policy.refresh(inputs.image, text, next(ids) * config.horizon // config.rope_stride, mark)

    def chunk(steps: int, mark: Mark) -> np.ndarray:
        actions = policy.act(inputs.image, inputs.proprio, text, inputs.noise, 1, steps, mark)
        return normalizer.backward(actions.numpy())

    for _ in range(config.memory_slots):
        refresh(lambda _: None)
    emit("model", _model_section(policy, inputs, text, shapes, job, device))
    wall, on_device, stages = time_stages(refresh, device, p["refreshes"], p["warmup"])
    contract = _contract(device, job, 0, shapes, tuple(stages), p["refreshes"])
    emit("prefill", Section(contract, _peak(device), {"L_prefill": wall, "device": on_device, **stages}))
    for steps in p["steps"]:
        actions = chunk(steps, lambda _: None)
        assert np.isfinite(actions).all() and np.abs(actions).max() > 0, "the actions are not numbers or nothing"
        wall, on_device, stages = time_stages(lambda mark, steps=steps: chunk(steps, mark), device, p["n"], p["warmup"])
        contract = _contract(device, job, steps, shapes, tuple(stages), p["n"])
        figures = {"act_hz": 1e3 / wall.p50_ms, **_peak(device)}
        emit(f"chunk_{steps}", Section(contract, figures, {"L_chunk": wall, "device": on_device, **stages}))


def _model_section(policy: UpstreamEager, inputs: Inputs, text: Tensor, shapes: dict, job: Job, device: str) -> Section:
    """Parameters, memory and counted operations of one denoise step, which must be those of the release."""
    config = policy.model.config
    words = torch.cat([text, policy.model.proprio_encoder(inputs.proprio.to(device, text.dtype))[:, None]], dim=1)
    noise, timestep = inputs.noise.to(device, text.dtype), torch.full((1,), 832.0, device=device, dtype=text.dtype)
    # the plain attention: every product is counted, whichever fused kernel the device would choose
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        policy.velocity(noise, timestep, 0, policy.context, words)
    gflop, expected = counter.get_total_flops() / 1e9, job.params["denoise_gflop"]
    if expected is not None:
        assert abs(gflop / expected - 1) < 0.01, f"one denoise step is {gflop:.1f} GFLOP, the released one {expected}"
    figures = {
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "denoise_gflop": gflop,
        "denoise_gflop_released": expected,
        "layers": config.num_layers,
        **_peak(device),
    }
    return Section(_contract(device, job, 1, shapes, ("denoise",), 1), figures)


def _peak(device: str) -> dict[str, float]:
    return {} if device == "cpu" else {"memory_peak_gib": torch.cuda.max_memory_allocated() / GIB}


def _contract(device: str, job: Job, steps: int, shapes: dict, stages: tuple[str, ...], n: int) -> TimingContract:
    return gpu_contract(
        device, engine="upstream_eager (PyTorch, as released)", precision=job.params["dtype"], steps=steps, shapes=shapes,
        stages=stages, host_copies=True, warmup=job.params["warmup"], n=n, clock="wall",
        notes="random weights; stages by device events in calls of their own",
    )  # fmt: skip

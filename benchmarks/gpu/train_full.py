"""One optimiser step at full size: of a policy's training and of a student's distillation, with random weights on one card.

Batch 1, layers computed again in the backward pass, bfloat16 products.  One card does not hold what a real run shards over many,
float32 weights and optimiser states of 7.35 billion values (118 GB): weights, gradients and both moments are bfloat16 here, which
80 GB hold; operations are the same, the optimiser moves half the bytes.  Where the card has the room, the float32 form follows.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.gpu_clock import Mark, gpu_contract, time_stages
from benchmarks.gpu.jobs import Emit, Job
from benchmarks.gpu.random_policy import fill_randomly, sizes
from benchmarks.gpu.rates import measured_device
from benchmarks.results import Section
from edgewam.data.windows import WindowLayout, released_layout
from edgewam.models.aha_wam import AhaWamConfig
from edgewam.models.family import trainable
from edgewam.models.flow_loss import LossBatch
from edgewam.profiles.device import find_device
from edgewam.training.example_windows import ExampleWindows
from edgewam.training.parallel import checkpoint_activations
from edgewam.training.windows import Choice

TEACHER_STEPS, CAPTURED = 16, (0, 1, 2, 4, 8, 12, 16)
# Bytes per value of the float32 form: weight, gradient, two moments, and the bfloat16 copy that autocast keeps; then activations
# of one window and what the allocator loses.
FLOAT32_FORM, SPARE_BYTES = 18, 8 * 10**9


@dataclass(frozen=True)
class Setting:
    """What all sections share."""

    job: Job
    device: str
    family: ModuleType
    config: AhaWamConfig
    layout: WindowLayout

    @property
    def batch(self) -> int:
        """Windows of a step."""
        return int(self.job.params["batch"])

    def data(self) -> LossBatch:
        """A batch with the longest history."""
        rows = np.arange(self.batch)
        torch.manual_seed(self.job.params["seed"])
        data = ExampleWindows(self.config, self.layout, self.batch).batch(Choice(rows, np.zeros_like(rows), 1))
        return data.to(self.device)


def run(job: Job, device: str, emit: Emit) -> None:
    """Sections `train_step`, `ode_step`, and `train_step_float32` where the card holds it: times, peak memory, utilisation."""
    config, _ = sizes(job.params["size"])
    setting = Setting(job, device, trainable("aha_wam"), config, _layout(config, job.params["size"]))
    dtype = getattr(torch, job.params["dtype"])
    emit("train_step", _policy_step(setting, dtype))
    emit("ode_step", _student_step(setting, dtype))
    if job.params["float32_too"]:
        emit("train_step_float32", _float32_step(setting))


def _layout(config: AhaWamConfig, size: str) -> WindowLayout:
    if size == "full":
        return released_layout()
    frames = 1 + 4 * -(-config.horizon // (4 * config.rope_stride))
    return WindowLayout(
        chunk=config.chunk_size, horizon=config.horizon, stride=config.rope_stride, max_offset=0, num_video_frames=frames,
        num_history=config.memory_slots, history_spacings=(config.horizon,),
    )  # fmt: skip


def _network(setting: Setting, dtype: torch.dtype) -> nn.Module:
    _forget()
    with torch.device("meta"):
        model: nn.Module = setting.family.build(setting.config)
    model.to(dtype).to_empty(device=setting.device)
    fill_randomly(model, torch.Generator(setting.device).manual_seed(setting.job.params["seed"]))
    return model


def _policy_step(setting: Setting, dtype: torch.dtype) -> Section:
    model, family, data = _network(setting, dtype), setting.family, setting.data()
    noise = family.draw_noise(data, torch.Generator().manual_seed(1), 1, setting.config.train_shift)

    def loss(mark: Mark) -> Tensor:
        value: Tensor = family.training_loss(model, data, noise).total
        return value

    return _timed(setting, dtype, model, list(model.parameters()), loss)


def _float32_step(setting: Setting) -> Section:
    with torch.device("meta"):
        values = sum(p.numel() for p in setting.family.build(setting.config).parameters())
    needed = FLOAT32_FORM * values + SPARE_BYTES
    _forget()
    if setting.device != "cpu" and (total := torch.cuda.mem_get_info()[1]) < needed:
        refused = f"float32 weights and states need {needed / 1e9:.0f} GB, the card has {total / 1e9:.0f}: shard them over ranks"
        return Section(_contract(setting, "float32", (), 1), {"refused": refused})
    return _policy_step(setting, torch.float32)


def _student_step(setting: Setting, dtype: torch.dtype) -> Section:
    teacher, family, data = _network(setting, dtype).requires_grad_(False), setting.family, setting.data()
    student = copy.deepcopy(teacher)
    learnt = [p for name, p in student.named_parameters() if name.startswith(family.LEARNT_BY_STUDENTS)]
    for parameter in learnt:
        parameter.requires_grad_(True)
    noise = torch.randn(data.actions.shape, generator=torch.Generator().manual_seed(1)).to(setting.device)
    with _autocast(setting):
        trajectory = family.teacher_trajectory(teacher, family.condition(teacher, data), noise, TEACHER_STEPS, CAPTURED)
    anchors = family.draw_anchors(data, len(CAPTURED) - 1, torch.Generator().manual_seed(2))

    def loss(mark: Mark) -> Tensor:
        conditioning = family.condition(teacher, data)
        mark("condition")
        value: Tensor = family.ode_loss(student, conditioning, trajectory, anchors, data.action_is_pad)
        return value

    return _timed(setting, dtype, student, learnt, loss)


def _flops(setting: Setting, trained: list[nn.Parameter], loss: Callable[[Mark], Tensor]) -> float:
    """Operations of a loss and its gradients, counted while they are computed."""
    with FlopCounterMode(display=False) as counter:
        with _autocast(setting):
            value = loss(lambda _: None)
        value.backward()  # type: ignore[no-untyped-call]
    for parameter in trained:
        parameter.grad = None
    return float(counter.get_total_flops())


def _step(setting: Setting, trained: list[nn.Parameter], loss: Callable[[Mark], Tensor]) -> Callable[[Mark], None]:
    optimizer = torch.optim.AdamW(trained, lr=5e-5, betas=(0.9, 0.95), weight_decay=1e-2, fused=True)

    def step(mark: Mark) -> None:
        with _autocast(setting):
            value = loss(mark)
        mark("forward")
        value.backward()  # type: ignore[no-untyped-call]
        mark("backward")
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mark("optimizer")

    return step


def _timed(
    setting: Setting, dtype: torch.dtype, model: nn.Module, trained: list[nn.Parameter], loss: Callable[[Mark], Tensor]
) -> Section:
    model_flops = _flops(setting, trained, loss)
    checkpoint_activations(setting.family.BLOCKS(model))
    all_flops = _flops(setting, trained, loss)
    step = _step(setting, trained, loss)
    params, on_gpu = setting.job.params, setting.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    wall, timing, stages = time_stages(step, setting.device, params["n"], params["warmup"])
    assert all(p.isfinite().all() for p in model.parameters()), "weights are not numbers after these steps"
    seconds = timing.p50_ms / 1e3
    rate = measured_device(setting.device).peak_tflops["bf16"].value
    figures: dict[str, Any] = {
        "model_tflop": model_flops / 1e12,
        "tflops": model_flops / seconds / 1e12,
        "utilisation_of_measured_rate": model_flops / seconds / 1e12 / rate,
        "measured_bf16_tflops": rate,
        "with_recomputation_tflop": all_flops / 1e12,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "weights_dtype": str(dtype).removeprefix("torch."),
        "optimizer": "AdamW, fused, moments in the type of the weights",
        "windows_per_s": setting.batch / seconds,
    }
    if on_gpu:
        figures["memory_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if known := find_device(torch.cuda.get_device_name()):
            figures["utilisation_of_datasheet_rate"] = model_flops / seconds / 1e12 / known.peak_tflops["bf16"].value
    names = tuple(stages)
    return Section(_contract(setting, str(dtype), names, timing.n), figures, {"step": timing, "wall": wall, **stages})


def _contract(setting: Setting, dtype: str, stages: tuple[str, ...], n: int) -> Any:
    config, layout = setting.config, setting.layout
    return gpu_contract(
        setting.device, engine="eager, layers computed again in the backward pass", steps=0, stages=stages, host_copies=False,
        precision=f"bf16 products, {dtype.removeprefix('torch.')} weights, gradients and moments",
        shapes={
            "batch": (setting.batch,), "image": (config.image_height, config.image_width, 3), "latents": (layout.num_latents,),
            "history": (layout.num_history,), "actions": (config.horizon, config.action_dim),
        },
        warmup=setting.job.params["warmup"], n=n, clock="cuda_events",
    )  # fmt: skip


def _autocast(setting: Setting) -> torch.autocast:
    return torch.autocast(torch.device(setting.device).type, torch.bfloat16)


def _forget() -> None:
    """Let what an earlier section built go."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

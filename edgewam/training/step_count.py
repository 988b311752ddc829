"""What one pass of a full-size network computes and keeps, counted without its weights: fake tensors have shapes and no memory.

Layers are alike, so two shallow networks give every layer's share, and the whole is exact: operations in matrix products, and
the bytes that are alive between forward and backward pass.  Weights, gradients and optimiser states are not among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from edgewam.core.estimate import Line
from edgewam.data.windows import WindowLayout
from edgewam.flow.training import weight_constants
from edgewam.models.flow_loss import LossBatch
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.training.example_windows import ExampleWindows
from edgewam.training.frame_source import IMAGES_AT_ONCE
from edgewam.training.memory import AliveTensors
from edgewam.training.parallel import checkpoint_activations
from edgewam.training.windows import Choice

T = TypeVar("T")
_DEPTHS = (1, 2)  # layers of the networks that are counted


@dataclass(frozen=True)
class PassCount:
    """One pass over a batch: operations (a multiplication and an addition are two), and bytes of activations.

    frozen_flops: of what is computed without gradient beside forward and backward, such as a student's conditioning.
    kept_bytes: alive when the forward pass ends.  peak_bytes: the most in both passes.
    """

    forward_flops: float
    backward_flops: float
    frozen_flops: float
    kept_bytes: float
    peak_bytes: float

    @property
    def flops(self) -> float:
        """All operations."""
        return self.forward_flops + self.backward_flops + self.frozen_flops


@dataclass(frozen=True)
class StudentCount:
    """A student's pass, and the teacher's trajectories of as many windows: operations of one, bytes of all meanwhile."""

    step: PassCount
    rollout_flops: float
    rollout_bytes: float


def count_policy_pass(
    family: ModuleType, sizes: Any, layout: WindowLayout, batch: int, recompute: bool, action_draws: int = 1
) -> PassCount:
    """Joint loss and gradients of all weights.

    Args:
        family: of the network.
        sizes: its configuration.
        layout: the windows; all have the longest history.
        batch: windows.
        recompute: whether blocks keep nothing for the backward pass but their inputs.
        action_draws: per context and chunk.
    """

    def one(depth: int) -> dict[str, float]:
        with FakeTensorMode():
            model = _network(family, sizes, depth, recompute)
            data = _batch(model.config, layout, batch)
            noise = family.draw_noise(data, torch.Generator(), action_draws, sizes.train_shift)
            return _count(lambda: family.training_loss(model, data, noise).total, model)

    weight_constants(sizes.train_shift)  # plain numbers, which fake tensors cannot give; cached from here on
    return PassCount(**_at_full_depth(one, sizes.num_layers))


def count_student_pass(
    family: ModuleType, sizes: Any, layout: WindowLayout, batch: int, recompute: bool, teacher_steps: int
) -> StudentCount:
    """Conditioning without gradient, one jump from an anchor, gradients of what students learn; and the teacher's trajectory.

    Args: as of `count_policy_pass`; teacher_steps: of a trajectory.
    """

    def one(depth: int) -> dict[str, float]:
        with FakeTensorMode():
            # the teacher is whole and float32: layers are made bfloat16 in their turn, and some of what it gives stays float32
            teacher = _network(family, sizes, depth, False, torch.float32).requires_grad_(False)
            model = _network(family, sizes, depth, recompute)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(family.LEARNT_BY_STUDENTS))
            data = _batch(model.config, layout, batch)
            noise = torch.randn(data.actions.shape)
            frozen, conditioning = _run(lambda: family.condition(teacher, data))
            one_step, _ = _run(lambda: family.teacher_trajectory(teacher, conditioning, noise, 1, (0, 1)))
            two_steps, trajectory = _run(lambda: family.teacher_trajectory(teacher, conditioning, noise, 2, (0, 1, 2)))
            anchors = family.draw_anchors(data, 2, torch.Generator())
            found = _count(lambda: family.ode_loss(model, conditioning, trajectory, anchors, data.action_is_pad), model)
            rollout = Line.through(1, one_step.flops, 2, two_steps.flops).at(teacher_steps)
            # what conditions an executor is there until its pass ends
            found["kept_bytes"] += frozen.now
            return found | {
                "peak_bytes": max(frozen.peak, frozen.now + found["peak_bytes"]),
                "frozen_flops": frozen.flops,
                "rollout_flops": (frozen.flops + rollout) / batch,
                "rollout_bytes": max(frozen.peak, frozen.now + two_steps.peak),
            }

    found = _at_full_depth(one, sizes.num_layers)
    rollout = {name: found.pop(name) for name in ("rollout_flops", "rollout_bytes")}
    return StudentCount(PassCount(**found), **rollout)


def _at_full_depth(one: Callable[[int], dict[str, float]], depth: int) -> dict[str, float]:
    """What `one` counts at two depths, at the real one."""
    small, large = map(one, _DEPTHS)
    return {name: Line.through(_DEPTHS[0], small[name], _DEPTHS[1], large[name]).at(depth) for name in small}


def _network(family: ModuleType, sizes: Any, depth: int, recompute: bool, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A network of fake tensors, in the type that matrix products have in training or in another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model: nn.Module = family.build(replace(sizes, num_layers=depth))
    finally:
        torch.set_default_dtype(before)
    if recompute:
        checkpoint_activations(family.BLOCKS(model))
    return model


def _batch(sizes: Any, layout: WindowLayout, batch: int) -> LossBatch:
    rows = np.arange(batch)
    return ExampleWindows(sizes, layout, batch).batch(Choice(rows, np.zeros_like(rows), 1))


def _count(loss: Callable[[], Tensor], model: nn.Module) -> dict[str, float]:
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    with _Counter() as counter:
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        kept, forward = counter.now, counter.flops
        value.backward()  # type: ignore[no-untyped-call]
    return {
        "forward_flops": forward, "backward_flops": counter.flops - forward, "frozen_flops": 0.0, "kept_bytes": kept,
        "peak_bytes": counter.peak,
    }  # fmt: skip


def _run(call: Callable[[], T]) -> tuple[_Counter, T]:
    """What a call computes, and keeps as long as its result is there."""
    with _Counter() as counter, torch.autocast("cpu", torch.bfloat16):
        result = call()
    return counter, result


class _Counter(AliveTensors):
    """Alive bytes, and operations as torch's FlopCounterMode counts them, without what that does for each module besides."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if operations := flop_registry.get(func._overloadpacket):
            self.flops += operations(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass(frozen=True)
class EncodeCount:
    """Encoding the pictures of one batch: operations, and the most bytes that are alive meanwhile."""

    flops: float
    peak_bytes: float


@torch.no_grad()
def count_encoding(config: WanVaeConfig, sizes: Any, layout: WindowLayout, batch: int, chunk_images: bool) -> EncodeCount:
    """Clips one by one and single images in groups, as `frame_source.encode_frames` does, in bfloat16.

    Args:
        config: of the VAE.
        sizes: of the network.
        layout: the windows; no picture of a batch is shown twice, which is the most there can be.
        batch: windows.
        chunk_images: whether each chunk has a picture of its own.
    """
    with FakeTensorMode():
        vae = WanVae(config)
        shape = (sizes.image_height, sizes.image_width)

        def encoded(*leading: int) -> EncodeCount:
            pixels = torch.empty(*leading, *shape)
            with _Counter() as counter:
                vae.encode(pixels)
            return EncodeCount(counter.flops, counter.peak / 2)  # counted in float32

        clip, image = encoded(1, 3, layout.num_video_frames), encoded(1, 3, 1)
    images = layout.num_history + (layout.num_chunks if chunk_images else 0)
    together = min(IMAGES_AT_ONCE, batch * images)
    return EncodeCount(batch * (clip.flops + images * image.flops), max(clip.peak_bytes, together * image.peak_bytes))

"""One training spread over ranks with PyTorch's own engine: FSDP2 sharding and activation checkpointing.

The weights of several ranks are DTensors: each rank holds its rows of each, in float32, and the rows are gathered block by
block while the loss is computed.  A module of one rank stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from edgewam.training.ranks import Ranks

T = TypeVar("T")


def checkpoint_activations(blocks: Sequence[nn.Module]) -> None:
    """Compute each block's forward again in the backward pass instead of keeping what it saw; values do not change.

    The blocks draw no random numbers, so none need to be replayed.
    """
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]


def shard(
    module: nn.Module, blocks: Sequence[nn.Module], ranks: Ranks, bfloat16: bool = False, reshard_after_forward: bool = False
) -> None:
    """Replace the parameters of `module` by DTensors over all ranks, each holding its rows in float32.

    Call it before optimisers are made, with equal weights on all ranks, and compute losses through `computed`.

    Args:
        module: on the CPU or on the ranks' device; a block at a time moves there, so that it need never fit as a whole.
        blocks: gathered one by one; the rest is gathered at once.
        ranks: who takes part.
        bfloat16: gather and compute with weights in that type; gradients are summed in float32.
        reshard_after_forward: gather a second time for the backward pass instead of keeping the gathered weights until then.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method  # 0.3 s

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
        for name in getattr(block, "ENTRIES", ()):
            register_fsdp_forward_method(block, name)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    module.float()
    module.edgewam_compute = MethodType(_compute, module)  # type: ignore[assignment]
    register_fsdp_forward_method(module, "edgewam_compute")


def _compute(module: nn.Module, call: Callable[[], T]) -> T:
    return call()


def computed(module: nn.Module, call: Callable[[], T]) -> T:
    """`call()`, in which the weights of a sharded module outside of its blocks are gathered."""
    if not is_sharded(module):
        return call()
    with warnings.catch_warnings():  # nobody may change what a block returns in place, and nobody does
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        return module.edgewam_compute(call)  # type: ignore[operator, no-any-return]


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called for it."""
    return hasattr(module, "edgewam_compute")


def reduce_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass sums gradients over the ranks; otherwise they add up locally until one does."""
    if is_sharded(module):
        from torch.distributed.fsdp import FSDPModule  # 0.3 s

        for part in module.modules():
            # a frozen block that the loss does not visit was never gathered and must not be asked for gradients to keep
            if isinstance(part, FSDPModule) and any(parameter.requires_grad for parameter in part.parameters()):
                part.set_requires_gradient_sync(wanted, recurse=False)
        module.set_is_last_backward(wanted)  # type: ignore[operator]


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, ranks: Ranks) -> float:
    """Scale the gradients down to a norm of `max_norm` over all parameters and ranks; returns the norm that they had."""
    if ranks.world == 1:
        return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True))
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    norm = ranks.sum([float(torch.nn.utils.get_total_norm(gradients)) ** 2])[0] ** 0.5
    if norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))  # the margin that torch's own clipping has
    return float(norm)


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor, on every rank; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(rows: Tensor, like: Tensor) -> Tensor:
    """This rank's rows of something that is placed as `like` is."""
    if not isinstance(like, DTensor):
        return rows
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def rows_of(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which all ranks hold whole, placed as `like` is."""
    if not isinstance(like, DTensor):
        return value
    return DTensor.from_local(value, like.device_mesh, run_check=False).redistribute(like.device_mesh, like.placements)


def gathered(state: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU of rank 0, from the state of a sharded module; empty on the other ranks.

    Every rank must call it.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        value: Any = whole(tensor).detach()
        if ranks.is_main:
            found[name] = value.cpu()
    return found

"""Floors of what ran: costs counted while the released computation runs, or declared by our stages; never typed in.

Operations are those of all matrix products, bytes those of the weights and of the kept keys and values that a part reads.
What parts hand to each other is left out, so the floor of the released plan is a little too low.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.upstream import Mark
from edgewam.core.program import Call, Program
from edgewam.core.stage import Cost, Stage
from edgewam.profiles.device import Device
from edgewam.profiles.roofline import Roofline, roofline


def counted(function: Callable[[Mark], object], weights: nn.Module, kept: Iterable[Tensor] = ()) -> dict[str, Cost]:
    """Cost of every part that `function(mark)` marks; a part that comes several times is counted once.

    weights: module whose parameters it may read.  kept: other tensors that stay between calls.
    """
    reads = _Reads([*weights.parameters(), *kept])
    costs: dict[str, Cost] = {}
    # the plain attention: every product is counted, whichever fused kernel the device would choose
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, reads:
        before = 0

        def mark(name: str) -> None:
            nonlocal before
            now = flops.get_total_flops()
            costs.setdefault(name, Cost(reads.take(), now - before, 0, 0))
            reads.take()
            before = now

        function(mark)
    return costs


class _Reads(TorchDispatchMode):
    """Bytes of the watched tensors that operations were given since the last `take`, each once."""

    def __init__(self, watched: Iterable[Tensor]) -> None:
        super().__init__()
        self._bytes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in watched}
        self._seen: set[int] = set()

    def take(self) -> int:
        """The bytes so far; counting starts anew."""
        seen, self._seen = self._seen, set()
        return sum(self._bytes[pointer] for pointer in seen)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and (pointer := value.untyped_storage().data_ptr()) in self._bytes:
                self._seen.add(pointer)
        return func(*args, **(kwargs or {}))


def program_floor(program: Program, stages: Mapping[str, Stage], device: Device) -> Roofline:
    """Floor of one run of a program from the costs of its stages."""
    names = [step.stage for step in program.setup + program.finish if isinstance(step, Call)]
    calls = dict.fromkeys(names, 1)
    if program.loop is not None:
        calls |= {call.stage: program.loop.num_rows for call in program.loop.calls}
    return roofline({name: stages[name].cost for name in calls}, device, "bf16", calls)


def part_floor(costs: Mapping[str, Cost], device: Device, steps: int = 1) -> Roofline:
    """Floor of counted parts; `denoise` runs `steps` times."""
    return roofline(costs, device, "bf16", {"denoise": steps} if "denoise" in costs else None)

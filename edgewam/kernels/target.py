"""What kernels are made for: one kind of NVIDIA GPU, or Triton's interpreter on the CPU, which proves them and is not fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edgewam.core.errors import MissingExtraError, PluginError, require
from edgewam.profiles.versions import release

_LEAST_SHARED_MEMORY = 101376  # bytes a block may ask for on sm_89 and sm_120; the least of all targets, so it fits everywhere


@dataclass(frozen=True)
class Target:
    """sm: compute capability times ten, 0 of the interpreter.  name: of the card.  shared_memory: bytes a block may ask for.

    num_processors: streaming multiprocessors.  interpreted: kernels run in Triton's interpreter, in this process.
    """

    sm: int
    name: str
    shared_memory: int
    num_processors: int
    interpreted: bool = False

    @property
    def has_dependent_launch(self) -> bool:
        """Whether a kernel may start before the one in front of it has ended."""
        return self.sm >= 90

    @property
    def has_fp8_products(self) -> bool:
        """Whether matrix units multiply FP8; the interpreter does so in float arithmetic."""
        return self.interpreted or self.sm >= 89


INTERPRETER = Target(0, "interpreter", _LEAST_SHARED_MEMORY, 1, interpreted=True)

# For compilation without a card.  Shared memory: CUDA programming guide, "maximum amount of shared memory per thread block".
# Processors: RTX 4090, H100 SXM, Jetson Thor, RTX 5090.
TARGETS: Mapping[int, Target] = MappingProxyType(
    {
        89: Target(89, "sm_89", _LEAST_SHARED_MEMORY, 128),
        90: Target(90, "sm_90", 232448, 132),
        110: Target(110, "sm_110", 232448, 20),
        120: Target(120, "sm_120", _LEAST_SHARED_MEMORY, 170),
    }
)


def target_of(device: str) -> Target:
    """The target that a torch device is: "cpu" is the interpreter, "cuda" and "cuda:<n>" the card.

    Raises:
        PluginError: another device, no such card, or Triton is not installed; says what to do.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise PluginError(f"There are no kernels for the device '{device}'. Available: cpu (interpreted), cuda, cuda:<number>.")
    try:
        triton = require("triton", extra="kernels")
    except MissingExtraError as error:
        raise PluginError(
            "The backend 'fused' is made of Triton kernels, and Triton is not installed. Install it with: pip install "
            "'edgewam[kernels]', or compile for another backend, such as --backend eager."
        ) from error
    if kind == "cpu":
        _check_interpreter(triton.__version__, np.__version__)
        return INTERPRETER
    torch = require("torch", extra="train")
    index = int(number or 0)
    if index >= torch.cuda.device_count():
        raise PluginError(
            f"torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices, so there is no '{device}'. Install "
            "torch's CUDA build and look at 'edgewam doctor', or use --device cpu, which interprets kernels: a proof, not speed."
        )
    found = torch.cuda.get_device_properties(index)
    return Target(10 * found.major + found.minor, found.name, found.shared_memory_per_block_optin, found.multi_processor_count)


def _check_interpreter(triton: str, numpy: str) -> None:
    """Triton 3.6 makes integers of arrays of one element, which NumPy 2.4 refuses."""
    if release(triton) < (3, 7) and release(numpy) >= (2, 4):
        raise PluginError(
            f"Triton {triton} cannot interpret kernels beside NumPy {numpy}. Install a newer one: pip install 'triton>=3.7', or "
            "use --device cuda."
        )

"""What a stage is compiled with: Inductor, or a backend of torch.compile that makes no kernels and is quick, to try the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgewam.runtime.backends.inductor import compiled

AS_IS = "none"


def fast_function(function: Callable[..., Any], compiler: str, device: str) -> Callable[..., Any]:
    """`function(*tensors)` compiled by "inductor" or by another backend of torch.compile, or not at all (`AS_IS`)."""
    if compiler == "inductor":
        return compiled(function, device)
    traced = function if compiler == AS_IS else torch.compile(function, fullgraph=True, dynamic=False, backend=compiler)

    def run(*tensors: Tensor) -> Any:
        with torch.inference_mode():
            return traced(*tensors)

    return run

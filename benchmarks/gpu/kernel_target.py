"""Whether this machine can run the fused kernels: on a card, or in Triton's interpreter to try the code."""

from __future__ import annotations

import importlib.util


def lacks_kernels(device: str) -> str:
    """Why not; "" where Triton is installed.  Looks without importing anything."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'edgewam[kernels]'"
    return ""

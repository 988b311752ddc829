"""Whether a machine can build TensorRT engines and run them, and for which target; asked before any job starts, without torch."""

from __future__ import annotations

from edgewam.compile.tensorrt_targets import Target, find_target, targets
from edgewam.core.errors import EdgewamError
from edgewam.profiles.device import find_device
from edgewam.profiles.machine import read_gpu
from edgewam.runtime.cuda_api import gpu_support, load_cudart, read_device
from edgewam.runtime.tensorrt_api import LIBRARIES, is_installed

ON_A_PROCESSOR = "rtx-5090"  # built for anywhere, run nowhere here


def target_here(device: str) -> Target:
    """The target of this machine's card: its own device file, else one of the same compute capability.

    Raises:
        EdgewamError: no GPU answers, no device file has its compute capability, or its engines cannot be built here.
    """
    if device == "cpu":
        target = find_target(ON_A_PROCESSOR)
    else:
        if not (support := gpu_support()).ok:
            raise EdgewamError(support.reason)
        here = read_device(load_cudart(), 0)
        known = find_device(here.name) or find_device(read_gpu().get("name", ""))
        alike = [target for target in targets().values() if target.sm == here.sm]
        if known is None and not alike:
            raise EdgewamError(f"No device file is for '{here.name}' ({here.sm}). Add one to edgewam/profiles/devices.")
        target = find_target(known.name) if known else alike[0]
    target.require_here()
    return target


def lacks_tensorrt(device: str) -> str:
    """Why TensorRT cannot run here ("cuda"), or not even build ("cpu"); "" where it can, or where there is no GPU to ask."""
    if not any(is_installed(family) for family in LIBRARIES):
        return "TensorRT is not installed: pip install 'edgewam[rtx]'"
    if device != "cpu" and not read_gpu():
        return ""  # the whole call says that there is no GPU
    try:
        target_here(device)
    except EdgewamError as error:
        return str(error)
    return ""

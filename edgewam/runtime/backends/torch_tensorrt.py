"""Engines that Torch-TensorRT built on this kind of card: opened as exported programs, run on torch's streams and tensors.

For machines that have torch's CUDA build and full TensorRT anyway; `tensorrt` runs without torch.  The package is imported
when an engine is opened, never before.  An engine belongs to one card and one version, which its record names.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError, require
from edgewam.core.stage import Stage
from edgewam.runtime.backends import eager
from edgewam.runtime.engine import EngineOptions, Support
from edgewam.runtime.memory import Memory
from edgewam.runtime.torch_memory import TorchMemory

_REBUILD = "Compile the bundle again on this machine: edgewam compile --backend torch_tensorrt"


def supports() -> Support:
    """Whether torch finds a GPU and the package can be imported beside it."""
    if not (support := eager.supports()).ok:
        return support
    if importlib.util.find_spec("torch_tensorrt") is None:
        return Support(
            False,
            "the package 'torch_tensorrt' is not installed; install the release of your torch with: pip install "
            "'edgewam[tensorrt]' --extra-index-url https://pypi.nvidia.com, which has the TensorRT libraries",
        )
    torch = require("torch", extra="train")
    if not torch.cuda.is_available():
        return Support(False, f"torch {torch.__version__} finds no GPU, and TensorRT engines run nowhere else")
    try:
        importlib.import_module("torch_tensorrt")
    except Exception as error:  # a missing libnvinfer is an OSError, another torch an ImportError or a plain Exception
        return Support(False, f"the package 'torch_tensorrt' cannot be imported: {error}. Install the release of your torch")
    return Support(True)


def gpu(options: EngineOptions) -> str:
    """torch's name of the GPU; "cpu", the default, means the first one, because these engines run nowhere else."""
    return "cuda:0" if options.device == "cpu" else options.device


def memory(options: EngineOptions) -> Memory:
    """Tensors on the GPU."""
    return TorchMemory(gpu(options))


def load(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> eager.TorchEngine:
    """Open `record["file"]` in `directory`.

    Raises:
        ArtifactError: a damaged file, or an engine for another card or version.
        MissingExtraError: Torch-TensorRT is not installed.
    """
    package = require("torch_tensorrt", extra="tensorrt")
    path = Path(directory) / record["file"]
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing. Copy the bundle again, or compile it again.")
    here = build_facts(gpu(options))
    if different := [name for name in here if record.get(name) != here[name]]:
        was, now = (", ".join(f"{name} {facts.get(name)}" for name in different) for facts in (record, here))
        raise ArtifactError(f"'{path}' was built for {was}, and here is {now}. {_REBUILD}.")
    try:
        module = package.load(str(path)).module()
    except Exception as error:  # zip, JSON, torch and TensorRT errors have no common base
        raise ArtifactError(f"Torch-TensorRT cannot open '{path}': {error}. {_REBUILD}.") from error
    return eager.TorchEngine(stage, module)


def build_facts(device: str) -> dict[str, str]:
    """What an engine depends on besides its stage: the card's architecture and the exact versions."""
    torch, package = require("torch", extra="train"), require("torch_tensorrt", extra="tensorrt")
    library = importlib.import_module("tensorrt")  # only after torch_tensorrt, which decides which library has that name
    major, minor = torch.cuda.get_device_capability(device)
    return {"sm": f"sm_{major}{minor}", "torch_tensorrt": package.__version__, "tensorrt": library.__version__}

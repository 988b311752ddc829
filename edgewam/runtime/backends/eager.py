"""PyTorch as it is: the reference every other backend is compared with, and the one file of `runtime` that needs torch.

A stage is loaded from an exported program (`.pt2`), so that running a bundle needs none of edgewam's model code.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError, require
from edgewam.core.stage import Stage
from edgewam.runtime.engine import EngineOptions, Support, check_binding
from edgewam.runtime.memory import BoundCall, Buffer, Memory
from edgewam.runtime.torch_memory import TorchMemory


def supports() -> Support:
    """Whether torch is installed."""
    if importlib.util.find_spec("torch") is None:
        return Support(False, "the package 'torch' is not installed; install it with: pip install 'edgewam[train]'")
    return Support(True)


def memory(options: EngineOptions) -> Memory:
    """Tensors on `options.device`."""
    return TorchMemory(options.device)


def load(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> TorchEngine:
    """Open `record["file"]`; raises as `load_module`."""
    return TorchEngine(stage, load_module(directory, record, options))


def load_module(directory: Path, record: Mapping[str, Any], options: EngineOptions) -> Any:
    """The exported program `record["file"]` as a module on `options.device`.

    `options.threads` is torch's own setting and holds for the whole process.

    Raises:
        ArtifactError: the file is no exported program of this torch version.
    """
    torch = require("torch", extra="train")
    torch.set_num_threads(options.threads)
    path = Path(directory) / record["file"]
    try:
        with warnings.catch_warnings():
            # torch wraps the archive's read-only bytes; nothing writes to them
            warnings.simplefilter("ignore", UserWarning)
            program = torch.export.load(path)
            if options.device != "cpu":
                program = move_program(program, options.device)
    except Exception as error:  # zip, pickle-free JSON and version errors have no common base
        raise ArtifactError(f"torch cannot open '{path}': {error}. Compile the bundle again with this torch version.") from error
    return program.module()


def move_program(program: Any, device: str) -> Any:
    """An exported program with its weights and every device that its operators name on another device."""
    # a submodule that `import torch` leaves out
    return importlib.import_module("torch.export.passes").move_to_device_pass(program, device)


class TorchEngine:
    """A torch function `function(*inputs) -> tuple(outputs)` over tensors, or over host memory that it shares with NumPy."""

    def __init__(self, stage: Stage, function: Callable[..., Any] | None = None) -> None:
        self.stage = stage
        chosen = function or stage.function
        assert chosen is not None, f"stage '{stage.name}' came from a manifest and has no function"
        self.function: Callable[..., Any] = chosen

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """See `Engine.bind`."""
        torch = require("torch", extra="train")
        check_binding(self.stage, inputs, outputs)
        arguments = [torch.as_tensor(inputs[spec.name]) for spec in self.stage.inputs]
        targets = [(i, torch.as_tensor(outputs[s.name])) for i, s in enumerate(self.stage.outputs) if s.name in outputs]
        function = self.function

        def call() -> None:
            with torch.inference_mode():
                results = function(*arguments)
                for index, target in targets:
                    target.copy_(results[index])

        return call

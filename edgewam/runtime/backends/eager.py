"""PyTorch as it is: the reference every other backend is compared with, and the one file of `runtime` that needs torch.

A stage is loaded from an exported program (`.pt2`), so that running a bundle needs none of edgewam's model code.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError, require
from edgewam.core.stage import Stage
from edgewam.runtime.engine import Array, BoundCall, EngineOptions, Support, check_binding


def supports() -> Support:
    """Whether torch is installed."""
    if importlib.util.find_spec("torch") is None:
        return Support(False, "the package 'torch' is not installed; install it with: pip install 'edgewam[train]'")
    return Support(True)


def load(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> TorchEngine:
    """Open `record["file"]`.  `options.threads` is torch's own setting and holds for the whole process.

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
    except Exception as error:  # zip, pickle-free JSON and version errors have no common base
        raise ArtifactError(f"torch cannot open '{path}': {error}. Compile the bundle again with this torch version.") from error
    return TorchEngine(stage, program.module())


class TorchEngine:
    """A torch function `function(*inputs) -> tuple(outputs)` over host memory that it shares with NumPy."""

    def __init__(self, stage: Stage, function: Callable[..., Any] | None = None) -> None:
        self.stage = stage
        chosen = function or stage.function
        assert chosen is not None, f"stage '{stage.name}' came from a manifest and has no function"
        self.function: Callable[..., Any] = chosen

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        """See `Engine.bind`."""
        torch = require("torch", extra="train")
        check_binding(self.stage, inputs, outputs)
        arguments = [torch.from_numpy(inputs[spec.name]) for spec in self.stage.inputs]
        targets = [(i, torch.from_numpy(outputs[s.name])) for i, s in enumerate(self.stage.outputs) if s.name in outputs]
        function = self.function

        def call() -> None:
            with torch.inference_mode():
                results = function(*arguments)
                for index, target in targets:
                    target.copy_(results[index])

        return call

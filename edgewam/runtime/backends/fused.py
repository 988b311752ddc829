"""Stages as recipes of fused kernels: every call is bound once to fixed memory, and a run is nothing but launches.

Pieces without a kernel, and whole stages that were not lowered, are exported programs of PyTorch; Inductor compiles them on a
GPU.  On the processor Triton's interpreter runs the kernels, which proves them and is slow.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import ArtifactError, EdgewamError, PluginError, require
from edgewam.core.stage import Stage
from edgewam.kernels.call import PROGRAM, Recipe
from edgewam.runtime.backends import eager, inductor
from edgewam.runtime.engine import Engine, EngineOptions, Support, check_binding
from edgewam.runtime.memory import BoundCall, Buffer, Memory
from edgewam.runtime.torch_memory import TorchMemory

if TYPE_CHECKING:
    from edgewam.kernels.choices import Choices
    from edgewam.kernels.target import Target

_AGAIN = "Copy the bundle again or compile it again"


def supports() -> Support:
    """Whether torch and Triton are installed."""
    if not (support := eager.supports()).ok:
        return support
    if importlib.util.find_spec("triton") is None:
        return Support(False, "the package 'triton' is not installed; install it with: pip install 'edgewam[kernels]'")
    return Support(True)


def memory(options: EngineOptions) -> Memory:
    """Tensors on `options.device`."""
    return TorchMemory(options.device)


def load(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> Engine:
    """Open a stage: its recipe with weights and pieces, or the program that it stayed.

    Raises:
        ArtifactError: files that are missing or damaged, or kernels that were tuned on another card.
        PluginError: no Triton, or no such device.
    """
    if "recipe" not in record:
        return _whole(stage, directory, record, options)
    kernels = importlib.import_module("edgewam.kernels.target")
    target = kernels.target_of(options.device)
    choices = importlib.import_module("edgewam.kernels.choices").Choices.from_json(record["choices"]).for_target(target)
    programs = {piece["file"]: _piece(directory, piece, options) for piece in record["pieces"]}
    recipe = _read_recipe(Path(directory) / record["recipe"])
    weights = _read_weights(Path(directory) / record["weights"], options.device)
    require("torch", extra="train").set_num_threads(options.threads)
    return FusedEngine(stage, recipe, Loaded(weights, programs, target, choices), TorchMemory(options.device))


@dataclass(frozen=True)
class Loaded:
    """What the calls of a stage are bound with besides its buffers."""

    weights: Mapping[str, Any]
    programs: Mapping[str, Callable[..., Any]]
    target: Target
    choices: Choices


class FusedEngine:
    """A recipe with its weights on the device; each binding has workspaces of its own, so two of them may run side by side."""

    def __init__(self, stage: Stage, recipe: Recipe, loaded: Loaded, place: TorchMemory) -> None:
        self.stage, self.recipe, self.loaded, self.place = stage, recipe, loaded, place

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """See `Engine.bind`; an output that nobody wants is computed into a workspace."""
        torch = require("torch", extra="train")
        bound = importlib.import_module("edgewam.kernels.bound")
        check_binding(self.stage, inputs, outputs)
        unwanted = [spec for spec in self.stage.outputs if spec.name not in outputs]
        tensors = {name: torch.as_tensor(buffer) for name, buffer in (*inputs.items(), *outputs.items())}
        tensors |= {spec.name: self.place.allocate(spec) for spec in (*unwanted, *self.recipe.workspaces.values())}
        tensors |= self.loaded.weights
        if self.place.on_gpu:
            self._compile_programs(torch, tensors)
        loaded = self.loaded
        calls = bound.bind_recipe(self.recipe, tensors, loaded.target, loaded.choices, loaded.programs)

        def run() -> None:
            with torch.inference_mode():
                calls()

        return run

    def _compile_programs(self, torch: Any, tensors: Mapping[str, Any]) -> None:
        """Run every piece once on whatever its inputs hold, so that nothing is left to compile; writes to no tensor."""
        resolved = self.recipe.resolve(tensors)
        for call in self.recipe.calls:
            if call.op == PROGRAM:
                given = [resolved[call.operands[f"in{i}"]] for i in range(len(call.operands)) if f"in{i}" in call.operands]
                with torch.inference_mode():
                    self.loaded.programs[str(call.attributes["file"])](*given)


def _whole(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> Engine:
    """A stage that was not lowered."""
    if options.device == "cpu":
        return eager.load(stage, directory, record, options)
    try:
        return inductor.load(stage, directory, record, options)
    except PluginError as missing:
        _warn(f"Stage '{stage.name}'", missing)
        return eager.load(stage, directory, record, options)


def _piece(directory: Path, record: Mapping[str, Any], options: EngineOptions) -> Callable[..., Any]:
    """A part of a stage that has no kernel."""
    module: Callable[..., Any] = eager.load_module(directory, record, options)
    if options.device == "cpu":
        return module
    try:
        return inductor.compiled(module, options.device)
    except PluginError as missing:
        _warn(f"The piece '{record['file']}'", missing)
        return module


def _warn(what: str, reason: EdgewamError) -> None:
    warnings.warn(f"{what} runs in PyTorch as it is, which is slower: {reason}", stacklevel=4)


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"'{path}' is no recipe of kernels: {error!r}. {_AGAIN}.") from error


def _read_weights(path: Path, device: str) -> dict[str, Any]:
    """The tensors of a file on the device, read once."""
    try:
        weights: dict[str, Any] = require("safetensors.torch", extra="train").load_file(path, device=device)
    except EdgewamError:
        raise
    except Exception as error:  # the package's own type, OSError, and torch's where memory is short
        raise ArtifactError(f"Cannot read '{path}': {error}. {_AGAIN}.") from error
    return weights

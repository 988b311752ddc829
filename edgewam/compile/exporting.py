"""What every exporter needs: a stage as a module, example inputs, silence, and an error that names the stage."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from edgewam.compile.samples import random_inputs
from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Stage


class _FunctionModule(nn.Module):
    """A plain function or bound method as a module, so that exporters see the parameters of the owner."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.function = stage.function
        owner = getattr(stage.function, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert self.function is not None
        return tuple(self.function(*inputs))


def as_module(stage: Stage) -> nn.Module:
    """The stage's function as a module in eval mode."""
    module = stage.function if isinstance(stage.function, nn.Module) else _FunctionModule(stage)
    return module.eval()


def example_inputs(stage: Stage, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random tensors in declared order."""
    arrays = random_inputs(stage.inputs, seed)
    return tuple(torch.from_numpy(arrays[spec.name]).to(getattr(torch, spec.dtype)) for spec in stage.inputs)


@contextmanager
def exporting(stage: Stage) -> Iterator[None]:
    """Say which stage cannot be exported; the exporters' own errors only know operators."""
    try:
        with torch.no_grad():
            yield
    except EdgewamError:
        raise
    except Exception as error:
        raise EdgewamError(
            f"Stage '{stage.name}' cannot be exported: {type(error).__name__}: {error}. "
            "Stages must be pure tensor functions with static shapes (DESIGN section 3)."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' remarks about packages and registries that are not used here; errors still surface."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

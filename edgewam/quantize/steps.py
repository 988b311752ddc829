"""One activation scale per layer and solver step: the scales are rows of a table, as everything else that differs per step.

A stage with such layers gets one more input, `scale_row`, and its program's loop the table `scale_rows` that feeds it: one
engine, as many scales as there are steps (DESIGN section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Program, Programs
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.quantize.arithmetic import ScaleRow
from edgewam.quantize.layers import copied, quantized_layers, replace_layer

SCALE_ROW, SCALE_ROWS = "scale_row", "scale_rows"


class SteppedStage(nn.Module):
    """A stage's module with `scale_row` [layers] as a last input; it has the module's own children, so that names stay."""

    def __init__(self, inner: nn.Module, row: ScaleRow) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = inner._modules, inner._parameters, inner._buffers
        self._non_persistent_buffers_set = inner._non_persistent_buffers_set
        object.__setattr__(self, "inner", inner)  # not a child: its children are ours
        self.inner: nn.Module
        self.row = row

    def forward(self, *inputs: Tensor) -> Any:
        """The inner module's inputs and the row -> the inner module's outputs."""
        self.row.value = inputs[-1]
        try:
            return self.inner(*inputs[:-1])
        finally:
            self.row.value = None


def with_scale_rows(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """The stages, those whose layers have scales per step with the input `scale_row` float32, in the layers' order."""
    out = dict(stages)
    for name, stage in stages.items():
        if not (paths := _stepped(stage)):
            continue
        module, row = copied(stage.function), ScaleRow()
        for index, path in enumerate(paths):
            replace_layer(module, path, quantized_layers(stage)[path].reading(row, index))
        spec = TensorSpec(SCALE_ROW, (len(paths),))
        cost = replace(stage.cost, io_bytes=stage.cost.io_bytes + spec.size_bytes)
        out[name] = replace(stage, inputs=(*stage.inputs, spec), cost=cost, function=SteppedStage(module, row).eval())
    return out


def with_scale_tables(programs: Programs, stages: Mapping[str, Stage]) -> Programs:
    """The programs with the table `scale_rows` [steps, layers] in the loop that calls the stage of `with_scale_rows`.

    Raises:
        ContractError: scales for another number of steps, for a stage outside a loop, or for two stages.
    """
    if not (stage := _takes_row(stages)):
        return programs
    layers = quantized_layers(stage)
    scales = [layers[path].step_scales for path in _stepped(stage)]
    table = torch.stack([scale for scale in scales if scale is not None], dim=1).cpu().numpy()
    return _with_table(programs, stage.name, table)


def with_ignored_rows(
    stages: Mapping[str, Stage], programs: Programs, like: Mapping[str, Stage], constants: Mapping[str, Any]
) -> tuple[dict[str, Stage], Programs]:
    """An unquantised policy whose stages take the `scale_row` of their quantised forms `like` and leave it.

    So both can be given the same inputs.  constants: of the quantised form's programs.
    """
    if not (quantised := _takes_row(like)):
        return dict(stages), programs
    stage = stages[quantised.name]
    if any(spec.name == SCALE_ROW for spec in stage.inputs):  # it is the quantised policy itself
        return dict(stages), programs
    inputs = (*stage.inputs, quantised.input(SCALE_ROW))
    changed = replace(stage, inputs=inputs, function=_without_last(stage.function))
    return {**stages, stage.name: changed}, _with_table(programs, stage.name, constants[SCALE_ROWS])


def _takes_row(stages: Mapping[str, Stage]) -> Stage | None:
    found = [stage for stage in stages.values() if any(spec.name == SCALE_ROW for spec in stage.inputs)]
    if len(found) > 1:
        names = ", ".join(stage.name for stage in found)
        raise ContractError(f"The stages {names} all have scales per step; one stage can. Give the others one static scale.")
    return found[0] if found else None


def _without_last(function: Any) -> Any:
    def run(*inputs: Tensor) -> Any:
        return function(*inputs[:-1])

    return run


def _stepped(stage: Stage) -> list[str]:
    return [path for path, layer in quantized_layers(stage).items() if layer.is_stepped]


def _with_table(programs: Programs, stage: str, table: Any) -> Programs:
    changed = {name: _reading(program, stage, programs, len(table)) for name, program in programs.programs.items()}
    return replace(programs, programs=changed, constants={**programs.constants, SCALE_ROWS: table})


def _reading(program: Program, stage: str, owner: Programs, num_rows: int) -> Program:
    if any(isinstance(step, Call) and step.stage == stage for step in (*program.setup, *program.finish)):
        raise ContractError(f"Stage '{stage}' has scales per step, but program '{program.name}' calls it outside its loop.")
    loop = program.loop
    if loop is None or all(call.stage != stage for call in loop.calls):
        return program
    if any(len(owner.constants[table]) != num_rows for table in loop.rows.values()):
        raise ContractError(
            f"Program '{program.name}' has tables of {loop.num_rows} steps, but stage '{stage}' has scales for {num_rows}. "
            f"Compile with --steps {num_rows}, or quantise again with --steps {loop.num_rows}."
        )
    calls = tuple(replace(c, inputs={**c.inputs, SCALE_ROW: SCALE_ROW}) if c.stage == stage else c for c in loop.calls)
    return replace(program, loop=replace(loop, calls=calls, rows={**loop.rows, SCALE_ROW: SCALE_ROWS}))

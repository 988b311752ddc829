"""Inputs of one run: checked before anything is written, copied into the ports, and turned into others to verify a graph with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.runtime.binding import BoundProgram
from edgewam.runtime.memory import Array, host_spec


def check_inputs(program: str, plan: BoundProgram, inputs: Mapping[str, Array]) -> None:
    """Raise ContractError unless these are all inputs of a program, of the right shapes and dtypes, slots inside their rings."""
    if inputs.keys() != plan.inputs.keys():
        missing, unknown = sorted(plan.inputs.keys() - inputs.keys()), sorted(inputs.keys() - plan.inputs.keys())
        raise ContractError(f"Program '{program}' needs exactly {sorted(plan.inputs)}: missing {missing}, unknown {unknown}.")
    for name, (spec, _) in plan.inputs.items():
        host_spec(spec).check(np.asarray(inputs[name]))
    for name, num_slots in plan.slots.items():
        slot = int(np.asarray(inputs[name])[0])
        if not 0 <= slot < num_slots:
            raise ContractError(f"Program '{program}': slot '{name}' must lie in 0..{num_slots - 1}, got {slot}.")


def another(array: Array) -> Array:
    """Other values of the same kind: a mask turned over, else the same numbers elsewhere, or one more where all are equal."""
    if array.dtype == np.bool_:
        return ~array
    rolled: Array = np.roll(array, 1)
    is_constant = array.dtype.kind == "f" and np.array_equal(rolled, array)
    return array + np.ones((), array.dtype) if is_constant else rolled


def copy_inputs(plan: BoundProgram, inputs: Mapping[str, Array]) -> None:
    """Put checked inputs into the ports."""
    for name, (_, port) in plan.inputs.items():
        np.copyto(port.host, inputs[name])

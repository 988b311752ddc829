"""The pipeline owns the named buffers of a policy and runs its programs with engines of any backend.

Every call is bound to its memory once, loops are unrolled into one bound call per table row, and a run only walks a
list: nothing is allocated between the first and the last call.  It knows neither the model nor the backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Lifetime, Program, Programs, Push
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.engine import Array, BoundCall, Engine, allocate

StageHook = Callable[[str, int], None]


@dataclass(frozen=True)
class _Plan:
    """One program ready to run: its input memory, its steps in order with their stage names, and its output memory."""

    inputs: dict[str, tuple[TensorSpec, Array]]
    steps: list[tuple[str, BoundCall]]
    outputs: dict[str, Array]
    slots: dict[str, int]  # ring slot input -> number of slots


class Pipeline:
    """Runs programs.  `on_stage(stage, nanoseconds)` is called after every step when set, and costs nothing when None.

    Not reentrant: one run at a time.  State starts as zeros.
    """

    def __init__(self, programs: Programs, stages: Mapping[str, Stage], engines: Mapping[str, Engine]) -> None:
        """Bind everything.

        Raises:
            ContractError: programs that do not fit the stages, or a stage without an engine.
        """
        programs.check(stages)
        self.programs = programs
        self.on_stage: StageHook | None = None
        self._stages = stages
        self._engines = engines
        self._states = {state.spec.name: allocate(state.spec) for state in programs.states}
        self._constants = {name: np.array(array, order="C") for name, array in programs.constants.items()}
        self._plans = {name: self._plan(program) for name, program in programs.programs.items()}

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one program and return copies of its outputs.

        Raises:
            ContractError: unknown program, missing or unknown inputs, wrong shapes or dtypes, a slot outside its ring.
        """
        plan = self._plans.get(program)
        if plan is None:
            raise ContractError(f"Unknown program '{program}'. Available: {', '.join(self._plans)}.")
        _copy_inputs(program, plan, inputs)
        hook = self.on_stage
        if hook is None:
            for _, call in plan.steps:
                call()
        else:
            for name, call in plan.steps:
                start = time.perf_counter_ns()
                call()
                hook(name, time.perf_counter_ns() - start)
        return {name: buffer.copy() for name, buffer in plan.outputs.items()}

    def reset(self, lifetime: Lifetime | None = None) -> None:
        """Zero the state tensors of one lifetime, or all of them."""
        for state in self.programs.states:
            if lifetime is None or state.lifetime == lifetime:
                self._states[state.spec.name].fill(0)

    def state(self, name: str) -> Array:
        """A copy of one state tensor."""
        if name not in self._states:
            raise ContractError(f"Unknown state '{name}'. Available: {', '.join(self._states) or 'none'}.")
        return self._states[name].copy()

    def set_state(self, name: str, value: Array) -> None:
        """Overwrite one state tensor, as when a robot resumes or a test ablates the memory."""
        for state in self.programs.states:
            if state.spec.name == name:
                state.spec.check(value)
                np.copyto(self._states[name], value)
                return
        raise ContractError(f"Unknown state '{name}'. Available: {', '.join(self._states) or 'none'}.")

    def _plan(self, program: Program) -> _Plan:
        inputs = {spec.name: (spec, allocate(spec)) for spec in program.inputs}
        buffers = {name: array for name, (_, array) in inputs.items()} | self._states | self._constants
        steps: list[tuple[str, BoundCall]] = []
        scratch: dict[tuple[str, str], Array] = {}
        rows: dict[str, Array] = {}

        def add(step: Call | Push) -> None:
            if isinstance(step, Push):
                steps.append((f"push {step.ring}", _bind_push(step, {**buffers, **rows})))
            else:
                steps.append((step.stage, self._bind_call(program, step, buffers, rows, scratch)))

        for step in program.setup:
            add(step)
        if program.loop is not None:
            for index in range(program.loop.num_rows):
                rows |= {name: _row(self._constants[table], index) for name, table in program.loop.rows.items()}
                for call in program.loop.calls:
                    add(call)
        for step in program.finish:
            add(step)
        slots = {step.slot: self._states[step.ring].shape[0] for step in program.steps() if isinstance(step, Push)}
        return _Plan(inputs, steps, {name: {**buffers, **rows}[name] for name in program.outputs}, slots)

    def _bind_call(
        self, program: Program, call: Call, buffers: dict[str, Array], rows: Mapping[str, Array],
        scratch: dict[tuple[str, str], Array],
    ) -> BoundCall:  # fmt: skip
        stage = self._stages[call.stage]
        engine = self._engines.get(call.stage)
        if engine is None:
            raise ContractError(f"Stage '{call.stage}' has no engine. Loaded: {', '.join(self._engines) or 'none'}.")
        where = f"Program '{program.name}', stage '{call.stage}'"
        inputs = {}
        for name, buffer in call.inputs.items():
            array = rows[buffer] if buffer in rows else buffers.get(buffer)
            if array is None:
                raise ContractError(f"{where} reads the table row '{buffer}' before the loop.")
            inputs[name] = array
        outputs, carried = {}, []
        for name, buffer in call.outputs.items():
            if program.loop is not None and buffer in program.loop.rows:
                raise ContractError(f"{where} writes the table row '{buffer}', which is constant.")
            target = buffers.setdefault(buffer, allocate(stage.output(name)))
            outputs[name] = target
            if buffer in call.inputs.values():
                # an engine may write before it has read everything, so a carry goes through its own memory
                outputs[name] = scratch.setdefault((buffer, call.stage), np.empty_like(target))
                carried.append((target, outputs[name]))
        run = engine.bind(inputs, outputs)
        return _with_copies(run, carried) if carried else run


def _row(table: Array, index: int) -> Array:
    """A view of one row, so that a table of any size is read in place; a scalar row stays an array."""
    return table[index : index + 1].reshape(table.shape[1:])


def _with_copies(run: BoundCall, copies: list[tuple[Array, Array]]) -> BoundCall:
    def call() -> None:
        run()
        for target, source in copies:
            np.copyto(target, source)

    return call


def _bind_push(step: Push, buffers: Mapping[str, Array]) -> BoundCall:
    ring, source, slot = buffers[step.ring], buffers[step.source], buffers[step.slot]

    def push() -> None:
        ring[int(slot[0])] = source

    return push


def _copy_inputs(program: str, plan: _Plan, inputs: Mapping[str, Array]) -> None:
    if inputs.keys() != plan.inputs.keys():
        missing, unknown = sorted(plan.inputs.keys() - inputs.keys()), sorted(inputs.keys() - plan.inputs.keys())
        raise ContractError(f"Program '{program}' needs exactly {sorted(plan.inputs)}: missing {missing}, unknown {unknown}.")
    # everything is checked before anything is written: a refused run changes nothing
    arrays = {name: np.asarray(inputs[name]) for name in plan.inputs}
    for name, (spec, _) in plan.inputs.items():
        spec.check(arrays[name])
    for name, num_slots in plan.slots.items():
        if name in arrays and not 0 <= int(arrays[name][0]) < num_slots:
            raise ContractError(f"Program '{program}': slot '{name}' must lie in 0..{num_slots - 1}, got {int(arrays[name][0])}.")
    for name, (_, buffer) in plan.inputs.items():
        np.copyto(buffer, arrays[name])

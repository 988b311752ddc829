"""Turns declared programs into lists of bound calls over buffers of one memory: loops unrolled, carries and rings resolved.

It allocates everything that a run needs, so that running is only walking a list.  It runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Program, Push, split_rows
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.engine import Engine
from edgewam.runtime.memory import Array, BoundCall, Buffer, Memory, Port


@dataclass(frozen=True)
class Step:
    """One call under its stage's name.  `is_fixed`: it does the same in every run, so a graph may hold it."""

    name: str
    call: BoundCall
    is_fixed: bool = True


@dataclass(frozen=True)
class BoundProgram:
    """One program ready to run: ports of its inputs, its steps in order, ports of its outputs.

    slots: ring slot input -> number of slots.
    """

    inputs: Mapping[str, tuple[TensorSpec, Port]]
    steps: tuple[Step, ...]
    outputs: Mapping[str, Port]
    slots: Mapping[str, int]


def bind_program(
    program: Program, stages: Mapping[str, Stage], engines: Mapping[str, Engine], memory: Memory,
    states: Mapping[str, Buffer], constants: Mapping[str, Buffer], inputs: Mapping[str, Port], specs: Mapping[str, TensorSpec],
) -> BoundProgram:  # fmt: skip
    """Bind one program.

    Args:
        program: checked against the stages.
        stages: declarations by name.
        engines: what computes them.
        memory: where all buffers are.
        states: state name -> its buffer.
        constants: tables and other constants.
        inputs: a port for every program input.
        specs: of states and constants.

    Raises:
        ContractError: a stage without an engine, or a program that reads or writes what it must not.
    """
    binder = _Binder(program, stages, engines, memory, states, constants, inputs, specs)
    for step in program.setup:
        binder.add(step)
    if program.loop is not None:
        for index in range(program.loop.num_rows):
            binder.rows = {name: memory.row(constants[table], index) for name, table in program.loop.rows.items()}
            for call in program.loop.calls:
                binder.add(call)
    for step in program.finish:
        binder.add(step)
    slots = {step.slot: states[step.ring].shape[0] for step in program.steps() if isinstance(step, Push)}
    given = {spec.name: (spec, inputs[spec.name]) for spec in program.inputs}
    return BoundProgram(given, tuple(binder.steps), binder.outputs(), slots)


class _Binder:
    def __init__(
        self, program: Program, stages: Mapping[str, Stage], engines: Mapping[str, Engine], memory: Memory,
        states: Mapping[str, Buffer], constants: Mapping[str, Buffer], inputs: Mapping[str, Port],
        specs: Mapping[str, TensorSpec],
    ) -> None:  # fmt: skip
        self.program, self.stages, self.engines, self.memory = program, stages, engines, memory
        self.states, self.inputs = states, inputs
        self.buffers: dict[str, Buffer] = {name: port.buffer for name, port in inputs.items()} | {**states, **constants}
        self.specs = {**specs, **{spec.name: spec for spec in program.inputs}}
        self.rows: dict[str, Buffer] = {}
        self.steps: list[Step] = []
        self._spare: dict[str, Buffer] = {}

    def add(self, step: Call | Push) -> None:
        """Append one step."""
        if isinstance(step, Push):
            self.steps.append(Step(f"push {step.ring}", self._push(step), is_fixed=False))
        else:
            self.steps.append(Step(step.stage, self._call(step)))

    def outputs(self) -> dict[str, Port]:
        """Ports of the program's outputs, once all steps are there."""
        return {name: self.memory.port(self.specs[name], self._find(name, "its outputs")) for name in self.program.outputs}

    def _find(self, buffer: str, reader: str) -> Buffer:
        if buffer in self.rows:
            return self.rows[buffer]
        name, rows = split_rows(buffer)
        if name not in self.buffers:
            raise ContractError(f"Program '{self.program.name}', {reader} reads the table row '{buffer}' before the loop.")
        return self.buffers[name] if rows is None else self.memory.rows(self.buffers[name], *rows)

    def _call(self, call: Call) -> BoundCall:
        stage, engine = self.stages[call.stage], self.engines.get(call.stage)
        if engine is None:
            raise ContractError(f"Stage '{call.stage}' has no engine. Loaded: {', '.join(self.engines) or 'none'}.")
        inputs = {name: self._find(buffer, f"stage '{call.stage}'") for name, buffer in call.inputs.items()}
        late: list[BoundCall] = []
        outputs: dict[str, Buffer] = {}
        for name, buffer in call.outputs.items():
            if self.program.loop is not None and buffer in self.program.loop.rows:
                raise ContractError(
                    f"Program '{self.program.name}', stage '{call.stage}' writes the table row '{buffer}', which is constant."
                )
            outputs[name] = self._target(call, stage.output(name), buffer, late)
        run = engine.bind(inputs, outputs)
        return _in_order(run, late) if late else run

    def _target(self, call: Call, spec: TensorSpec, buffer: str, late: list[BoundCall]) -> Buffer:
        """Where an output goes.  An engine may write before it has read everything, so a carry gets memory of its own."""
        base, rows = split_rows(buffer)
        if rows is not None:
            return self.memory.rows(self.buffers[base], *rows)
        self.specs[buffer] = spec
        if buffer not in self.buffers:
            self.buffers[buffer] = self.memory.allocate(spec)
        elif buffer in call.inputs.values():
            target = self.buffers[buffer]
            spare = self._spare.pop(buffer, None)
            if spare is None:
                spare = self.memory.allocate(spec)
            if buffer in self.states:  # a state has one place, which other programs read
                self._spare[buffer] = spare
                late.append(self.memory.copy(target, spare))
                return spare
            self._spare[buffer], self.buffers[buffer] = target, spare  # from here on the carry is there
        return self.buffers[buffer]

    def _push(self, step: Push) -> BoundCall:
        """The slot is read on the host when the call runs: it is an input of the program."""
        if step.slot not in self.inputs:
            raise ContractError(f"Program '{self.program.name}': the slot '{step.slot}' of a push must be a program input.")
        ring, slot = self.buffers[step.ring], self.inputs[step.slot].host
        source = self._find(step.source, f"push to '{step.ring}'")
        copies = [self.memory.copy(self.memory.row(ring, index), source) for index in range(ring.shape[0])]
        return _chosen(copies, slot)


def _chosen(copies: list[BoundCall], slot: Array) -> BoundCall:
    def push() -> None:
        copies[int(slot[0])]()

    return push


def _in_order(run: BoundCall, late: list[BoundCall]) -> BoundCall:
    def call() -> None:
        run()
        for copy in late:
            copy()

    return call

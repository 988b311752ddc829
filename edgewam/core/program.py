"""Programs: orders of stages over named buffers, with state that outlives one run (DESIGN section 3).

A program runs `setup` once, `loop` once per row of its constant tables and `finish` once.  This file only declares
and checks; `runtime.pipeline` runs it, for every family and backend alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec

Lifetime = Literal["prompt", "plan", "chunk"]


@dataclass(frozen=True)
class Call:
    """Run one stage: `inputs` maps stage input -> buffer, `outputs` maps stage output -> buffer.

    A buffer may be rows of a state, written `name[start:stop]`, so that several stages fill one tensor.
    """

    stage: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Push:
    """Write buffer `source` into slot `slot` (an int64 [1] program input) of the ring state `ring` [slots, *source]."""

    source: str
    ring: str
    slot: str


@dataclass(frozen=True)
class Loop:
    """`calls` once per row: `rows` maps a buffer to the constant [N, ...] that feeds it; only the first `num_rows` run.

    A buffer that is both read and written by the calls is a carry: same name, same spec in and out.
    """

    calls: tuple[Call, ...]
    rows: Mapping[str, str]
    num_rows: int


@dataclass(frozen=True)
class State:
    """A tensor that outlives a run.  It starts as zeros; exactly one program writes it."""

    spec: TensorSpec
    lifetime: Lifetime


@dataclass(frozen=True)
class Program:
    """Named inputs and outputs around setup, loop and finish.  Inputs include noise, chunk index tables and prefix."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    setup: tuple[Call | Push, ...] = ()
    loop: Loop | None = None
    finish: tuple[Call | Push, ...] = ()

    def steps(self) -> Iterator[Call | Push]:
        """Every call in order, the loop's calls once."""
        yield from self.setup
        if self.loop is not None:
            yield from self.loop.calls
        yield from self.finish

    def num_calls(self, stage: str) -> int:
        """How often one run calls a stage; the loop's calls count once per row."""
        once = sum(isinstance(step, Call) and step.stage == stage for step in (*self.setup, *self.finish))
        return once + (self.loop.num_rows * sum(call.stage == stage for call in self.loop.calls) if self.loop else 0)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Program:
        """One entry of `Programs.to_json`, for readers that need no constants."""
        return _program_from_json(data)

    def written(self) -> set[str]:
        """Names of the buffers that a run writes; rows count as their whole."""
        names: set[str] = set()
        for step in self.steps():
            names |= {step.ring} if isinstance(step, Push) else {split_rows(buffer)[0] for buffer in step.outputs.values()}
        return names

    def read(self) -> set[str]:
        """Names of the buffers that a run reads; rows count as their whole."""
        names: set[str] = set(self.outputs)
        for step in self.steps():
            names |= {step.source} if isinstance(step, Push) else {split_rows(buffer)[0] for buffer in step.inputs.values()}
        return names


@dataclass(frozen=True)
class Programs:
    """All programs of a policy with the state and the constants they share."""

    states: tuple[State, ...]
    programs: Mapping[str, Program]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    def check(self, stages: Mapping[str, Stage]) -> None:
        """Raise ContractError unless every buffer is written before it is read, with one spec, and each state has one writer."""
        writers: dict[str, str] = {}
        for program in self.programs.values():
            for state in _check_program(program, self, stages):
                if writers.setdefault(state, program.name) != program.name:
                    raise ContractError(
                        f"State '{state}' is written by '{writers[state]}' and '{program.name}'; it must have one writer."
                    )

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; constants are stored beside it as arrays and only listed here."""
        return {
            "states": [{"spec": s.spec.to_json(), "lifetime": s.lifetime} for s in self.states],
            "programs": {name: _program_to_json(program) for name, program in self.programs.items()},
            "constants": sorted(self.constants),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> Programs:
        """Inverse of `to_json`; ContractError when a listed constant is missing."""
        if missing := set(data["constants"]) - set(constants):
            raise ContractError(f"Constants missing from the bundle: {', '.join(sorted(missing))}. Compile it again.")
        states = tuple(State(TensorSpec.from_json(s["spec"]), s["lifetime"]) for s in data["states"])
        programs = {name: _program_from_json(p) for name, p in data["programs"].items()}
        return Programs(states, programs, dict(constants))


_ROWS = re.compile(r"(.+)\[(\d+):(\d+)\]")


def split_rows(buffer: str) -> tuple[str, tuple[int, int] | None]:
    """("context", (0, 5)) of "context[0:5]", ("context", None) of "context"."""
    found = _ROWS.fullmatch(buffer)
    return (found[1], (int(found[2]), int(found[3]))) if found else (buffer, None)


def _spec_of(buffer: str, known: Mapping[str, TensorSpec]) -> TensorSpec | None:
    """Spec of a buffer or of rows of one; None when there is no such buffer or it has no such rows."""
    name, rows = split_rows(buffer)
    have = known.get(name)
    if have is None or rows is None:
        return have
    if not have.shape or not 0 <= rows[0] < rows[1] <= have.shape[0]:
        return None
    return TensorSpec(buffer, (rows[1] - rows[0], *have.shape[1:]), have.dtype)


def _check_program(program: Program, owner: Programs, stages: Mapping[str, Stage]) -> set[str]:
    """Check one program and return the states that it writes."""
    where = f"Program '{program.name}'"
    known: dict[str, TensorSpec] = {spec.name: spec for spec in program.inputs}
    known |= {name: TensorSpec(name, array.shape, str(array.dtype)) for name, array in owner.constants.items()}
    states = {state.spec.name: state.spec for state in owner.states}
    if clash := set(known) & set(states):
        raise ContractError(f"{where} has inputs or constants named like states: {sorted(clash)}.")
    known |= states
    written: set[str] = set()
    if program.loop is not None:
        for buffer, constant in program.loop.rows.items():
            table = known.get(constant)
            if table is None or constant not in owner.constants or table.shape[0] < program.loop.num_rows:
                raise ContractError(f"{where}: loop table '{constant}' is missing or shorter than {program.loop.num_rows} rows.")
            known[buffer] = TensorSpec(buffer, table.shape[1:], table.dtype)
    for step in program.steps():
        if isinstance(step, Push):
            ring, source = known.get(step.ring), known.get(step.source)
            if (
                ring is None
                or source is None
                or step.slot not in known
                or ring.shape[1:] != source.shape
                or ring.dtype != source.dtype
            ):
                raise ContractError(f"{where}: cannot push '{step.source}' into ring '{step.ring}' at '{step.slot}'.")
            written.add(step.ring)
            continue
        if step.stage not in stages:
            raise ContractError(f"{where} calls unknown stage '{step.stage}'. Available: {', '.join(stages)}.")
        stage = stages[step.stage]
        if set(step.inputs) != {s.name for s in stage.inputs} or not set(step.outputs) <= {s.name for s in stage.outputs}:
            raise ContractError(
                f"{where}: call of '{stage.name}' does not bind exactly its inputs {[s.name for s in stage.inputs]}."
            )
        for name, buffer in step.inputs.items():
            spec = stage.input(name)
            have = _spec_of(buffer, known)
            if have is None:
                raise ContractError(f"{where}: '{stage.name}' reads buffer '{buffer}' before it is written.")
            if (have.shape, have.dtype) != (spec.shape, spec.dtype):
                raise ContractError(f"{where}: '{stage.name}.{name}' is {spec} but buffer '{buffer}' is {have}.")
        for name, buffer in step.outputs.items():
            spec = stage.output(name)
            if buffer in owner.constants:
                raise ContractError(f"{where}: '{stage.name}' writes constant '{buffer}'.")
            base, rows = split_rows(buffer)
            if rows is None:
                known.setdefault(buffer, TensorSpec(buffer, spec.shape, spec.dtype))
            elif base not in states:
                raise ContractError(f"{where}: '{stage.name}' writes rows '{buffer}', and only states are written by rows.")
            have = _spec_of(buffer, known)
            if have is None or (have.shape, have.dtype) != (spec.shape, spec.dtype):
                raise ContractError(f"{where}: '{stage.name}.{name}' writes {spec} to buffer '{buffer}' of {have}.")
            written.add(base)
    if missing := [name for name in program.outputs if name not in known]:
        raise ContractError(f"{where} never writes its outputs {missing}.")
    return written & set(states)


def _step_to_json(step: Call | Push) -> dict[str, Any]:
    if isinstance(step, Push):
        return {"push": step.source, "ring": step.ring, "slot": step.slot}
    return {"call": step.stage, "inputs": dict(step.inputs), "outputs": dict(step.outputs)}


def _step_from_json(data: Mapping[str, Any]) -> Call | Push:
    if "push" in data:
        return Push(data["push"], data["ring"], data["slot"])
    return _call_from_json(data)


def _call_from_json(data: Mapping[str, Any]) -> Call:
    return Call(data["call"], data["inputs"], data["outputs"])


def _program_to_json(program: Program) -> dict[str, Any]:
    loop = program.loop
    return {
        "inputs": [spec.to_json() for spec in program.inputs],
        "outputs": list(program.outputs),
        "setup": [_step_to_json(step) for step in program.setup],
        "loop": loop and {"calls": [_step_to_json(c) for c in loop.calls], "rows": dict(loop.rows), "num_rows": loop.num_rows},
        "finish": [_step_to_json(step) for step in program.finish],
        "name": program.name,
    }


def _program_from_json(data: Mapping[str, Any]) -> Program:
    loop = data["loop"]
    return Program(
        data["name"],
        tuple(map(TensorSpec.from_json, data["inputs"])),
        tuple(data["outputs"]),
        tuple(map(_step_from_json, data["setup"])),
        loop and Loop(tuple(map(_call_from_json, loop["calls"])), loop["rows"], loop["num_rows"]),
        tuple(map(_step_from_json, data["finish"])),
    )

"""The pipeline owns the named buffers of a policy and runs its programs with engines of any backend, in any memory.

Every call is bound to its memory once and a run only walks a list, or launches the graph that was captured of it: nothing is
allocated between the first and the last call.  It knows neither the model nor the backend.

A state that one program writes and others read (a planner's context) can have a back buffer: with `overlap` the writer runs
beside its readers and the new value is swapped in when the run is finished (DESIGN section 8).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from edgewam.core.errors import ContractError
from edgewam.core.program import Lifetime, Program, Programs
from edgewam.core.stage import Stage, has_half_types
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.back_buffers import BackBuffers
from edgewam.runtime.binding import BoundProgram, Step, bind_program
from edgewam.runtime.engine import Engine
from edgewam.runtime.memory import Array, HostMemory, Memory, host_spec
from edgewam.runtime.program_inputs import another, check_inputs, copy_inputs
from edgewam.runtime.replay import HALF_REPLAY_TOLERANCE, REPLAY_TOLERANCE, Replay, capture_steps, compose

StageHook = Callable[[str, int], None]


class Pipeline:
    """Runs programs.  `on_stage(stage, nanoseconds)` is called after every step when set, and costs nothing when None.

    One run of a program at a time; two programs at a time only with `overlap`.  State starts as zeros.
    """

    def __init__(
        self, programs: Programs, stages: Mapping[str, Stage], engines: Mapping[str, Engine], memory: Memory | None = None,
        overlap: bool = False,
    ) -> None:  # fmt: skip
        """Bind everything.

        Args:
            programs: what to run.
            stages: their declarations.
            engines: one per stage, of the backend that `memory` belongs to.
            memory: where buffers live; on the host by default.
            overlap: give states that other programs read a back buffer.

        Raises:
            ContractError: programs that do not fit the stages, or a stage without an engine.
        """
        programs.check(stages)
        self.programs, self.memory = programs, memory or HostMemory()
        self.on_stage: StageHook | None = None
        self.overlap = overlap
        self._stages, self._engines = stages, engines
        self._specs = {state.spec.name: state.spec for state in programs.states}
        self._back = BackBuffers(programs, overlap)
        self._states = {
            name: [self.memory.allocate(spec) for _ in range(self._back.num_buffers(name))] for name, spec in self._specs.items()
        }
        self._streams = {name: self.memory.stream(_priority(program)) for name, program in programs.programs.items()}
        self._plans = self._bind()
        self._calls = {name: [compose(bound) for bound in variants] for name, variants in self._plans.items()}
        self._captured: set[str] = set()
        self._observed: dict[tuple[str, int], tuple[Step, ...]] = {}
        self._running: dict[str, int] = {}  # program -> the variant that was launched
        self.memory.synchronize()  # buffers are zeroed and constants there before any stream of ours begins

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one program and return copies of its outputs.

        Raises:
            ContractError: unknown program, missing or unknown inputs, wrong shapes or dtypes, a slot outside its ring.
        """
        self.start(program, inputs)
        return self.finish(program)

    def start(self, program: str, inputs: Mapping[str, Array]) -> None:
        """Launch one program on its stream; `finish` waits for it.  On the host it is done when this returns.

        Raises:
            ContractError: as `run`; or the program is running, or another one that it may not run beside.
        """
        plan = self._require(program, inputs)
        copy_inputs(plan, inputs)
        variant, earlier = self._back.choose(self.programs.programs[program], self._running)
        for name in earlier:
            self.memory.synchronize(self._streams[name])
        self._running[program] = variant
        try:
            with self.memory.on(self._streams[program]):
                if self.on_stage is not None:
                    self._run_observed(program, variant)
                else:
                    for call in self._calls[program][variant]:
                        call()
        except BaseException:
            del self._running[program]
            raise

    def finish(self, program: str) -> dict[str, Array]:
        """Wait for a launched program, make what it wrote valid for others, and return copies of its outputs."""
        if program not in self._running:
            raise ContractError(f"Program '{program}' was not started.")
        variant = self._running.pop(program)
        self.memory.synchronize(self._streams[program])
        self._back.swap(program, variant)
        return {name: port.host.copy() for name, port in self._plans[program][variant].outputs.items()}

    def is_done(self, program: str) -> bool:
        """Whether a launched program has nothing left to do, so that `finish` would not wait."""
        if program not in self._running:
            raise ContractError(f"Program '{program}' was not started.")
        return self.memory.is_idle(self._streams[program])

    def capture(
        self, program: str, inputs: Mapping[str, Array], one_graph: bool = False, tolerance: float | None = None
    ) -> str:  # fmt: skip
        """Turn a program into one graph, verified on these inputs and on others: it must write what the single calls write.

        A program without outputs runs in the background and becomes one graph per stage (layer groups), so that urgent ones
        get the device in between; `one_graph` makes one of it all the same.  Replay and single calls may differ by `tolerance` of
        a result's maximum, by default what their dtypes allow.

        Returns "bitwise" or how far replay and single calls differ.  State is left as it was.

        Raises:
            CaptureError: the memory has no graphs, the calls do not fit into one, or the replay computes something else;
                the program goes on running call by call.
        """
        plan = self._require(program, inputs)
        if tolerance is None:
            tolerance = HALF_REPLAY_TOLERANCE if has_half_types(self._stages) else REPLAY_TOLERANCE
        others = {name: another(array) for name, array in inputs.items()}
        written = sorted(self.programs.programs[program].written() & self._states.keys())
        stream = self._streams[program]
        prepare = [partial(copy_inputs, plan, given) for given in (inputs, others)]
        calls, worst = [], "bitwise"
        for number, bound in enumerate(self._plans[program]):
            watched = {name: self._states[name][self._back.target(name, program, number)] for name in written}
            replay = Replay(bound, self.memory, stream, in_groups=not (bound.outputs or one_graph))
            found = replay.verify(watched, prepare, tolerance)
            worst = found if found != "bitwise" else worst
            calls.append(replay.calls)
        self._calls[program] = calls
        self._captured.add(program)
        return worst

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of the programs that run as graphs."""
        return tuple(sorted(self._captured))

    def reset(self, lifetime: Lifetime | None = None) -> None:
        """Zero the state tensors of one lifetime, or all of them."""
        self._require_idle("reset")
        for state in self.programs.states:
            if lifetime is None or state.lifetime == lifetime:
                for buffer in self._states[state.spec.name]:
                    self.memory.fill_zero(buffer)
        self.memory.synchronize()

    def state(self, name: str) -> Array:
        """A copy of one state tensor on the host; bfloat16 as float32."""
        self._require_state(name)
        return self.memory.read(self._states[name][self._back.front(name)])

    def set_state(self, name: str, value: Array) -> None:
        """Overwrite one state tensor, as when a robot resumes or a test ablates the memory."""
        self._require_state(name)
        self._require_idle("set_state")
        host_spec(self._specs[name]).check(value)
        self.memory.write(self._states[name][self._back.front(name)], value)

    def with_programs(self, programs: Programs) -> Pipeline:
        """A pipeline of other programs over the same engines, in the same memory, with state of its own."""
        return Pipeline(programs, self._stages, self._engines, self.memory, self.overlap)

    def _bind(self) -> dict[str, list[BoundProgram]]:
        """Every program once, or once per buffer of the states with a back buffer that it touches."""
        memory, specs = self.memory, dict(self._specs)
        constants = {}
        for name, array in self.programs.constants.items():
            specs[name] = TensorSpec(name, array.shape, str(array.dtype))
            constants[name] = memory.allocate(specs[name])
            memory.write(constants[name], np.asarray(array))
        plans = {}
        for name, program in self.programs.programs.items():
            ports = {spec.name: memory.port(spec) for spec in program.inputs}
            plans[name] = [
                bind_program(
                    program, self._stages, self._engines, memory,
                    {state: buffers[number % len(buffers)] for state, buffers in self._states.items()}, constants, ports, specs,
                )
                for number in range(self._back.num_variants(program))
            ]  # fmt: skip
        return plans

    def _run_observed(self, program: str, variant: int) -> None:
        """One step at a time; of a captured program each step is a graph of its own, so that what is timed is what runs."""
        hook, stream, plan = self.on_stage, self._streams[program], self._plans[program][variant]
        assert hook is not None
        if program in self._captured and (program, variant) not in self._observed:
            self._observed[program, variant] = capture_steps(plan, self.memory, stream)
        for port in (port for _, port in plan.inputs.values()):
            if port.upload:
                port.upload()
        for step in self._observed.get((program, variant), plan.steps):
            self.memory.synchronize(stream)
            start = time.perf_counter_ns()
            step.call()
            self.memory.synchronize(stream)
            hook(step.name, time.perf_counter_ns() - start)
        for port in plan.outputs.values():
            if port.download:
                port.download()

    def _require(self, program: str, inputs: Mapping[str, Array]) -> BoundProgram:
        """The program; everything is checked before anything is written, so that a refused run changes nothing."""
        if program not in self._plans:
            raise ContractError(f"Unknown program '{program}'. Available: {', '.join(self._plans)}.")
        plan = self._plans[program][0]
        check_inputs(program, plan, inputs)
        if program in self._running or (self._running and not self.overlap):
            raise ContractError(f"Program '{program}' cannot start while {', '.join(self._running)} runs; call finish first.")
        lasting = {state.spec.name for state in self.programs.states} - self._back.writers.keys()
        mine = self.programs.programs[program]
        for other in (self.programs.programs[name] for name in self._running):
            if clash := lasting & ((mine.written() & (other.read() | other.written())) | (mine.read() & other.written())):
                raise ContractError(f"Program '{program}' cannot run beside '{other.name}': both use the state '{min(clash)}'.")
        return plan

    def _require_state(self, name: str) -> None:
        if name not in self._states:
            raise ContractError(f"Unknown state '{name}'. Available: {', '.join(self._states) or 'none'}.")

    def _require_idle(self, what: str) -> None:
        if self._running:
            raise ContractError(f"{what} is not possible while {', '.join(self._running)} runs; call finish first.")


def _priority(program: Program) -> int:
    """Programs that answer something are urgent; those that only write state are not."""
    return 1 if program.outputs else 0

"""Programs with one stage taken out, to show that it matters: its readers get what it would have changed."""

from __future__ import annotations

from dataclasses import replace

from edgewam.core.errors import ContractError
from edgewam.core.program import Call, Programs, Push


def bypass(programs: Programs, stage: str, output: str, source: str) -> Programs:
    """Leave out every call of `stage`; steps that read its buffer `output` read the buffer `source` of the same spec.

    Raises:
        ContractError: no program calls the stage.
    """
    changed = {}
    found = False
    for name, program in programs.programs.items():
        found = found or any(isinstance(step, Call) and step.stage == stage for step in program.steps())

        def rewire(step: Call | Push) -> Call | Push:
            if isinstance(step, Push):
                return replace(step, source=source) if step.source == output else step
            return _rewire_call(step, output, source)

        loop = program.loop and replace(
            program.loop, calls=tuple(_rewire_call(call, output, source) for call in program.loop.calls if call.stage != stage)
        )
        setup, finish = (
            tuple(rewire(step) for step in steps if not (isinstance(step, Call) and step.stage == stage))
            for steps in (program.setup, program.finish)
        )
        changed[name] = replace(program, setup=setup, loop=loop, finish=finish)
    if not found:
        raise ContractError(f"No program calls a stage '{stage}', so it cannot be left out.")
    return replace(programs, programs=changed)


def _rewire_call(call: Call, output: str, source: str) -> Call:
    return replace(call, inputs={name: source if buffer == output else buffer for name, buffer in call.inputs.items()})

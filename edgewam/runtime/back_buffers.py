"""Which buffer of a state is valid, where one program writes it in the background while others read it (DESIGN section 8).

Such a state has two buffers.  Its writer takes the one that is not valid, and a swap after the run makes it the valid one.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgewam.core.errors import ContractError
from edgewam.core.program import Program, Programs


class BackBuffers:
    """The bookkeeping; memory belongs to the pipeline.  Without `overlap` every state has one buffer.

    Raises:
        ContractError: two background programs, whose swaps would have to be told apart.
    """

    def __init__(self, programs: Programs, overlap: bool) -> None:
        self.writers = shared_states(programs) if overlap else {}  # state with two buffers -> its writer
        if len(names := sorted(set(self.writers.values()))) > 1:
            raise ContractError(f"Only one program can run in the background, and {', '.join(names)} all write what others read.")
        self._front = 0

    def num_buffers(self, state: str) -> int:
        """Buffers of a state."""
        return 1 + (state in self.writers)

    def num_variants(self, program: Program) -> int:
        """In how many ways a program must be bound: one per buffer of what it touches."""
        return 1 + bool((program.read() | program.written()) & self.writers.keys())

    def front(self, state: str) -> int:
        """Index of the buffer that holds the valid value."""
        return self._front if state in self.writers else 0

    def target(self, state: str, program: str, variant: int) -> int:
        """Index of the buffer that a variant of a program writes."""
        return variant if self.writers.get(state) == program else 0

    def choose(self, program: Program, running: Mapping[str, int]) -> tuple[int, list[str]]:
        """The variant to launch now, and the running programs that must be waited for first.

        running: program -> its variant.  A reader that was launched before the last swap still reads the back buffer.
        """
        if self.num_variants(program) == 1:
            return 0, []
        if program.name not in self.writers.values():
            return self._front, []
        back = 1 - self._front
        return back, [name for name, variant in running.items() if variant == back]

    def swap(self, program: str, variant: int) -> None:
        """A run of a program is finished: what it wrote is valid from now on."""
        if program in self.writers.values():
            self._front = variant


def shared_states(programs: Programs) -> dict[str, str]:
    """State -> its writer, for states of lifetime `plan` that another program reads."""
    shared = {}
    for state in programs.states:
        name = state.spec.name
        writers = [program.name for program in programs.programs.values() if name in program.written()]
        readers = [program.name for program in programs.programs.values() if name in program.read()]
        if state.lifetime == "plan" and writers and set(readers) - set(writers):
            shared[name] = writers[0]
    return shared

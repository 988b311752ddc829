"""How much of a numbered stream was kept and how much is missing: numbers grow by one, so that a gap is a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_LOW = (1 << 32) - 1  # a restarted process counts on from its generation << 32


@dataclass
class Tally:
    """kept: items that are in a file.  lost: items that are known to have existed and are in none.  last: newest number seen.

    Items count as kept at once, but only `save` says that they reached the file; `fail` turns the others into lost ones.
    """

    kept: int = 0
    lost: int = 0
    last: int = -1
    saved: int = 0

    def see(self, number: int, is_kept: bool) -> None:
        """Item `number` exists; the ones between it and the last one were missed."""
        self.lost += missing(self.last, number)
        self.last = number
        if is_kept:
            self.kept += 1
        else:
            self.lost += 1

    def save(self) -> None:
        """Everything kept so far is in the file."""
        self.saved = self.kept

    def fail(self) -> None:
        """What was kept since the last `save` did not reach the file."""
        self.lost += self.kept - self.saved
        self.kept = self.saved

    def to_json(self) -> dict[str, int]:
        """Plain data, from which `continued` goes on."""
        return {"kept": self.kept, "lost": self.lost, "last": self.last}

    @classmethod
    def continued(cls, data: Mapping[str, int]) -> Tally:
        """The tally of a predecessor, so that what its death cost is counted as lost."""
        return cls(data["kept"], data["lost"], data["last"], data["kept"])


def missing(last: int, number: int) -> int:
    """Items between two that were seen one after the other (last -1: none was seen yet, so none can be missed).

    A new generation starts at 1; a stream that starts again by itself (a number that is not larger) has lost nothing.
    """
    if last < 0:
        return 0
    if number >> 32 != last >> 32:
        return max(0, (number & _LOW) - 1)
    return max(0, number - last - 1)

"""The paired comparison of two evaluations on their common seeds: `edgewam evaluate --compare A B`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.evaluation.evaluate import Rate, median_of
from edgewam.robot_bridge.evaluation.lockstep import EpisodeResult
from edgewam.robot_bridge.evaluation.results import read_results
from edgewam.robot_bridge.evaluation.statistics import mcnemar_exact, tango_lower_bound


@dataclass(frozen=True)
class Side:
    """One policy on the common seeds: strict success, median tick of it, jerk as in `Smoothness` (medians)."""

    strict: Rate
    median_strict_tick: float | None
    seam_jerk: float | None
    inner_jerk: float | None

    @classmethod
    def of(cls, episodes: Sequence[EpisodeResult]) -> Side:
        """From the episodes of the common seeds (at least one)."""
        return cls(
            strict=Rate.of(sum(e.strict_success for e in episodes), len(episodes)),
            median_strict_tick=median_of(e.strict_tick for e in episodes),
            seam_jerk=median_of(e.seam_jerk for e in episodes),
            inner_jerk=median_of(e.inner_jerk for e in episodes),
        )


@dataclass(frozen=True)
class Comparison:
    """First against second on the seeds that both have, by strict success.

    difference: rate of the first minus rate of the second.  lower_bound: Tango's one-sided 95 % bound of it.
    is_non_inferior: the bound is above minus the margin.  p_value: McNemar's exact test of "no difference", two-sided.
    """

    first: Side
    second: Side
    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    lower_bound: float
    margin: float
    is_non_inferior: bool
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def compare(first: Path | str, second: Path | str, margin: float = 0.05) -> Comparison:
    """Paired comparison of two results files of the same robot and episode length.

    Raises:
        EdgewamError: different robots, prompts or episode lengths, or no common seed.
    """
    (config_a, a), (config_b, b) = read_results(first), read_results(second)
    for name in ("robot", "robot_options", "prompt"):
        if config_a[name] != config_b[name]:
            raise EdgewamError(f"Cannot pair '{first}' with '{second}': {name} differs ({config_a[name]}, {config_b[name]}).")
    if config_a["settings"]["max_ticks"] != config_b["settings"]["max_ticks"]:
        raise EdgewamError(f"Cannot pair '{first}' with '{second}': their episodes differ in length (max_ticks).")
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise EdgewamError(f"'{first}' and '{second}' have no seed in common. Evaluate both on the same seeds.")
    pairs = [(a[seed].strict_success, b[seed].strict_success) for seed in seeds]
    both, only_a, only_b = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    bound = tango_lower_bound(only_a, only_b, len(pairs))
    return Comparison(
        first=Side.of([a[seed] for seed in seeds]),
        second=Side.of([b[seed] for seed in seeds]),
        n=len(pairs),
        both=both,
        only_first=only_a,
        only_second=only_b,
        neither=len(pairs) - both - only_a - only_b,
        difference=(only_a - only_b) / len(pairs),
        lower_bound=bound,
        margin=margin,
        is_non_inferior=bound > -margin,
        p_value=mcnemar_exact(only_a, only_b),
    )

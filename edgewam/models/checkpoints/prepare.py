"""From a file that was looked at to tensors that can be written: repairs, skipped tensors and dtypes, each one said.

Strict refuses what upstream's classes would ignore; lenient leaves it out.  Both repair what upstream itself repairs, and
neither accepts a network with holes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.entries import FLOATS, Entry
from edgewam.models.checkpoints.identify import BRANCH, QUERIES, Checkpoint
from edgewam.models.checkpoints.shards import Cast, Finite, Held, Source

_CONVERTIBLE = ("float64", "float8_e4m3fn", "float8_e5m2")  # floats that no network here is stored in
_SHOWN = 5


@dataclass(frozen=True)
class Prepared:
    """What to write, and what was done to it: sentences for people and for the JSON output."""

    tensors: Mapping[str, Source]
    repaired: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def prepared(found: Checkpoint, *, dtype: str | None, strict: bool, num_queries: int | None = None) -> Prepared:
    """Check a file against its kind.

    Args:
        found: the file.
        dtype: of all tensors; None keeps each one's own.
        strict: refuse tensors that are not part of the network, and floats of unusual width.
        num_queries: interpolate the router's queries to this number.

    Raises:
        ArtifactError: a tensor is missing, has a wrong shape or dtype, or (strict) should not be there.
    """
    match = found.match
    if match is None:
        keys = ", ".join(list(found.file.entries)[:_SHOWN]) or "no tensors"
        raise ArtifactError(
            f"'{found.file.path}' is no checkpoint that is known; it holds {keys}. Known are AHA-WAM, Fast-WAM (also "
            "LeRobot's), the Wan2.2 VAE, UMT5, video and action transformers. See what it holds with: edgewam inspect FILE"
        )
    repairable = {BRANCH} if _one_row(found.tensors) else set()
    wrong = [f"'{name}' is missing" for name in match.missing]
    wrong += [f"its {size} is 0" for size, found_size in match.sizes.items() if found_size == 0]
    wrong += [f"'{name}' {what}" for name, what in match.shapes.items() if name not in repairable]
    wrong += [f"'{name}' has dtype {kind}" for name, kind in match.dtypes.items() if kind not in _CONVERTIBLE]
    odd = [f"'{name}' is not part of a {match.kind}" for name in match.extra]
    odd += [f"'{name}' has dtype {kind}" for name, kind in match.dtypes.items() if kind in _CONVERTIBLE]
    if wrong or (strict and odd):
        raise ArtifactError(_refusal(found, wrong, odd if strict else []))
    left_out = {*match.extra, *match.unread}
    tensors, repaired = _repaired({name: e for name, e in found.tensors.items() if name not in left_out}, num_queries)
    usual = dtype or _usual(found.tensors)
    written = {
        name: Finite(_as(source, dtype or (usual if source.dtype not in FLOATS else source.dtype)), name, found.file.path)
        for name, source in tensors.items()
    }
    repaired += [f"'{name}' was {kind} and is now {usual}" for name, kind in match.dtypes.items()]
    skipped = [f"'{name}' is not part of a {match.kind}" for name in match.extra]
    skipped += [f"'{name}' is not read by a {match.kind}" for name in match.unread]
    if found.file.optimizer:
        skipped.append(f"the optimizer's state ({found.file.optimizer['tensors']} tensors)")
    return Prepared(written, (*found.renamed, *repaired), tuple(skipped))


def _refusal(found: Checkpoint, wrong: list[str], odd: list[str]) -> str:
    said = wrong + odd
    shown = "; ".join(said[:_SHOWN]) + (f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else "")
    remedy = "Download it again or convert another file." if wrong else "Give --lenient to leave out or convert these."
    return f"'{found.file.path}' is no {found.kind} as released: {shown}. {remedy}"


def _one_row(tensors: Mapping[str, Entry]) -> bool:
    return BRANCH in tensors and len(tensors[BRANCH].shape) == 2 and tensors[BRANCH].shape[0] == 1


def _repaired(entries: Mapping[str, Entry], num_queries: int | None) -> tuple[dict[str, Source], list[str]]:
    """Small tensors that upstream tolerates in other forms; they are repaired in memory."""
    expected: dict[str, tuple[int, ...]] = {}
    if _one_row(entries):
        expected[BRANCH] = (2, *entries[BRANCH].shape[1:])
    if num_queries and QUERIES in entries and entries[QUERIES].shape[2] != num_queries:
        expected[QUERIES] = (1, 1, num_queries, *entries[QUERIES].shape[3:])
    if not expected:
        return dict(entries), []
    from edgewam.models.checkpoints.mapped import mapped
    from edgewam.models.checkpoints.release import repaired

    changed, said = repaired(mapped({name: entries[name] for name in expected}), expected)
    return {name: Held(changed[name]) if name in changed else entry for name, entry in entries.items()}, said


def _as(source: Source, dtype: str) -> Source:
    if source.dtype == dtype:
        return source
    if isinstance(source, Held):
        from edgewam.models.checkpoints.mapped import TORCH_DTYPES

        return Held(source.tensor.to(TORCH_DTYPES[dtype]))
    assert isinstance(source, Entry)
    return Cast(source, dtype)


def _usual(tensors: Mapping[str, Entry]) -> str:
    """The float dtype of most values."""
    counts = {dtype: sum(e.numel for e in tensors.values() if e.dtype == dtype) for dtype in FLOATS}
    return max(counts, key=lambda dtype: counts[dtype]) if any(counts.values()) else "float32"

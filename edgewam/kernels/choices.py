"""Which variant each kernel runs with: found by `autotune` on one card, stored in the bundle, refused on another card."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgewam.core.errors import ArtifactError
from edgewam.kernels.call import Call
from edgewam.kernels.target import Target
from edgewam.kernels.variant import Variant
from edgewam.profiles.versions import installed


def key_of(call: Call, tensors: Mapping[str, Any]) -> str:
    """What decides how fast a call is: op, attributes, and shape and dtype of every operand; not the tensors' names.

    tensors: role -> torch tensor or anything else with .shape and .dtype.
    """
    attributes = ",".join(f"{name}={value}" for name, value in sorted(call.attributes.items()))
    roles = [f"{role}:{_dtype(tensors[role])}{list(tensors[role].shape)}" for role in sorted(call.operands)]
    return " ".join([f"{call.op}({attributes})", *roles]).replace(", ", ",")


@dataclass(frozen=True)
class Choices:
    """by_key: `key_of` a call -> its variant, or None where no candidate gave the right result, so that the reference runs.

    card, sm, triton: what they were measured on.  remarks: a sentence for every candidate that failed.
    """

    card: str
    sm: int
    triton: str
    by_key: Mapping[str, Variant | None] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @staticmethod
    def defaults(target: Target) -> Choices:
        """No choices: every kernel runs with the first variant that its op offers."""
        return Choices(target.name, target.sm, installed("triton") or "")

    def for_target(self, target: Target) -> Choices:
        """Themselves, for the card they were made on.

        Raises:
            ArtifactError: another card.
        """
        if (self.card, self.sm) != (target.name, target.sm):
            raise ArtifactError(
                f"The kernels were tuned on '{self.card}' (sm_{self.sm}) and this is '{target.name}' (sm_{target.sm}), where "
                "other tiles are fast and some do not fit. Compile the policy again on this machine."
            )
        if self.triton != (here := installed("triton") or ""):
            warnings.warn(
                f"The kernels were tuned with Triton {self.triton} and run with {here}: right, but perhaps not as fast. Compile "
                "the policy again to tune them.",
                stacklevel=2,
            )
        return self

    def pick(self, key: str, candidates: Sequence[Variant]) -> Variant | None:
        """The variant of a call, out of those that its op offers today; None where only the reference is right.

        A choice that is no longer offered, and a call that was never tuned, get the op's first variant.
        """
        chosen = self.by_key.get(key, candidates[0])
        return chosen if chosen is None or chosen in candidates else candidates[0]

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        by_key = {key: variant and variant.to_json() for key, variant in self.by_key.items()}
        return {"card": self.card, "sm": self.sm, "triton": self.triton, "by_key": by_key, "remarks": list(self.remarks)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Choices:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: fields that are missing or unknown.
        """
        try:
            by_key = {key: variant and Variant.from_json(variant) for key, variant in data["by_key"].items()}
            return Choices(data["card"], data["sm"], data["triton"], by_key, tuple(data["remarks"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"The kernel choices of this bundle are damaged: {error}. Compile the policy again.") from error


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")

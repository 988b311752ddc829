"""`prompts.safetensors`: embeddings that a policy carries with it, one tensor [text_len, text_dim] per instruction.

A policy whose text encoder is not at hand can still be compiled and run for these.  Not the prompts of a bundle, which are
packed for its engines (`runtime/prompts.py`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.models.text import Array, TextEncoder, checked_rows

PROMPTS = "prompts.safetensors"


def read_prompts(path: Path) -> dict[str, Array]:
    """Float32 rows by instruction; empty where there is no such file.

    Raises:
        ArtifactError: truncated or no safetensors file.
    """
    if not path.exists():
        return {}
    try:
        return {name: rows.float().numpy() for name, rows in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"Cannot read the stored prompts '{path}': {error}. Copy the policy again.") from error


def write_prompts(path: Path, prompts: Mapping[str, npt.ArrayLike]) -> None:
    """Write rows by instruction: in bf16, the dtype of released encoders, where that loses nothing, else in float32."""
    tensors = {}
    for name, rows in prompts.items():
        exact = torch.as_tensor(rows, dtype=torch.float32).contiguous()
        small = exact.bfloat16()
        tensors[name] = small if torch.equal(small.float(), exact) else exact
    with replaced_file(path) as temporary:
        temporary.write_bytes(to_bytes(tensors))


@dataclass(frozen=True)
class StoredText:
    """Stored prompts as a text encoder; instructions that are not among them are asked of `others`, if there is one."""

    path: Path
    prompts: Mapping[str, Array]
    text_len: int
    text_dim: int
    others: TextEncoder | None = None

    def encode(self, instruction: str) -> Array:
        """Stored rows of an instruction.

        Raises:
            EdgewamError: it is not stored and there is nobody else to ask; the message names the command that adds it.
            ContractError: the stored rows are of another size, or not finite.
        """
        if instruction in self.prompts:
            source = f"The embedding of '{instruction}' in '{self.path}'"
            return checked_rows(self.prompts[instruction], self.text_len, self.text_dim, source)
        if self.others is not None:
            return self.others.encode(instruction)
        policy = self.path.parent
        known = ", ".join(f"'{name}'" for name in sorted(self.prompts)[:5]) or "none"
        raise EdgewamError(
            f"'{policy}' has no stored embedding of '{instruction}' (stored: {known}). Add it with: "
            f"edgewam prompt add {shlex.quote(str(policy))} {shlex.quote(instruction)} --text ENCODER"
        )

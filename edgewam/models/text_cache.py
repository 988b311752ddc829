"""Upstream's cache of text embeddings: one file per prompt, named by the sha256 of the templated sentence.

A file holds {"context": bf16 [text_len, text_dim], "mask": bool [text_len]}.  Rows that the mask leaves out hold whatever
the encoder made of its padding; a policy never sees them, they count as zero (facts/aha_wam.md 1.8).  Files are written in
the same form, so that both programs can share a directory.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.models.text import PROMPT_TEMPLATE, Array, checked_rows, prompt_of

ENCODER = "wan22ti2v5b"  # how upstream's file names call the encoder of Wan2.2-TI2V-5B


def cache_name(instruction: str, text_len: int) -> str:
    """File name of an instruction: upstream hashes the templated sentence as it is, spaces at its ends included."""
    prompt_of(instruction)  # refuses an empty one
    prompt = PROMPT_TEMPLATE.format(task=instruction)
    return f"{hashlib.sha256(prompt.encode()).hexdigest()}.t5_len{text_len}.{ENCODER}.pt"


def cached_lengths(directory: Path) -> set[int]:
    """The text lengths that a directory holds cache files of; empty where it is no cache."""
    names = (path.name.split(".t5_len")[1].split(".")[0] for path in directory.glob(f"*.t5_len*.{ENCODER}.pt"))
    return {int(name) for name in names if name.isdigit()}


@dataclass(frozen=True)
class TextCache:
    """A directory of cache files as a text encoder, for a policy that takes rows [text_len, text_dim]."""

    directory: Path
    text_len: int = 128
    text_dim: int = 4096

    def path(self, instruction: str) -> Path:
        """Where the embedding of an instruction is or would be written."""
        return Path(self.directory) / cache_name(instruction, self.text_len)

    def holds(self, instruction: str) -> bool:
        """Whether the file of an instruction is there (not whether it is whole)."""
        return any(path.is_file() for path in self._places(instruction))

    def encode(self, instruction: str) -> Array:
        """Rows of an instruction; those that the mask leaves out are zero.

        Raises:
            EdgewamError: it is not in the cache; the message names its file and the command that adds it.
            ArtifactError: its file is truncated, no plain tensors, or of another form.
            ContractError: its rows are of another size, or not finite.
        """
        for path in self._places(instruction):
            if path.is_file():
                return read_cached(path, self.text_len, self.text_dim)
        others = sorted(cached_lengths(Path(self.directory)) - {self.text_len})
        hint = f" The directory holds embeddings of length {others}, this policy takes {self.text_len}." if others else ""
        raise EdgewamError(
            f"'{self.directory}' has no embedding of '{instruction}' (file '{self.path(instruction).name}').{hint} Add it with: "
            f"edgewam prompt add {shlex.quote(str(self.directory))} {shlex.quote(instruction)} --text ENCODER"
        )

    def write(self, instruction: str, rows: npt.ArrayLike) -> Path:
        """Add an embedding, rounded to bf16 as upstream does; a killed writer leaves no half file."""
        path = self.path(instruction)
        array = checked_rows(rows, self.text_len, self.text_dim, f"The embedding of '{instruction}'")
        context, mask = torch.from_numpy(array).bfloat16(), torch.from_numpy(np.any(array != 0, axis=1))
        with replaced_file(path) as temporary:
            torch.save({"context": context, "mask": mask}, temporary)
        return path

    def _places(self, instruction: str) -> Iterator[Path]:
        """Its file, or that of the same sentence without spaces at the ends, which the encoder does not see anyway."""
        yield self.path(instruction)
        if instruction != instruction.strip():
            yield self.path(instruction.strip())


def read_cached(path: Path, text_len: int, text_dim: int) -> Array:
    """Rows [text_len, text_dim] float32 of one cache file; see `TextCache.encode` for the errors."""
    stored = _load(path)
    context, mask = stored.get("context"), stored.get("mask")
    is_tensors = isinstance(context, torch.Tensor) and isinstance(mask, torch.Tensor)
    if not is_tensors or context.ndim != 2 or mask.shape != context.shape[:1] or not context.is_floating_point():
        raise ArtifactError(
            f"'{path}' holds {_form(stored)}, but an embedding is a context [{text_len}, {text_dim}] and a mask [{text_len}]. "
            "Delete it and make it again with: edgewam prompt cache"
        )
    rows = torch.where(mask.bool()[:, None], context.float(), 0.0)
    return checked_rows(rows.numpy(), text_len, text_dim, f"The embedding in '{path}'")


def _load(path: Path) -> dict[str, Any]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes lead torch to almost any exception type
        if "global" in str(error).lower():  # how torch words an object that is no tensor: its name would be called
            raise ArtifactError(
                f"'{path}' holds more than tensors, and loading it would run code of its maker. It was not loaded. Delete it, "
                "and make it again with: edgewam prompt cache"
            ) from error
        raise ArtifactError(
            f"'{path}' ({path.stat().st_size} bytes) is truncated or damaged. Delete it, and make it again with: "
            "edgewam prompt cache"
        ) from error
    return stored if isinstance(stored, dict) else {}


def _form(stored: dict[str, Any]) -> str:
    forms = [
        f"{key} {list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}" for key, value in stored.items()
    ]
    return ", ".join(forms[:4]) or "no named tensors"

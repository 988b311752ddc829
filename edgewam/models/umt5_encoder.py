"""The artifact "text_encoder": UMT5 weights in our own format, their sizes, and the tokeniser's files beside them.

Loaded, it is a `TextEncoder`: an instruction is put into the template, cut into tokens and encoded; rows behind the last
token are zero (facts/aha_wam.md 1.8).  Weights stay memory-mapped, so that 11 GB are read as the layers are computed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from edgewam.core.artifacts import read_manifest, write_artifact, write_json
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.models import checkpoints
from edgewam.models.text import Array, checked_rows, prompt_of
from edgewam.models.umt5 import Umt5, Umt5Config
from edgewam.models.umt5_tokenizer import Umt5Tokenizer, tokenizer_files

KIND = "text_encoder"
STORED_AS = "umt5"  # the family name in model.json
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Umt5TextEncoder:
    """Network and tokeniser for a policy that takes `text_len` rows."""

    network: Umt5
    tokenizer: Umt5Tokenizer
    text_len: int

    @property
    def text_dim(self) -> int:
        """Width of a row."""
        return self.network.config.dim

    @torch.inference_mode()
    def encode(self, instruction: str) -> Array:
        """Rows [text_len, text_dim] of an instruction; padding is not computed at all, nobody would attend to it.

        Raises:
            ContractError: an empty instruction, or weights that give values which are not finite.
        """
        ids, mask = self.tokenizer(prompt_of(instruction), self.text_len)
        count = int(mask.sum())
        device = self.network.norm.weight.device
        tokens = torch.from_numpy(ids[None, :count]).to(device)
        found = self.network(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]
        rows = torch.zeros(self.text_len, self.text_dim)
        rows[:count] = found.float().cpu()
        return checked_rows(rows.numpy(), self.text_len, self.text_dim, f"The embedding of '{instruction}'")


def save_text_encoder(
    out: Path,
    config: Umt5Config,
    tokenizer: Path,
    write_weights: Callable[[Path], object],
    *,
    storage: str = "bfloat16",
    parents: Mapping[str, str] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Write a text_encoder artifact.

    Args:
        out: its directory.
        config: sizes of the weights.
        tokenizer: the folder google/umt5-xxl, or a Wan2.2 folder with it inside; it is checked before anything is written.
        write_weights: writes the weights, in one safetensors file or in shards, into the directory that it is given.
        storage: their dtype, as recorded.
        parents: digests of artifacts that it was made from.
        made_from: what the manifest says about the source.

    Raises:
        ArtifactError: no usable tokeniser.
        ContractError: the tokeniser has more pieces than the weights have.
    """
    _check_vocabulary(Umt5Tokenizer.open(tokenizer), config, tokenizer)
    files = tokenizer_files(tokenizer)
    sizes = asdict(config)
    with write_artifact(out, KIND, config={"sizes": sizes, "from": dict(made_from or {})}, parents=parents) as directory:
        write_weights(directory)
        write_json(directory / checkpoints.SIZES, {"family": STORED_AS, "config": sizes, "storage": storage, "metadata": {}})
        (directory / TOKENIZER).mkdir()
        for file in files:
            shutil.copyfile(file, directory / TOKENIZER / file.name)


def load_text_encoder(
    directory: Path | str, text_len: int = 128, text_dim: int | None = None, device: str = "cpu"
) -> Umt5TextEncoder:
    """Open a text_encoder artifact for a policy of these sizes; `text_dim` None takes any width.

    Raises:
        ArtifactError: no text_encoder, or a damaged one.
        ContractError: its width is not that of the policy.
    """
    directory = Path(directory)
    read_manifest(directory, kind=KIND)
    stored = checkpoints.read(directory, STORED_AS)
    try:
        config = Umt5Config(**stored.config)
        dtype = stored.tensors["token_embedding.weight"].dtype
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"'{directory}' holds no text encoder of this version: {error!r}. Convert it again.") from error
    if text_dim not in (None, config.dim):
        raise ContractError(
            f"'{directory}' gives rows of width {config.dim}, this policy takes {text_dim}. Give its own text source."
        )
    tokenizer = Umt5Tokenizer.open(directory / TOKENIZER)
    _check_vocabulary(tokenizer, config, directory / TOKENIZER)
    with torch.device("meta"):
        network = Umt5(config).to(dtype)
    checkpoints.fit(network, stored.tensors, f"'{directory}'")
    return Umt5TextEncoder(network.eval().requires_grad_(False).to(device), tokenizer, text_len)


def _check_vocabulary(tokenizer: Umt5Tokenizer, config: Umt5Config, folder: Path) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ContractError(
            f"The tokeniser in '{folder}' has {tokenizer.vocab_size} pieces, the weights know {config.vocab_size}. "
            "They do not belong together: give the tokeniser that came with the weights."
        )

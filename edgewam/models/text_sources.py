"""Where text embeddings come from: everybody who embeds instructions opens a source here, by name or by path.

A source is "small" (the frozen encoder without weights), a directory of upstream's cache files, a text_encoder artifact,
or the prompts that a policy carries.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgewam.core.artifacts import MANIFEST, read_manifest
from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.models.text import SmallTextEncoder, TextEncoder

if TYPE_CHECKING:
    from edgewam.models.text_store import StoredText

SMALL = "small"
SOURCES = (
    "'small', a directory of cached embeddings (edgewam prompt cache), a text_encoder artifact (edgewam convert), "
    "or a policy with stored prompts"
)


class TextSizes(Protocol):
    """What a source must know of a policy: the rows that it takes.  Every family's configuration has them."""

    @property
    def text_len(self) -> int:
        """Rows of an embedding, padding included."""
        ...

    @property
    def text_dim(self) -> int:
        """Width of a row."""
        ...


def open_text(spec: str | Path, config: TextSizes, device: str = "cpu") -> TextEncoder:
    """Open a source for a policy of these sizes.

    Args:
        spec: one of `SOURCES`.
        config: sizes of the policy.
        device: where a text_encoder artifact computes.

    Raises:
        EdgewamError: nothing that is a source, a damaged one, or one of another width.
    """
    if str(spec) == SMALL:
        return SmallTextEncoder(config.text_dim, config.text_len)
    path = Path(spec)
    if not path.exists():
        raise EdgewamError(f"There is no text source '{path}'. Give {SOURCES}.")
    if (path / MANIFEST).exists():
        return _open_artifact(path, config, device)
    from edgewam.models.text_cache import TextCache, cached_lengths
    from edgewam.models.text_store import PROMPTS

    if path.name == PROMPTS or (path / PROMPTS).exists():
        return stored_text(path.parent if path.name == PROMPTS else path, config)
    if path.is_dir() and (cached_lengths(path) or not any(path.iterdir())):  # an empty one answers with what to add
        return TextCache(path, config.text_len, config.text_dim)
    raise EdgewamError(f"'{path}' is no text source. Give {SOURCES}.")


def _open_artifact(path: Path, config: TextSizes, device: str) -> TextEncoder:
    from edgewam.models.text_store import PROMPTS

    kind = read_manifest(path, verify=False).kind
    if kind == "text_encoder":
        from edgewam.models.umt5_encoder import load_text_encoder

        return load_text_encoder(path, config.text_len, config.text_dim, device)
    if kind == "bundle" or not (path / PROMPTS).exists():
        raise ArtifactError(f"'{path}' is a {kind} without embeddings to read. Give {SOURCES}.")
    return stored_text(path, config)


def stored_text(policy: Path, config: TextSizes, others: TextEncoder | None = None) -> StoredText:
    """The prompts stored in a policy's directory (there may be none), and whom to ask for all others."""
    from edgewam.models.text_store import PROMPTS, StoredText, read_prompts

    path = policy / PROMPTS
    return StoredText(path, read_prompts(path), config.text_len, config.text_dim, others)


def embedded_now(text: TextEncoder, instructions: Iterable[str]) -> TextEncoder:
    """The same answers for these instructions, without the encoder that made them: 11 GB need not stay for a whole training.

    Raises:
        EdgewamError: what the source refuses.
    """
    from edgewam.models.text_store import StoredText

    if isinstance(text, SmallTextEncoder):
        return text
    prompts = {instruction: text.encode(instruction) for instruction in instructions}
    return StoredText(Path("embedded"), prompts, text.text_len, text.text_dim)


def policy_text(
    policy: Path, encoder: str, config: TextSizes, given: str | Path | None = None, device: str = "cpu"
) -> TextEncoder:
    """The source that a policy needs.

    Args:
        policy: its directory.
        encoder: its fact `text_encoder`.
        config: its sizes.
        given: what the user named, if anything.
        device: where a text_encoder artifact computes.

    Returns:
        The small encoder for policies that were trained with it; for others their stored prompts, then the source given.

    Raises:
        EdgewamError: a source that does not belong to this policy, or that cannot be opened.
    """
    check_belongs(policy, encoder, given)
    if encoder == SMALL:
        return SmallTextEncoder(config.text_dim, config.text_len)
    return stored_text(policy, config, None if given is None else open_text(given, config, device))


def check_belongs(policy: Path, encoder: str, given: str | Path | None) -> None:
    """Refuse a source that makes embeddings of another kind than a policy (or a bundle) was trained with.

    Raises:
        EdgewamError: "small" for a policy of another encoder, or another one for a policy of "small".
    """
    if given is None or (encoder == SMALL) == (str(given) == SMALL):
        return
    hint = (
        "Leave --text out."
        if encoder == SMALL
        else "Give a directory of cached embeddings or a text_encoder artifact with --text."
    )
    raise EdgewamError(
        f"'{policy}' was trained with the text encoder '{encoder}'; embeddings of '{given}' would mean nothing to it. {hint}"
    )

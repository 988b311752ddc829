"""Instructions of bundles, policies and embedding caches: which are known, how more are added, how a cache is filled."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgewam.core.errors import ArtifactError, EdgewamError

if TYPE_CHECKING:
    from edgewam.models.text import TextEncoder
    from edgewam.models.umt5_encoder import Umt5TextEncoder

BUNDLE, CACHE, POLICIES = "bundle", "cache", ("policy", "student")
RELEASED_LEN = 128  # rows of an embedding of AHA-WAM and Fast-WAM


@dataclass(frozen=True)
class Sizes:
    """Rows that a policy takes."""

    text_len: int
    text_dim: int


@dataclass(frozen=True)
class Filled:
    """What filling a cache did."""

    written: int
    already_there: int


def known_prompts(place: Path) -> list[str]:
    """The instructions of a bundle, or of a policy: those that it carries, or was trained on with the encoder "small"; sorted.

    Raises:
        ArtifactError: neither of these, or damaged.
    """
    kind = _kind(place)
    if kind == BUNDLE:
        from edgewam.runtime.prompts import prompt_names

        return prompt_names(place)
    if kind == CACHE:
        raise EdgewamError(f"'{place}' names its embeddings by a hash, so they cannot be listed. Ask for one: edgewam prompt add")
    from edgewam.models.text_sources import SMALL
    from edgewam.models.text_store import PROMPTS, read_prompts

    _, encoder, tasks = _policy(place)
    return sorted(tasks if encoder == SMALL else read_prompts(place / PROMPTS))


def add_prompts(place: Path, instructions: Sequence[str], text: str | None = None, device: str = "cpu") -> str:
    """Embed instructions and store them in a bundle, a policy or a cache; the artifact is written anew and swapped in.

    A policy gets another digest by it: what was made from it before still names the old one.

    Args:
        place: where to store them.
        instructions: what the robot is told to do.
        text: where embeddings come from (`models.text_sources`); a bundle whose policy has the encoder "small" needs none.
        device: where a text_encoder artifact computes.

    Returns:
        What `place` is: "bundle", "cache" or the kind of the policy.

    Raises:
        EdgewamError: an instruction is known already, is too long for the bundle or has no embedding, or the source is missing
            or belongs to another policy.
    """
    kind = _kind(place)
    add = {BUNDLE: _add_to_bundle, CACHE: _add_to_cache}.get(kind, _add_to_policy)
    add(place, list(dict.fromkeys(instructions)), text, device)
    return kind


def fill_cache(
    source: Path,
    out: Path,
    text: Path,
    text_len: int = RELEASED_LEN,
    device: str = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> Filled:
    """Embed every instruction of a dataset, or of a text file with one a line, into a directory in upstream's form.

    What is there already is kept, so a run that was cut goes on.

    Args:
        source: dataset directory or text file.
        out: cache directory; it may be one of upstream's.
        text: text_encoder artifact.
        text_len: rows of an embedding.
        device: where it computes.
        report: called with (embeddings written, embeddings to write).

    Raises:
        EdgewamError: no instructions, an empty one, or no text_encoder.
    """
    from edgewam.models.text_cache import TextCache

    instructions = _instructions(source)
    missing = [task for task in instructions if not TextCache(out, text_len).holds(task)]
    if missing:
        encoder = _encoder(text, text_len, device)
        cache = TextCache(out, text_len, encoder.text_dim)
        for done, task in enumerate(missing, 1):
            cache.write(task, encoder.encode(task))
            if report:
                report(done, len(missing))
    return Filled(len(missing), len(instructions) - len(missing))


def _instructions(source: Path) -> list[str]:
    if source.is_file():
        try:
            found: Iterable[str] = [line for line in source.read_text().splitlines() if line.strip()]
        except ValueError as error:
            raise EdgewamError(f"'{source}' is no text file: {error}. Give one with an instruction a line.") from error
    else:
        from edgewam.data.dataset import Dataset

        found = Dataset.open(source).tasks
    instructions = list(dict.fromkeys(found))
    if not instructions or not all(task.strip() for task in instructions):
        what = "has an empty instruction" if instructions else "has no instructions"
        raise EdgewamError(f"'{source}' {what}. Give every episode a task in words.")
    return instructions


def _kind(place: Path) -> str:
    """Kind of the artifact, or CACHE for a directory of cached embeddings."""
    from edgewam.core.artifacts import MANIFEST, read_manifest

    if place.is_dir() and not (place / MANIFEST).exists():
        from edgewam.models.text_cache import cached_lengths

        if cached_lengths(place):
            return CACHE
    kind = read_manifest(place, verify=False).kind
    if kind not in (BUNDLE, *POLICIES):
        raise ArtifactError(f"'{place}' is a {kind}, but a bundle or a policy is needed here.")
    return kind


def _policy(place: Path) -> tuple[Sizes, str, list[str]]:
    """Sizes, text encoder and training tasks of a policy, without its weights."""
    from edgewam.models.checkpoints import SIZES

    try:
        stored = json.loads((place / SIZES).read_text())
        config, facts = stored["config"], stored["metadata"]
        return Sizes(config["text_len"], config["text_dim"]), facts.get("text_encoder", "small"), list(facts.get("tasks", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"'{place / SIZES}' does not describe a policy: {error!r}. Copy the policy again.") from error


def _refuse_known(place: Path, known: Iterable[str], instructions: Sequence[str]) -> None:
    if again := [name for name in instructions if name in set(known)]:
        raise EdgewamError(f"'{place}' knows '{again[0]}' already.")


def _source(place: Path, encoder: str, sizes: Sizes, text: str | None, device: str) -> TextEncoder:
    """What makes the embeddings that `place` was trained with."""
    from edgewam.models.text_sources import SMALL, check_belongs, open_text

    check_belongs(place, encoder, text)
    if text is None and encoder != SMALL:
        raise EdgewamError(
            f"'{place}' was trained with the text encoder '{encoder}'. Say with --text where its embeddings come from: a "
            "text_encoder artifact (edgewam convert), or a directory of cached ones (edgewam prompt cache)."
        )
    return open_text(text or SMALL, sizes, device)


def _encoder(text: Path | str | None, text_len: int, device: str) -> Umt5TextEncoder:
    from edgewam.models.umt5_encoder import load_text_encoder

    if text is None:
        raise EdgewamError("Say with --text which text_encoder artifact makes the embeddings (edgewam convert makes one).")
    return load_text_encoder(text, text_len, device=device)


def _add_to_bundle(bundle: Path, instructions: Sequence[str], text: str | None, device: str) -> None:
    from edgewam.core.artifacts import read_manifest
    from edgewam.models.text import pack_context
    from edgewam.runtime.prompts import PROMPTS, load_prompts, store_prompts

    host = read_manifest(bundle, verify=False).config["host"]
    _refuse_known(bundle, load_prompts(bundle / PROMPTS), instructions)
    source = _source(bundle, host.get("text_encoder", "stored"), Sizes(host["text_len"], host["text_dim"]), text, device)
    packed = {name: pack_context(source.encode(name), host["text_bucket"]) for name in instructions}
    store_prompts(bundle, {name: {"text_rows": rows, "text_bias": bias} for name, (rows, bias) in packed.items()})


def _add_to_policy(policy: Path, instructions: Sequence[str], text: str | None, device: str) -> None:
    from edgewam.core.artifacts import keep_files, read_manifest, write_artifact
    from edgewam.models.text_sources import SMALL
    from edgewam.models.text_store import PROMPTS, read_prompts, write_prompts

    sizes, encoder, _ = _policy(policy)
    if encoder == SMALL:
        raise EdgewamError(
            f"'{policy}' was trained with the text encoder 'small', which embeds any instruction, so a policy stores none. "
            "Add the instruction to its bundle."
        )
    known = read_prompts(policy / PROMPTS)
    _refuse_known(policy, known, instructions)
    source = _source(policy, encoder, sizes, text, device)
    added = {name: source.encode(name) for name in instructions}
    old = read_manifest(policy)
    kept = dict(config=old.config, parents=old.parents, measured=dict(old.measured))
    with write_artifact(policy, old.kind, **kept) as directory:
        keep_files(policy, directory, old.files.keys() - {PROMPTS})
        write_prompts(directory / PROMPTS, known | added)


def _add_to_cache(directory: Path, instructions: Sequence[str], text: str | None, device: str) -> None:
    from edgewam.models.text_cache import TextCache, cached_lengths

    lengths = cached_lengths(directory)
    if len(lengths) != 1:
        raise EdgewamError(
            f"'{directory}' holds embeddings of several lengths, {sorted(lengths)}. Say which one: "
            f"edgewam prompt cache FILE {shlex.quote(str(directory))} --text-len N"
        )
    text_len = lengths.pop()
    _refuse_known(directory, filter(TextCache(directory, text_len).holds, instructions), instructions)
    encoder = _encoder(text, text_len, device)
    cache = TextCache(directory, text_len, encoder.text_dim)
    for name in instructions:
        cache.write(name, encoder.encode(name))

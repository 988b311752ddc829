"""The tokeniser of UMT5 from local files: text is cleaned as upstream does, cut into pieces, ended, cut off and padded.

It reads `tokenizer.json` through the package tokenizers or, where only that is there, `spiece.model` through
sentencepiece.  Both are files of the folder google/umt5-xxl of a Wan2.2 download; nothing is fetched.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ArtifactError, ContractError, require

FAST, PIECES = "tokenizer.json", "spiece.model"
FILES = (FAST, PIECES)  # the first one that is there is used
WITHIN = ("", "google/umt5-xxl")  # a Wan2.2 folder holds it there
PAD, END = 0, 1  # ids of <pad> and </s>
EXTRA = "text"


def clean(text: str) -> str:
    """Mend broken Unicode, resolve HTML entities twice, and make every run of white space one blank."""
    text = require("ftfy", extra=EXTRA).fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())


def tokenizer_files(folder: Path) -> list[Path]:
    """The usable files of a folder, or of the tokeniser's folder in it, best first.

    Raises:
        ArtifactError: there are none.
    """
    for place in (Path(folder) / name for name in WITHIN):
        if found := [place / name for name in FILES if (place / name).is_file()]:
            return found
    raise ArtifactError(
        f"'{folder}' holds no tokeniser: neither {' nor '.join(FILES)} is there. "
        "Give the folder google/umt5-xxl of Wan2.2-TI2V-5B."
    )


@dataclass(frozen=True)
class Umt5Tokenizer:
    """Text -> ids.  `pieces` cuts cleaned text without special tokens; `vocab_size` is one more than its largest id."""

    pieces: Callable[[str], list[int]]
    vocab_size: int

    @staticmethod
    def open(folder: Path | str) -> Umt5Tokenizer:
        """Open the best file of a folder.

        Raises:
            ArtifactError: no usable file, a damaged one, or one with other ids for <pad> and </s>.
            MissingExtraError: the package that reads it is not installed.
        """
        path = tokenizer_files(Path(folder))[0]
        try:
            pieces, vocab_size, special = (_open_fast if path.name == FAST else _open_pieces)(path)
        except (OSError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"Cannot read the tokeniser '{path}': {error}. Copy google/umt5-xxl again.") from error
        if special != (PAD, END):
            raise ArtifactError(
                f"'{path}' has ids {special} for <pad> and </s>, UMT5's are {(PAD, END)}. Give the folder google/umt5-xxl."
            )
        return Umt5Tokenizer(pieces, vocab_size)

    def __call__(self, text: str, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids int64 [length] with </s> after the last piece and <pad> behind it, and the mask bool [length] of all but <pad>.

        A text that is too long loses its end, as in upstream, with a warning.

        Raises:
            ContractError: nothing is left of the text after cleaning.
        """
        cleaned = clean(text)
        if not cleaned:
            raise ContractError("The text is empty. Describe the task in words.")
        found = self.pieces(cleaned)
        if len(found) > length - 1:
            cut = len(found) + 1 - length
            warnings.warn(f"'{text}' has {len(found) + 1} tokens; the last {cut} before its end are cut off.", stacklevel=2)
        tokens = [*found[: length - 1], END]
        ids, mask = np.full(length, PAD, np.int64), np.arange(length) < len(tokens)
        ids[mask] = tokens
        return ids, mask


def _open_fast(path: Path) -> tuple[Callable[[str], list[int]], int, tuple[int | None, int | None]]:
    tokenizers = require("tokenizers", extra=EXTRA)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise ValueError(error) from error
    tokenizer.no_padding()  # the file may ask for either
    tokenizer.no_truncation()

    def pieces(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    special = (tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>"))
    return pieces, max(tokenizer.get_vocab().values()) + 1, special


def _open_pieces(path: Path) -> tuple[Callable[[str], list[int]], int, tuple[int | None, int | None]]:
    processor = require("sentencepiece", extra=EXTRA).SentencePieceProcessor(model_file=str(path))
    return processor.encode, processor.vocab_size(), (processor.pad_id(), processor.eos_id())

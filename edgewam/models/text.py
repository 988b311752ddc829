"""Text context: what an encoder must offer, the small frozen encoder, and how zero padding is packed.

NumPy only.  Released policies attend to their zero padding rows; because these rows are identical keys, they collapse
exactly to one key whose logit gets log(count) (facts/performance.md 4.2).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgewam.core.errors import ContractError

Array = npt.NDArray[np.float32]

PROMPT_TEMPLATE = "A video recorded from a robot's point of view executing the following instruction: {task}"


class TextEncoder(Protocol):
    """Turns an instruction into text rows [text_len, text_dim] float32; rows after its words are zero."""

    text_len: int
    text_dim: int

    def encode(self, instruction: str) -> Array:
        """Rows of one instruction (an encoder trained with the template applies `prompt_of` itself)."""
        ...


def prompt_of(task: str) -> str:
    """The sentence that the released text encoder was given for a task.

    Raises:
        ContractError: the task is empty.
    """
    if not task.strip():
        raise ContractError("The instruction is empty. Describe the task in words.")
    return PROMPT_TEMPLATE.format(task=task.strip())


def checked_rows(rows: npt.ArrayLike, text_len: int, text_dim: int, source: str) -> Array:
    """Text rows as float32, if they are [text_len, text_dim], finite, and hold at least one word.

    Raises:
        ContractError: they are not; `source` (what the rows are and where they come from) begins the message.
    """
    array = np.asarray(rows, dtype=np.float32)
    if array.shape != (text_len, text_dim):
        raise ContractError(
            f"{source} is {list(array.shape)}, but this policy takes {[text_len, text_dim]}. "
            "It belongs to another text encoder or length; give the text source that this policy was trained with."
        )
    if not np.isfinite(array).all():
        raise ContractError(f"{source} holds values that are not finite. Make it again.")
    if not array.any():
        raise ContractError(f"{source} holds no words, only zeros. Make it again.")
    return array


@dataclass(frozen=True)
class SmallTextEncoder:
    """A frozen encoder without weights: each word is a fixed vector of +-1, the bits of its sha256 in counter mode.

    It knows no grammar, no synonyms and no word order; it lets a policy tell instructions apart.  The template is left
    out, because it is the same for every instruction.
    """

    text_dim: int = 128
    text_len: int = 16

    def encode(self, instruction: str) -> Array:
        """Rows [text_len, text_dim] of the instruction's words, zero padded.

        Raises:
            ContractError: no words, or more than `text_len`.
        """
        words = re.findall(r"[a-z0-9]+", instruction.lower())
        if not words:
            raise ContractError(f"The instruction '{instruction}' holds no words. Describe the task in English words or digits.")
        if len(words) > self.text_len:
            raise ContractError(f"The instruction has {len(words)} words; this encoder takes {self.text_len}. Shorten it.")
        rows = np.zeros((self.text_len, self.text_dim), dtype=np.float32)
        for row, word in zip(rows, words, strict=False):
            row[:] = _signs(word, self.text_dim)
        return rows


def _signs(word: str, dim: int) -> Array:
    blocks = range(-(-dim // 256))
    digest = b"".join(hashlib.sha256(f"{word}/{block}".encode()).digest() for block in blocks)
    return np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:dim].astype(np.float32) * 2 - 1


def pack_context(context: npt.ArrayLike, bucket: int) -> tuple[Array, Array]:
    """Pack text rows [L, text_dim] into (rows [bucket, text_dim], key bias [bucket + 1]).

    The rows hold the words; the last bias entry belongs to one key that stands for all zero rows.  Words get bias 0,
    that key log(number of zero rows), unused places -inf.

    Raises:
        ContractError: more words than the bucket holds; the prompt needs a bundle compiled with a larger text bucket.
    """
    context = np.asarray(context, dtype=np.float32)
    is_word = np.any(context != 0, axis=1)
    num_words, num_padding = int(is_word.sum()), int((~is_word).sum())
    if num_words > bucket:
        raise ContractError(
            f"The prompt has {num_words} tokens, this bundle holds {bucket}. Add the prompt to the policy that it was compiled "
            "from and compile again: a bundle holds the longest prompt of its policy."
        )
    rows = np.zeros((bucket, context.shape[1]), dtype=np.float32)
    rows[:num_words] = context[is_word]
    bias = np.full(bucket + 1, -np.inf, dtype=np.float32)
    bias[:num_words] = 0.0
    if num_padding:
        bias[bucket] = np.log(np.float32(num_padding))
    return rows, bias

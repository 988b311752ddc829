"""What a weight file is: its tensors under the names that edgewam uses, its kind, and whatever is unexpected.

Wrappers and prefixes are undone here and named in `renamed`: `model_state`, `state_dict` and other groups around all
tensors, `module.` from data-parallel training, `model.` of VAE and LeRobot files, LeRobot's grouping by layer
(huggingface/lerobot at 7427f31: `model.mot.layers.<i>.blocks.<expert>.*`, before that `model.mot.mixtures.<expert>.*`), and
the names that transformers gives a UMT5 encoder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewam.models.checkpoints.entries import FLOATS, Entry, WeightFile
from edgewam.models.checkpoints.files import open_weights
from edgewam.models.checkpoints.templates import Match, matched

# Groups that hold nothing but all weights; `dit` is the form before both experts were saved together.
WRAPPERS = ("model_state", "model_state_dict", "state_dict", "model", "module", "backbone_state_dict", "dit")
_LAYERS = re.compile(r"mot\.layers\.(\d+)\.blocks\.([a-z]+)\.(.+)")
_ALIASES = {"dit.mixtures.": "mot.mixtures.", "video_expert.": "mot.mixtures.video.", "action_expert.": "mot.mixtures.action."}
_HUGGING_FACE = {
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding", "layer.0.SelfAttention": "attn",
    "layer.0.layer_norm": "norm1", "layer.1.layer_norm": "norm2", "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1", "layer.1.DenseReluDense.wo": "ffn.fc2",
}  # fmt: skip
_UMT5_ENDS = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
_UMT5_TIED = "encoder.embed_tokens.weight"  # another name of shared.weight
BRANCH, QUERIES = "mot.action_branch_embedding", "chunk_obs_query_encoder.base_queries"


@dataclass(frozen=True)
class Checkpoint:
    """A weight file that was looked at: `tensors` in the file's order under edgewam's names, and how they fit."""

    file: WeightFile
    tensors: Mapping[str, Entry]
    renamed: tuple[str, ...]
    match: Match | None

    @property
    def kind(self) -> str:
        """aha_wam, fast_wam, wan_vae, umt5, video_dit, action_dit, action_dit_backbone or unknown."""
        return self.match.kind if self.match else "unknown"

    @property
    def unexpected(self) -> list[str]:
        """Sentences about what does not fit, empty for a file as released."""
        if self.match is None:
            return ["its keys are those of no file that is known"]
        found = self.match
        said = [f"'{name}' is missing" for name in found.missing]
        said += [f"'{name}' is not part of a {found.kind}" for name in found.extra]
        said += [f"'{name}' is not read by a {found.kind}" for name in found.unread]
        said += [f"'{name}' {what}" for name, what in found.shapes.items()]
        said += [f"'{name}' has dtype {dtype}" for name, dtype in found.dtypes.items()]
        floats = Counter(entry.dtype for entry in self.tensors.values() if entry.dtype in FLOATS)
        if len(floats) > 1:
            said.append(f"it mixes dtypes: {', '.join(f'{count} {dtype}' for dtype, count in floats.most_common())}")
        return said


def identify(path: Path | str) -> Checkpoint:
    """Look at a weight file or folder without reading a tensor.

    Raises:
        ArtifactError: missing, truncated, of another format, or a pickle that asks for code.
    """
    return identified(open_weights(path))


def identified(file: WeightFile) -> Checkpoint:
    """The same for a file whose headers were read."""
    tensors, renamed = _renamed(file.entries)
    return Checkpoint(file, tensors, renamed, matched(tensors))


def _renamed(entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], tuple[str, ...]]:
    tensors, said = dict(entries), []
    for _ in range(3):  # wrappers may lie in each other
        for wrapper in WRAPPERS:
            if tensors and all(name.startswith(f"{wrapper}.") for name in tensors) and not _is_alias(wrapper, tensors):
                tensors = {name[len(wrapper) + 1 :]: entry for name, entry in tensors.items()}
                said.append(f"the group or prefix '{wrapper}.' around all tensors was removed")
    has = {part: any(name.startswith(f"{part}.") for name in tensors) for part in ("dit", "mot")}
    if has["dit"] and not has["mot"] and not _is_alias("dit", tensors):  # a legacy file with more than the planner
        tensors = {name.removeprefix("dit."): entry for name, entry in tensors.items()}
        said.append("the prefix 'dit.' was removed")
    # Data-parallel training saves every group of its own with the prefix.
    inner = {name: re.sub(r"(^|\.)module\.", r"\1", name, count=1) for name in tensors}
    if any(name != new for name, new in inner.items()) and len(set(inner.values())) == len(inner):
        tensors = {inner[name]: entry for name, entry in tensors.items()}
        said.append("the prefix 'module.' was removed")
    lerobot = {name: _from_lerobot(name) for name in tensors}
    if any(name != new for name, new in lerobot.items()):
        tensors = {lerobot[name]: entry for name, entry in tensors.items()}
        said.append("LeRobot's names were changed to the released ones")
    if any(name in tensors for name in ("shared.weight", _UMT5_TIED)) and "encoder.final_layer_norm.weight" in tensors:
        tensors = _from_hugging_face(tensors)
        said.append("Hugging Face's names of the text encoder were changed to Wan's")
    return tensors, tuple(said)


def _from_hugging_face(tensors: Mapping[str, Entry]) -> dict[str, Entry]:
    """UMT5 as transformers names it; the embedding may be there under two names."""
    found = {}
    for name, entry in tensors.items():
        if name == _UMT5_TIED:
            if "shared.weight" not in tensors:
                found["token_embedding.weight"] = entry
            continue
        changed = _UMT5_ENDS.get(name, re.sub(r"^encoder\.block\.(\d+)\.", r"blocks.\1.", name))
        for theirs, ours in _HUGGING_FACE.items():
            changed = changed.replace(f".{theirs}.", f".{ours}.")
        found[changed] = entry
    return found


def _is_alias(wrapper: str, tensors: Mapping[str, Entry]) -> bool:
    """Whether the prefix is LeRobot's second name of `mot`, and not a group around one transformer."""
    return wrapper == "dit" and any(name.startswith("dit.mixtures.") for name in tensors)


def _from_lerobot(name: str) -> str:
    for alias, usual in _ALIASES.items():
        if name.startswith(alias):
            return usual + name[len(alias) :]
    if found := _LAYERS.fullmatch(name):
        layer, expert, rest = found.groups()
        return f"mot.mixtures.{expert}.blocks.{layer}.{rest}"
    return name

"""Initial weights from a video DiT: the planner takes them as they are, the executor takes the same tensors made narrower.

Facts/aha_wam.md 2: every executor tensor but its encoder and head is resized dimension by dimension with linear interpolation
and scaled for its new width.  The result can be kept in the released ActionDiT file form.  One tensor at a time is in memory;
what neither file holds (encoder, head, router, state encoder) keeps the random values that the network was built with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import ArtifactError, ContractError
from edgewam.models.dit_block import NORM_EPS

PLANNER, EXECUTOR = "mot.mixtures.video.", "mot.mixtures.action."
NOT_FROM_VIDEO = ("action_encoder.", "head.")  # of the executor: an action is no latent
_BACKBONE = "backbone_state_dict"
_HOW = "sequential_1d_linear_align_corners_true"  # what released files call it
_MARK = "patch_embedding.weight"  # every video DiT has one, whatever a file puts before its names, and no executor has


@dataclass(frozen=True)
class Backbone:
    """The released ActionDiT file: executor tensors by name, the sizes that they are for, and how they were made."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WarmStart:
    """What became of the tensors: copied as they are, resized, or left as the network was built."""

    copied: int
    resized: int
    kept: tuple[str, ...]

    def __str__(self) -> str:
        """For people."""
        return f"{self.copied} tensors copied, {self.resized} resized, {len(self.kept)} keep their random values"


def resize(source: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor made `shape`, float32: linear interpolation along each dimension, first and last entries stay the ends.

    With two or more dimensions it is multiplied by sqrt(old / new) of the last one, so that sums over fewer inputs keep their
    spread.  A tensor that has the shape already is returned as it is.

    Raises:
        ContractError: another number of dimensions.
    """
    if source.ndim != len(shape):
        raise ContractError(f"A tensor of shape {list(source.shape)} cannot be made {list(shape)}: the dimensions differ.")
    if tuple(source.shape) == tuple(shape):
        return source
    out = source.float()
    for dim, size in enumerate(shape):
        if out.shape[dim] != size:
            lines = out.movedim(dim, -1)
            wide = F.interpolate(lines.reshape(-1, 1, lines.shape[-1]), size, mode="linear", align_corners=True)
            out = wide.reshape(*lines.shape[:-1], size).movedim(-1, dim)
    if len(shape) >= 2 and source.shape[-1] != shape[-1]:
        out = out * (source.shape[-1] / shape[-1]) ** 0.5
    return out.contiguous()


def executor_backbone(video: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Tensor]]:
    """Executor tensors, one after the other, from those of a video DiT.

    Args:
        video: tensors of the video DiT by their own names.
        shapes: of all executor tensors; those of its encoder and head are passed over.

    Raises:
        ArtifactError: the video DiT lacks one of them, as one of fewer layers does.
    """
    wanted = {name: shape for name, shape in shapes.items() if not name.startswith(NOT_FROM_VIDEO)}
    if missing := [name for name in wanted if name not in video]:
        raise ArtifactError(
            f"The video DiT lacks {len(missing)} of the tensors that the executor is made from: {', '.join(missing[:3])}. "
            "It must have as many layers as the executor."
        )
    for name, shape in wanted.items():
        yield name, resize(video[name], shape)


def warm_start(model: nn.Module, files: Sequence[Path | str]) -> WarmStart:
    """Fill planner and executor of a network from a video DiT, an ActionDiT file, or both; the file decides which it is.

    With an ActionDiT file the executor comes from there, otherwise from the video DiT.

    Args:
        model: of any family with the two experts, in any dtype and on any device, also sharded over ranks.
        files: of each kind at most one.

    Raises:
        ArtifactError: a file of neither kind, two of one kind, or one whose tensors do not fit the network.
    """
    parameters = dict(model.named_parameters())
    video: Mapping[str, Tensor] | None = None
    backbone: Backbone | None = None
    for path in map(Path, files):
        stored = _stored(path)
        if _BACKBONE in stored:
            backbone = _only(backbone, _as_backbone(stored, path), path)
        else:
            video = _only(video, _as_video_dit(stored, path), path)
    filled: dict[str, bool] = {}  # name -> whether it was resized
    if video is not None:
        planner = [name.removeprefix(PLANNER) for name in parameters if name.startswith(PLANNER)]
        if unknown := sorted(set(video) - set(planner)):
            shown = ", ".join(unknown[:3])
            raise ArtifactError(
                f"The video DiT has {len(unknown)} tensors that the planner does not: {shown}. Give one of its size."
            )
        for name in planner:
            _put(parameters, PLANNER + name, video.get(name), "video DiT")
            filled[PLANNER + name] = False
    shapes = {n.removeprefix(EXECUTOR): tuple(p.shape) for n, p in parameters.items() if n.startswith(EXECUTOR)}
    for name, tensor in _executor_tensors(video, backbone, shapes):
        _put(parameters, EXECUTOR + name, tensor, "ActionDiT file")
        filled[EXECUTOR + name] = backbone is None and video is not None and video[name].shape != tensor.shape
    resized = sum(filled.values())
    return WarmStart(len(filled) - resized, resized, tuple(name for name in parameters if name not in filled))


def _executor_tensors(
    video: Mapping[str, Tensor] | None, backbone: Backbone | None, shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Tensor]]:
    if backbone is not None:
        wanted = [name for name in shapes if not name.startswith(NOT_FROM_VIDEO)]
        if missing := [name for name in wanted if name not in backbone.tensors]:
            raise ArtifactError(f"The ActionDiT file lacks {len(missing)} tensors of the executor: {', '.join(missing[:3])}.")
        yield from ((name, backbone.tensors[name]) for name in wanted)
    elif video is not None:
        yield from executor_backbone(video, shapes)


@torch.no_grad()
def _put(parameters: Mapping[str, nn.Parameter], name: str, value: Tensor | None, source: str) -> None:
    """Copy into a parameter, of which this process may hold a shard only."""
    target = parameters[name]
    if value is None or value.shape != target.shape:
        found = "is missing" if value is None else f"is {list(value.shape)} there and {list(target.shape)} in this network"
        raise ArtifactError(f"The {source} does not fit: '{name}' {found}. Use the recipe of its size, or another file.")
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        # every rank reads the file itself, so that nothing needs to be sent
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def sizes_digest(path: Path | str) -> str:
    """Digest of the names and sizes of a file or of a folder's shards: reading 20 GB on every rank would tell little more.

    Raises:
        ArtifactError: there is nothing.
    """
    listed = [(file.name, file.stat().st_size) for file in _files(Path(path))]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def read_backbone(path: Path | str) -> Backbone:
    """Read an ActionDiT file.

    Raises:
        ArtifactError: missing, truncated, or another kind of file.
    """
    return _as_backbone(_stored(Path(path)), Path(path))


def write_backbone(path: Path | str, tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> None:
    """Write executor tensors in the released ActionDiT file form.

    Args:
        path: the file; replaced when the new one is whole.
        tensors: of `executor_backbone`.
        sizes: of the executor; see `backbone_sizes`.
    """
    policy = {"skip_prefixes": list(NOT_FROM_VIDEO), "alpha_scaling": True, "interpolation": _HOW}
    with replaced_file(Path(path)) as temporary:
        torch.save({"policy": policy, _BACKBONE: dict(tensors), "meta": dict(sizes)}, temporary)


def backbone_sizes(config: Any) -> dict[str, Any]:
    """The `meta` of an ActionDiT file for the executor of a family's configuration."""
    return {
        "hidden_dim": config.action_hidden_dim, "ffn_dim": config.action_ffn_dim, "num_layers": config.num_layers,
        "num_heads": config.num_heads, "attn_head_dim": config.head_dim, "text_dim": config.text_dim,
        "freq_dim": config.freq_dim, "eps": NORM_EPS,
    }  # fmt: skip


def _only(before: Any, found: Any, path: Path) -> Any:
    if before is not None:
        raise ArtifactError(f"'{path}' is a second file of the same kind. Give one video DiT and one ActionDiT file at most.")
    return found


def _stored(path: Path) -> dict[str, Any]:
    """What a file, or all safetensors of a folder, hold; tensors stay on disk until they are used."""
    stored: dict[str, Any] = {}
    for file in _files(path):
        try:
            if file.suffix == ".safetensors":
                stored |= load_file(file)
            else:
                stored |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # broken bytes lead torch to almost any exception type
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ArtifactError(
                f"'{file}' ({file.stat().st_size} bytes) is truncated or no plain tensor file: {reason} Download it again."
            ) from error
    return stored


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        what = "holds no .safetensors files" if path.is_dir() else "is not there"
        raise ArtifactError(f"'{path}' {what}. Give a video DiT (a file, or the folder of its shards) or an ActionDiT file.")
    return files


def _as_backbone(stored: Mapping[str, Any], path: Path) -> Backbone:
    tensors = stored.get(_BACKBONE)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ArtifactError(f"'{path}' is no ActionDiT file: it has no group '{_BACKBONE}' of tensors.")
    return Backbone(tensors, stored.get("meta") or {}, stored.get("policy") or {})


def _as_video_dit(stored: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors of the one video DiT in a file, without whatever stands before their names."""
    names: dict[str, Any] = {}
    for group, content in stored.items():
        names |= {f"{group}.{key}": value for key, value in content.items()} if isinstance(content, dict) else {group: content}
    marks = [name for name in names if name == _MARK or name.endswith(f".{_MARK}")]
    if len(marks) != 1:
        found = f"{len(marks)} of them" if marks else f"tensors such as {', '.join(map(repr, list(names)[:3]))}"
        raise ArtifactError(
            f"'{path}' should hold one video DiT, known by its '{_MARK}', or an ActionDiT file's '{_BACKBONE}'; it has {found}."
        )
    prefix = marks[0].removesuffix(_MARK)
    return {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}

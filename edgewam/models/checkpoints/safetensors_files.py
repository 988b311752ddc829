"""Headers of safetensors: a single file, or shards with an index in the Hugging Face form.  Written without the library,
because it would import torch.  Source: the format's description in huggingface/safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.entries import DTYPES, MAX_COUNT, Entry, WeightFile, json_object, unreadable

INDEX_SUFFIX = ".safetensors.index.json"
MAX_HEADER_BYTES = 100 << 20  # the limit of the format's own library
_TORCH_NAMES = {name: torch_name for torch_name, (_, name) in DTYPES.items()}


def read_safetensors(path: Path) -> WeightFile:
    """The header of one file.

    Raises:
        ArtifactError: truncated, not of this format, or of a dtype that is not known.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise unreadable(path, "its header is longer than the file.")
        header = json_object(path, file.read(length))
    metadata = header.pop("__metadata__", {})
    entries = {name: _entry(path, 8 + length, size, name, fields) for name, fields in header.items()}
    return WeightFile(path, "safetensors", entries, extra={"metadata": metadata} if metadata else {})


def _entry(path: Path, start: int, size: int, name: str, fields: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise unreadable(path, f"its header is damaged: '{name}' lacks a dtype, a shape or its place.") from error
    if not all(type(number) is int and 0 <= number < MAX_COUNT for number in (*shape, begin, end)):
        raise unreadable(path, f"its header is damaged: '{name}' has an impossible shape or place.")
    if str(dtype) not in _TORCH_NAMES:
        raise ArtifactError(f"'{path}': '{name}' has dtype {dtype}, which is not known. Known: {', '.join(_TORCH_NAMES)}.")
    entry = Entry(path, start + begin, _TORCH_NAMES[str(dtype)], shape)
    if start + end > size:
        raise unreadable(path, f"it ends before '{name}' does.")
    if end - begin != entry.nbytes:
        raise unreadable(path, f"'{name}' has {end - begin} bytes where its shape asks for {entry.nbytes}.")
    return entry


def read_index(path: Path) -> WeightFile:
    """All shards that an index file names.

    Raises:
        ArtifactError: the index is damaged, or a shard or a tensor in it is missing.
    """
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise unreadable(path, "it is larger than any index of shards.")
    weight_map = json_object(path, path.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise unreadable(path, "it is no index of shards: it has no 'weight_map'.")
    places = {name: path.parent / _shard_name(path, file) for name, file in weight_map.items()}
    shards = {}
    for shard in dict.fromkeys(places.values()):
        if not shard.is_file():
            raise ArtifactError(f"The shard '{shard}' is missing, which '{path.name}' names. Download it too.")
        shards[shard] = read_safetensors(shard).entries
    for name, shard in places.items():
        if name not in shards[shard]:
            raise ArtifactError(f"The shard '{shard}' lacks '{name}', which '{path.name}' says is in it. Download it again.")
    return WeightFile(path, "sharded safetensors", {name: shards[shard][name] for name, shard in places.items()})


def _shard_name(index: Path, file: Any) -> str:
    """Shards lie beside their index; a name that leads elsewhere is refused."""
    if not isinstance(file, str) or not file or file != Path(file).name or not file.isprintable():
        raise unreadable(index, f"it names {file!r} as a shard, but shards are files beside it.")
    return file

"""Headers of safetensors: a single file, or shards with an index in the Hugging Face form.  Written without the library,
because it would import torch.  Source: the format's description in huggingface/safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints.entries import DTYPES, Entry, WeightFile, unreadable

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
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            entries = {name: _entry(path, 8 + length, size, name, **fields) for name, fields in header.items()}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise unreadable(path, f"its header is damaged ({error}).") from error
    return WeightFile(path, "safetensors", entries, extra={"metadata": metadata} if metadata else {})


def _entry(path: Path, start: int, size: int, name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    if dtype not in _TORCH_NAMES:
        raise ArtifactError(f"'{path}': '{name}' has dtype {dtype}, which is not known. Known: {', '.join(_TORCH_NAMES)}.")
    begin, end = data_offsets
    entry = Entry(path, start + begin, _TORCH_NAMES[dtype], tuple(map(int, shape)))
    if start + end > size:
        raise unreadable(path, f"it ends before '{name}' does.")
    if begin < 0 or end - begin != entry.nbytes or any(side < 0 for side in entry.shape):
        raise unreadable(path, f"'{name}' has {end - begin} bytes where its shape asks for {entry.nbytes}.")
    return entry


def read_index(path: Path) -> WeightFile:
    """All shards that an index file names.

    Raises:
        ArtifactError: the index is damaged, or a shard or a tensor in it is missing.
    """
    try:
        index = json.loads(path.read_text())
        places = {str(name): path.parent / Path(str(file)).name for name, file in index["weight_map"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise unreadable(path, f"it is no index of shards ({error!r}).") from error
    shards = {}
    for shard in dict.fromkeys(places.values()):
        if not shard.is_file():
            raise ArtifactError(f"The shard '{shard}' is missing, which '{path.name}' names. Download it too.")
        shards[shard] = read_safetensors(shard).entries
    for name, shard in places.items():
        if name not in shards[shard]:
            raise ArtifactError(f"The shard '{shard}' lacks '{name}', which '{path.name}' says is in it. Download it again.")
    return WeightFile(path, "sharded safetensors", {name: shards[shard][name] for name, shard in places.items()})

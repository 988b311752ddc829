"""Weight files made to harm: hours, memory, other files.  Each is refused by name, and nothing of it runs."""

import json
import tracemalloc
import zipfile

import pytest
import torch

from edgewam.core.errors import ArtifactError
from edgewam.models.checkpoints import identify, open_weights


def _text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _doubled(start: bytes, again: bytes, levels: int = 60) -> bytes:
    """A value of the same value twice, `levels` deep: 2**60 to whoever walks it.  It lies in the memo under `levels`."""
    steps = (again.replace(b"?", bytes([i])) + b"q" + bytes([i + 1]) for i in range(levels))
    return start + b"q\x00" + b"".join(steps)


_TUPLES, _LISTS = _doubled(b")", b"h?h?\x86"), _doubled(b"]", b"](h?h?e")
_DICTS = _doubled(b"}", b"}(" + _text("a") + b"h?" + _text("b") + b"h?u")
_LAST = b"h\x3c"
_OF_A_FEW_BYTES = {
    "tuples": _TUPLES + b"}(" + _text("mot") + _LAST + b"u.",
    "lists": _LISTS + b"}(" + _text("mot") + _LAST + b"u.",
    "dicts": _DICTS + b"}(" + _text("mot") + _LAST + b"u.",
    "a name": _TUPLES + b"}(" + _LAST + _text("v") + b"u.",
    "one name": _TUPLES + b"}" + _LAST + _text("v") + b"s.",
    "a name of an OrderedDict": _TUPLES + b"ccollections\nOrderedDict\n](](" + _LAST + b"K\x01ee\x85R.",
    "a set": _TUPLES + b"\x8f(" + _LAST + b"\x90.",
    "a device": _LISTS + b"ctorch\ndevice\n" + _LAST + b"\x85R.",
    "a storage": _LISTS + b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _LAST + _text("cpu") + b"K\x01tQ.",
    "a legacy key": b"](" + _LISTS + _LAST + b"e.",
    "a nest": b"]" * 2000 + b"a" * 1999 + b".",
    "a long number": b"}" + _text("step") + b"\x8a\xff" + b"\x7f" * 255 + b"s.",
    "a longer number": b"}" + _text("step") + b"\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b"s.",
    "a bytearray": b"}" + _text("a") + b"\x96" + (12 << 30).to_bytes(8, "little") + b"xs.",
}


@pytest.mark.parametrize("what", _OF_A_FEW_BYTES)
def test_a_pickle_of_a_few_bytes_takes_neither_hours_nor_memory(what, tmp_path):
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x05" + _OF_A_FEW_BYTES[what])
    with pytest.raises(ArtifactError, match=r"file\.pt' \("):
        open_weights(path)


def test_what_is_compressed_or_sparse_is_not_unpacked_into_memory(tmp_path):
    path = tmp_path / "file.pt"
    for entry, others in (("data.pkl", ()), ("byteorder", (("data.pkl", b"\x80\x02}."),))):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (*others, (entry, bytes(50 << 20))):
                archive.writestr(f"a/{name}", content)
        _refused_in_little_memory(path)
    torch.save({}, path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    start = legacy[: legacy.rindex(b"\x80\x02}")]  # what comes before the content
    for asks in (b"cabc", b"X\xff\xff\xff\x7f", b"\x8d" + (1 << 33).to_bytes(8, "little")):  # a line, and strings, without end
        with open(path, "wb") as file:
            file.write(start + b"\x80\x04" + asks)
            file.truncate(1 << 33)
        _refused_in_little_memory(path)


def _refused_in_little_memory(path):
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=r"is compressed|larger than that of any checkpoint"):
        open_weights(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # the largest pickle that is read has 16 MB


def test_a_tensor_lies_within_its_storage_and_has_its_own_values(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"mot": {"x": torch.zeros(1).expand(1000, 1000)}}, path)
    with pytest.raises(ArtifactError, match=r"'mot\.x' repeats 1 values as 1000000"):
        open_weights(path)
    torch.save({"mot": {"x": torch.zeros(1)}, "mot.x": torch.ones(1)}, path)
    with pytest.raises(ArtifactError, match=r"holds 'mot\.x' twice"):
        open_weights(path)
    storage = b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
    view = b"(" + _text("v") + b"J\x80\xff\xff\xffK\x01t"  # 128 values before the storage begins
    shape = b"K\x00K\x01\x85K\x01\x85\x89}tR"
    changed = b"}" + _text("shape") + _text("zz") + b"sb"
    for tensor, words in ((b"K\x01" + view + b"tQ" + shape, "impossible"), (b"K\x01tQ" + shape + changed, "tries to change")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}" + _text("x") + storage + tensor + b"s.")
            archive.writestr("a/data/0", bytes(4))
        with pytest.raises(ArtifactError, match=words):
            open_weights(path)


def test_headers_that_are_absurd_are_refused_by_name(tmp_path):
    path, one = tmp_path / "file.safetensors", '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    headers = {
        "[" * 100_000: "nested too deep", "[1, 2]": "'a' lacks", one.replace('"F32"', "[1]"): "has dtype",
        one.replace("[1]", "[1e999]"): "impossible", one.replace("[0, 4]", "[0.0, 4.0]"): "impossible",
    }  # fmt: skip
    for fields, words in headers.items():
        header = f'{{"a": {fields}}}'
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
        with pytest.raises(ArtifactError, match=words):
            open_weights(path)
    header = "{" + ", ".join(f'"blocks.{number}.x": {one}' for number in ("99999999", "9" * 5000)) + "}"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    assert identify(path).kind == "unknown"  # at once: blocks are not counted to a billion
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"config\.json.*nested too deep"):
        open_weights(tmp_path)


def test_shards_lie_beside_their_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for file in ("../../../etc/passwd", "/etc/passwd", "sub/model.safetensors", "", {"x": 1}):
        index.write_text(json.dumps({"weight_map": {"a": file}}))
        with pytest.raises(ArtifactError, match="files beside it"):
            open_weights(index)
    index.write_text('{"weight_map": {"a": ' + "[" * 100_000)
    with pytest.raises(ArtifactError, match="nested too deep"):
        open_weights(tmp_path)

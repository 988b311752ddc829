"""Pickles as data: what real clients write is read exactly, what attackers write is refused before anything happens."""

import os
import pickle
import pickletools
import struct
import time
import tracemalloc
from collections import OrderedDict
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgewam.robot_bridge.doors.aha_wam_wire.pickle_reader import MAX_DEPTH, MAX_OPCODES, read
from edgewam.robot_bridge.doors.aha_wam_wire.pickle_writer import write
from edgewam.robot_bridge.serving.handler import DoorError
from tests.robot_bridge.doors.aha_wam_client import infer

START = b"\x80\x04"


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


# as NumPy 1 and NumPy 2 write the same array: names differ, bytes do not
NUMPY_1 = (
    START + global_("numpy.core.numeric", "_frombuffer") + b"(C\x04abcdcnumpy\ndtype\nX\x02\x00\x00\x00u1\x89\x88\x87R"
    b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbK\x02K\x02\x86X\x01\x00\x00\x00CtR."
)  # fmt: skip


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["u1", "i4", "i8", "f4", "f8"])
def test_arrays_of_every_layout_come_out_as_they_went_in(protocol, dtype):
    base = np.arange(4 * 6 * 3).reshape(4, 6, 3).astype(dtype)
    arrays = {"c": base, "f": np.asfortranarray(base), "view": base[:, ::-1], "rows": base[::2], "empty": base[:0, 0, 0]}
    arrays["scalar"] = base.reshape(-1)[5]
    found = read(pickle.dumps(arrays, protocol=protocol))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        if name != "scalar":
            assert found[name].dtype == array.dtype, name
    assert found["scalar"] == 5


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_whole_request_is_read_and_is_far_from_the_limits(protocol):
    view = np.zeros((4, 6, 3), np.uint8)
    message = infer(
        images={"cam_high": view, "cam_left_wrist": view.copy(), "cam_right_wrist": view}, numbers=[1, -2.5, None, True]
    )
    frame = pickle.dumps(message, protocol=protocol)
    found = read(frame)
    assert found["numbers"] == [1, -2.5, None, True] and found["instruction"] == "reach" and list(found) == list(message)
    assert len(list(pickletools.genops(frame))) < MAX_OPCODES / 4


@pytest.mark.parametrize("core", ["core", "_core"])
def test_the_names_of_both_numpy_generations_are_known(core):
    frame = NUMPY_1.replace(b"numpy.core.", f"numpy.{core}.".encode())
    np.testing.assert_array_equal(read(frame), np.frombuffer(b"abcd", np.uint8).reshape(2, 2))


def test_replies_load_with_the_standard_unpickler_without_warnings_and_name_no_private_core():
    message = {"ok": True, "n": -7, "f": 1.5, "s": "caf\u00e9", "none": None, "a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    payload = write(message)
    found = pickle.loads(payload)
    np.testing.assert_array_equal(found.pop("a"), message["a"])
    assert found == {key: value for key, value in message.items() if key != "a"}
    assert b"_core" not in payload and payload[:2] == b"\x80\x03", "a NumPy older than 1.26 has no numpy._core"
    np.testing.assert_array_equal(read(payload)["a"], message["a"])


@pytest.mark.parametrize("value", [object(), np.zeros(3, np.complex64), np.zeros(3, object)])
def test_a_reply_holds_nothing_else(value):
    with pytest.raises(TypeError, match="A reply cannot hold"):
        write({"x": value})


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        """What the unpickler would call."""
        return self.parts


def attacks(mark):
    """Name -> object whose pickle would run or build something; `mark` is the file that a success would leave."""
    command = f"touch {mark}"
    return {
        "system": Runs(os.system, command),
        "eval": Runs(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Runs(exec, f"open({str(mark)!r}, 'w')"),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
        "import": Runs(__import__, "os"),
        "open": Runs(open, str(mark), "w"),
        "path": Path(mark),
        "partial": partial(os.system, command),
        "nested": {"type": "infer", "images": {"front": [Runs(os.system, command)]}},
        "bytes": Runs(bytes, 1 << 40),
        "bytearray": Runs(bytearray, 1 << 40),
        "ordered": OrderedDict(a=1),
        "decimal": Decimal("1e999999"),
        "range": range(1 << 62),
        "set": {1, 2},
        "frozenset": frozenset((1, 2)),
        "complex": 1j,
        "class": np.ndarray,
        "dtype": np.dtype("f4"),
        "object array": np.array([Runs(os.system, command)], object),
        "structured array": np.zeros(2, [("a", "f4")]),
        "string array": np.array(["a"]),
        "time array": np.zeros(2, "M8[s]"),
        "big-endian array": np.zeros(2, ">f4"),
        "complex array": np.zeros(2, np.complex64),
        "masked array": np.ma.masked_array([1, 2]),
        "matrix": Runs(np.matrix, "1 2"),
        "memmap": Runs(np.memmap, str(mark), "u1", "w+", 0, (1 << 30,)),
        "zeros": Runs(np.zeros, 1 << 40),
    }


@pytest.mark.parametrize("name", list(attacks("")))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_that_could_run_or_grow_is_ever_built(name, protocol, tmp_path):
    mark = tmp_path / "mark"
    frame = pickle.dumps(attacks(mark)[name], protocol=protocol)
    with pytest.raises(DoorError) as caught:
        read(frame)
    assert caught.value.code in ("bad_request", "too_large")
    assert not mark.exists()


def mark_frame(body):
    return START + body + b"."


HUGE = {
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 1 << 62) + b"x",
    "BINBYTES8 beyond a word": b"\x8e" + struct.pack("<Q", (1 << 64) - 1),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 40),
    "BINBYTES": b"B" + struct.pack("<I", 0xFFFFFFFF),
    "BINUNICODE": b"X" + struct.pack("<I", 0xFFFFFFF0),
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 1 << 60),
    "LONG4": b"\x8b" + struct.pack("<i", 1 << 30),
    "LONG4 negative": b"\x8b" + struct.pack("<i", -5),
    "LONG1": b"\x8a\xff" + b"\x7f" * 255,
    "a text integer": b"L" + b"9" * 100_000 + b"L\n",
    "a long string": b"X" + struct.pack("<I", 100_000) + b"a" * 100_000,
    "FRAME": b"\x95" + struct.pack("<Q", 1 << 60),
    "LONG_BINPUT": b"Nr" + struct.pack("<I", 0xFFFFFFFF) + b"0",
    "an array of claims": (
        global_("numpy.core.numeric", "_frombuffer") + b"(C\x04abcdcnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R"
        b"\x8a\x06\xff\xff\xff\xff\xff\x7fK\x02\x86X\x01\x00\x00\x00CtR"
    ),
    "an array of zeros": (
        global_("numpy.core.numeric", "_frombuffer") + b"(C\x00cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R"
        b"\x8a\x06\xff\xff\xff\xff\xff\x7fK\x00\x86X\x01\x00\x00\x00CtR"
    ),
    "a negative side": (
        global_("numpy.core.numeric", "_frombuffer") + b"(C\x04abcdcnumpy\ndtype\nX\x02\x00\x00\x00u1\x89\x88\x87R"
        b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86X\x01\x00\x00\x00CtR"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HUGE))
def test_a_claimed_length_allocates_nothing(name):
    begin_s = time.process_time()
    with pytest.raises(DoorError):
        read(mark_frame(HUGE[name]))
    assert time.process_time() - begin_s < 0.5


def test_what_stands_where_a_name_belongs_is_not_written_out():
    data = bytes(1 << 20)
    # the same megabyte a hundred times, as the module of a global: as text, four characters a byte
    frame = mark_frame(b"B" + struct.pack("<I", len(data)) + data + b"\x94(" + b"h\x00" * 100 + b"tX\x01\x00\x00\x00a\x93")
    tracemalloc.start()
    try:
        with pytest.raises(DoorError):
            read(frame)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()


SHAPES = {
    "deep lists": b"]" * 5000 + b"a" * 4999,
    "deep tuples": b")" + b"\x85" * 1500,
    "deep dicts": b"".join(b"}X\x01\x00\x00\x00a" for _ in range(600)) + b"N" + b"s" * 600,
    "a doubling tuple": b"N\x94h\x00h\x00\x86\x94h\x01h\x01\x86",
    "a doubling list": b"]\x94" + b"h\x00a" * 1000,
    "a list in itself": b"]\x94h\x00a",
    "many opcodes": b"N0" * MAX_OPCODES,
    "many nones": b"(" + b"N" * MAX_OPCODES + b"t",
    "marks without end": b"(" * 1000,
    "a stack below zero": b"N\x87",
    "a mark taken as a value": b"N(\x86",
    "append to nothing": b"a",
    "items to a list": b"](X\x01\x00\x00\x00aNu",
    "half an item": b"}(X\x01\x00\x00\x00au",
    "a key that is a number": b"}(K\x01Nu",
    "a key that is a list": b"}(]Nu",
    "an unknown memo": b"h\x07",
    "two results": b"NN",
    "nothing": b"",
    "a call of a string": b"X\x01\x00\x00\x00a)R",
    "a state for a dict": b"}}b",
    "an array without its data": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R",
    "a dtype as an argument of itself": b"cnumpy\ndtype\ncnumpy\ndtype\n\x89\x88\x87R",
    "a name that is a list": b"]]\x93",
    "a call of a list": b"])R",
    "a call of a dict with a list": b"}]R",
    "an extension": b"\x82\x01",
    "a persistent id": b"Pfoo\n",
    "an instance": b"(ios\nsystem\n",
    "a new object": b"cnumpy\nndarray\n)\x81",
    "a duplicate": b"N2\x86",
    "a buffer from outside": b"\x97",
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_malformed_or_growing_structure_is_refused(name):
    with pytest.raises(DoorError):
        read(mark_frame(SHAPES[name]))


def test_a_tree_may_be_so_deep_and_no_deeper():
    def nested(depth):
        value = []
        for _ in range(depth - 1):
            value = [value]
        return pickle.dumps(value, protocol=4)

    assert read(nested(MAX_DEPTH)) is not None
    with pytest.raises(DoorError, match="levels deep"):
        read(nested(MAX_DEPTH + 1))


def test_bytes_behind_the_end_and_an_empty_frame_are_refused():
    good = pickle.dumps({"a": 1}, protocol=4)
    with pytest.raises(DoorError, match="behind the end"):
        read(good + b"x")
    for end in range(len(good)):
        with pytest.raises(DoorError):
            read(good[:end])

"""The road of full TensorRT, on a library made by hand: full TensorRT was never installed here.

That its names are those of the real bindings is for `tests/runtime/test_tensorrt_conformance.py` to say.
"""

import json
from types import SimpleNamespace

import pytest

from edgewam.compile import tensorrt_engine
from edgewam.compile.tensorrt_engine import build_engine
from edgewam.core.errors import EdgewamError
from edgewam.runtime.tensorrt_api import Log, TensorRt
from tests.compile.test_tensorrt_layers import inspector_json

DTYPES = SimpleNamespace(**{name: name for name in ("FLOAT", "HALF", "BF16", "FP8", "INT64", "INT32", "INT8", "UINT8", "BOOL")})


class Library:
    """Every class of the module, with what one build asks for."""

    __version__ = "11.4.0.106"
    DataType = DTYPES
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    EngineStat = SimpleNamespace(TOTAL_WEIGHTS_SIZE="weights")

    def __init__(self, creation_flags, opens=True):
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**creation_flags)
        self.opens, self.asked = opens, {}

    def Builder(self, logger):
        return SimpleNamespace(
            create_network=self.create_network,
            create_builder_config=lambda: SimpleNamespace(clear_flag=lambda flag: self.asked.update(cleared=flag)),
            build_serialized_network=lambda network, config: self.asked.update(config=config) or b"plan",
        )

    def create_network(self, flags):
        self.asked["flags"] = flags
        tensor = SimpleNamespace(name="x", dtype="BF16", shape=(2, 3))
        return SimpleNamespace(num_inputs=1, num_outputs=1, get_input=lambda i: tensor, get_output=lambda i: tensor)

    def OnnxParser(self, network, logger):
        return SimpleNamespace(parse_from_file=lambda path: True)

    def Runtime(self, logger):
        inspector = SimpleNamespace(get_engine_information=lambda kind: inspector_json() if kind == "json" else "")
        engine = SimpleNamespace(
            create_engine_inspector=lambda: inspector,
            get_engine_stat=lambda stat: 1234 if stat == "weights" else 0,
            device_memory_size_v2=77,
        )
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if self.opens else None)


def build(monkeypatch, tmp_path, library):
    monkeypatch.setattr(tensorrt_engine, "load", lambda family: TensorRt(family, library, Log(), None))
    return build_engine("stage.onnx", str(tmp_path / "e.engine"), "full", "sm_110", "denoise")


@pytest.mark.parametrize(
    ("flags", "expected"), [({"STRONGLY_TYPED": 1}, 0b10), ({"STRONGLY_TYPED": 1, "EXPLICIT_BATCH": 0}, 0b11)]
)
def test_one_code_for_11_and_for_10_16_which_still_has_a_flag_for_the_batch(flags, expected, monkeypatch, tmp_path):
    library = Library(flags)
    built = json.loads(json.dumps(build(monkeypatch, tmp_path, library)))
    assert library.asked["flags"] == expected
    assert not hasattr(library.asked["config"], "num_compute_capabilities"), "it builds for the GPU that is there"
    assert library.asked["config"].profiling_verbosity == "detailed" and library.asked["cleared"] == "tf32"
    assert (built["library"], built["version"]) == ("tensorrt", "11.4.0.106")
    assert built["inputs"] == [{"name": "x", "dtype": "bfloat16", "shape": [2, 3]}]
    assert (built["weight_bytes"], built["activation_bytes"], built["engine_bytes"]) == (1234, 77, 4)
    assert [row["kind"] for row in built["layers"]] == ["gemm", "kgen", "signal"]


def test_an_engine_that_does_not_open_is_an_error(monkeypatch, tmp_path):
    with pytest.raises(EdgewamError, match="cannot open the engine that it built"):
        build(monkeypatch, tmp_path, Library({"STRONGLY_TYPED": 1}, opens=False))

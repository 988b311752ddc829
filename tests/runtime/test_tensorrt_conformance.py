"""Every name of TensorRT that the source uses exists in TensorRT 10.16, in 11.4 and in TensorRT for RTX 1.7.

Full TensorRT is not on PyPI, but its Python bindings are: they are imported over three empty libraries and asked for their names
(facts/platform.md 1).  Nothing of full TensorRT is executed.
"""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from edgewam.runtime.tensorrt_api import DTYPES, SEVERITIES
from tests.runtime.fake_cuda import FakeCudart
from tests.runtime.fake_tensorrt import module_over
from tests.runtime.tensorrt_names import COMMON, MODULE, ROOT, SOURCES, WORDS, used, used_in

FULL = ("10.16.1.11", "11.4.0.106")
RTX = "1.7.1."
# used in a branch of `family == "rtx"` alone: full TensorRT builds for the device it runs on, and compiles nothing there
ONLY_RTX = {
    (MODULE, "ComputeCapability"), ("IBuilderConfig", "num_compute_capabilities"), ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeConfig", "create_runtime_cache"), ("IRuntimeConfig", "set_runtime_cache"),
}  # fmt: skip
# removed by 11 or never in the other library, so that a use would pass on one and fail on another (facts/platform.md 1)
REMOVED = (
    "config.set_flag(api.module.BuilderFlag.FP16)",
    "flag = api.module.NetworkDefinitionCreationFlag\nflag.EXPLICIT_BATCH",
    "getattr(api.module.NetworkDefinitionCreationFlag, 'EXPLICIT_BATCH')",
    "config.int8_calibrator = None",
    "tensor.set_dynamic_range(-1, 1)",
    "parser.supports_model(data)",
    "self.engine.device_memory_size",
    "api.module.Runtime(log).deserialize_cuda_engine(data).create_execution_context_without_device_memory()",
)
EMPTY = """extern "C" {
#define EMPTY(name) void* name(...) { return nullptr; }
EMPTY(createInferBuilder_INTERNAL) EMPTY(createInferRefitter_INTERNAL) EMPTY(createInferRuntime_INTERNAL)
EMPTY(createNvOnnxParser_INTERNAL) EMPTY(createNvOnnxParserRefitter_INTERNAL) EMPTY(getBuilderPluginRegistry)
EMPTY(getNvOnnxParserVersion) EMPTY(getPluginRegistry) EMPTY(initLibNvInferPlugins)
}
"""
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
# names of the module under "", of every class under its name; members of enums are attributes of theirs
TELL = """import importlib, json, sys
module = importlib.import_module(sys.argv[1])
found = {name: dir(value) for name, value in vars(module).items() if isinstance(value, type)}
print(json.dumps({**found, "": dir(module), "version": module.__version__}))
"""


def told(module, **environment):
    done = subprocess.run(
        [sys.executable, "-c", TELL, module], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def empty_libraries(tmp_path_factory):
    """Folder with the three libraries that the bindings of 10 and 11 are linked with, all their functions empty."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to make the empty libraries with")
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.cpp").write_text(EMPTY)
    for version in FULL:
        for name in LIBRARIES:
            file = f"lib{name}.so.{version.split('.')[0]}"
            command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", folder / file, folder / "empty.cpp"]
            subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module", params=FULL)
def full(request, empty_libraries, pytestconfig, tmp_path_factory):
    """(version, names) of the real bindings of full TensorRT."""
    folder = wheel(request.param, pytestconfig.cache.mkdir("tensorrt_bindings"), tmp_path_factory.mktemp("bindings"))
    names = told("tensorrt_bindings", PYTHONPATH=str(folder), LD_LIBRARY_PATH=str(empty_libraries))
    assert names["version"] == request.param
    return names


def wheel(version, cache, folder):
    """The bindings' wheel for this Python, fetched once and unpacked into `folder`."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = f"tensorrt_cu13_bindings-{version}-*{tag}*.whl"
    if not list(cache.glob(pattern)):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--retries",
            "1",
            "-d",
            cache,
        ]
        done = subprocess.run([*command, f"tensorrt-cu13-bindings=={version}"], capture_output=True, text=True, timeout=240)
        if done.returncode != 0:
            pytest.skip(f"no bindings of TensorRT {version} from the package registry: {done.stderr.strip().splitlines()[-1]}")
    zipfile.ZipFile(next(cache.glob(pattern))).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def rtx():
    """Names of TensorRT for RTX."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    return told("tensorrt_rtx")


def missing(found, names):
    return sorted(f"{owner or 'module'}.{name}" for owner, name in found if name not in names.get(owner, ()))


@pytest.mark.network
def test_full_tensorrt_has_every_name(full):
    found, _ = used_in()
    assert missing(found - ONLY_RTX, full) == []
    assert_dynamic_names(full)


def test_tensorrt_for_rtx_has_every_name(rtx):
    found, _ = used_in()
    assert missing(found, rtx) == []
    assert_dynamic_names(rtx)
    assert rtx["version"].startswith(RTX)


def assert_dynamic_names(names):
    """Names that are put together at run time."""
    assert set(DTYPES.values()) <= set(names["DataType"])
    assert set(SEVERITIES) <= set(names["ILogger"]), "a log line's severity is one of these"


@pytest.mark.network
def test_names_of_one_side_alone_are_really_missing_on_the_other(full):
    """Otherwise ONLY_RTX would hide a mistake."""
    assert len(missing(ONLY_RTX, full)) == len(ONLY_RTX)


@pytest.mark.parametrize("source", REMOVED)
def test_a_removed_name_would_be_found_in_tensorrt_for_rtx(rtx, source):
    found, _ = used(ast.parse(source))
    assert missing(found, rtx)


@pytest.mark.network
@pytest.mark.parametrize("source", REMOVED)
def test_a_removed_name_would_be_found_in_full_tensorrt_11(full, source):
    """10.16 still has them all: such a use would run there and fail after the next update."""
    found, _ = used(ast.parse(source))
    assert bool(missing(found, full)) == full["version"].startswith("11.")


def test_a_name_that_may_be_absent_is_asked_for_with_a_default():
    assert used(ast.parse("getattr(api.module.NetworkDefinitionCreationFlag, 'EXPLICIT_BATCH', None)"))[0] == {
        (MODULE, "NetworkDefinitionCreationFlag")
    }


def test_no_name_escapes_behind_a_word_that_is_not_known(rtx):
    """A new variable for a builder must be called so, or added to WORDS."""
    vocabulary = {name for owner in set(WORDS.values()) for name in rtx[owner] if not name.startswith("_")} - COMMON
    _, other = used_in()
    assert sorted(f"{receiver}.{name}" for receiver, name in other if name in vocabulary) == []
    _, other = used(ast.parse("maker.create_network(0)"))
    assert {name for _, name in other} & vocabulary == {"create_network"}


def test_what_is_read_covers_both_halves_and_all_that_touches_the_library():
    assert {f"{path.parent.name}/{path.name}" for path in SOURCES} >= {"runtime/tensorrt_api.py", "backends/tensorrt.py"}
    found, _ = used_in()
    assert {
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse_from_file"),
        ("IExecutionContext", "execute_async_v3"),
    } <= found
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names if isinstance(node, ast.Import | ast.ImportFrom)} & {
                "tensorrt", "tensorrt_rtx", "tensorrt_bindings",
            }, f"{path} goes past tensorrt_api"  # fmt: skip


def test_the_fake_of_the_other_tests_has_no_name_that_the_library_lacks(rtx):
    module = module_over(FakeCudart())
    ours = {name for name in vars(module) if not name.startswith("__")}
    assert ours <= set(rtx[""])
    for kind in ("DataType", "TensorIOMode", "TensorLocation"):
        assert set(getattr(module, kind).__members__) <= set(rtx[kind])
    run_half = next(path for path in SOURCES if path.parts[-3:] == ("runtime", "backends", "tensorrt.py"))
    needed = {name for owner, name in used_in([run_half])[0] if owner == MODULE}
    assert needed <= ours | {"Builder", "OnnxParser", "NetworkDefinitionCreationFlag"}

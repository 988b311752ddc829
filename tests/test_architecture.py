"""The house rules of docs/architecture.md, proved from the source: arrows point down, imports stay light, nothing drifts."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgewam

ROOT = Path(edgewam.__file__).parent
ROWS = {
    "core": 0,
    "profiles": 1, "robot_bridge": 1,
    "flow": 2, "kernels": 2,
    "models": 3, "data": 3, "runtime": 3,
    "training": 4, "quantize": 4,
    "distill": 5, "compile": 5,
    "recipes": 6, "cli": 6,
}  # fmt: skip
# Packages of one row do not know each other; the CLI drives the recipes, and both drive everything below.
SAME_ROW_ALLOWED = {("cli", "recipes")}
OPTIONAL = {
    "torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "pyarrow", "av", "mujoco", "gymnasium", "gym_aloha",
    "tensorboard", "modelopt", "tensorrt", "tensorrt_rtx", "triton", "cuda", "websockets", "msgpack", "zmq", "cyclonedds",
    "tokenizers", "sentencepiece", "ftfy",
}  # fmt: skip
# Who may import torch (and safetensors, which comes with it in the extra `train`) at the top: packages written in it.
TORCH_ROWS = {"flow", "kernels", "models", "training", "quantize", "distill", "compile"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) > 1 or parts[0] != "__init__":
            yield path, parts


def is_triton_source(parts):
    return parts[:2] == ("kernels", "sources") and parts[-1] != "__init__"


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield node.module


def test_arrows_point_down_only():
    wrong = []
    for path, parts in modules():
        row = ROWS.get(parts[0], 7)  # top-level modules such as __main__ sit above everything
        for name in imports(path):
            target = name.split(".")
            if target[0] != "edgewam" or len(target) < 2 or target[1] == parts[0] or target[1] not in ROWS:
                continue
            allowed = ROWS[target[1]] < row or (parts[0], target[1]) in SAME_ROW_ALLOWED
            if not allowed:
                wrong.append(f"{'/'.join(parts)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_row():
    packages = {info.name for info in pkgutil.iter_modules([str(ROOT)]) if info.ispkg}
    assert packages == set(ROWS)


def test_optional_packages_are_imported_at_the_point_of_use():
    wrong = []
    for path, parts in modules():
        for name in imports(path, top_level_only=True):
            package = name.split(".")[0]
            written_in_torch = parts[0] in TORCH_ROWS or parts[-1] == "eager"
            if is_triton_source(parts) and package == "triton":
                continue
            if package in OPTIONAL and not (package in {"torch", "safetensors"} and written_in_torch):
                wrong.append(f"{'/'.join(parts)} imports {name} at the top")
    assert not wrong, "\n".join(wrong)


def test_triton_sources_are_loaded_and_never_imported():
    """They import Triton at the top, so whoever imported one would need it; `kernels/source.py` loads them, in either form."""
    wrong = [
        f"{'/'.join(parts)} imports {name}"
        for path, parts in modules()
        for name in imports(path)
        if name.startswith("edgewam.kernels.sources") or (is_triton_source(parts) and name.split(".")[0] != "triton")
    ]
    assert not wrong, "\n".join(wrong)
    code = (
        "import importlib, pkgutil, sys, edgewam.kernels as kernels\n"
        "sys.modules['triton'] = None\n"
        "for info in pkgutil.walk_packages(kernels.__path__, 'edgewam.kernels.'):\n"
        "    if not info.name.startswith('edgewam.kernels.sources.'): importlib.import_module(info.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_the_light_packages_touches_nothing_optional_and_no_gpu():
    light = ["edgewam", "edgewam.data"]
    light += [
        f"edgewam.{'.'.join(p for p in parts if p != '__init__')}"
        for _, parts in modules()
        if parts[0] in {"core", "profiles", "robot_bridge", "runtime", "recipes", "cli"} and parts[-1] != "eager"
    ]
    code = (
        f"import importlib, sys\nfor name in {sorted(set(light))!r}: importlib.import_module(name)\n"
        f"bad = sorted({OPTIONAL!r} & {{name.split('.')[0] for name in sys.modules}})\nassert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_all_is_what_is_importable():
    for path, parts in modules():
        if "\n__all__ =" not in path.read_text():
            continue
        name = ".".join(("edgewam", *[p for p in parts if p != "__init__"]))
        module = importlib.import_module(name)
        missing = [item for item in module.__all__ if not hasattr(module, item)]
        assert not missing, f"{name}.__all__ promises {missing}"


@pytest.mark.parametrize("pattern", ["pickle.load", "yaml.load(", "shell=True", "torchvision"])
def test_unsafe_or_forbidden_calls_are_absent(pattern):
    assert not [str(path) for path, _ in modules() if pattern in path.read_text()]


def test_torch_load_is_always_weights_only():
    for path, _ in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"


# folder of robot_bridge -> what of robot_bridge it may know
BRIDGE_ARROWS = {
    "records": {"records"},
    "control": {"control", "records", "robot"},
    "counting": {"counting", "control", "records", "robot"},
}


def test_what_decides_and_counts_in_the_bridge_knows_no_process():
    wrong = []
    for path, parts in modules():
        if parts[0] == "robot_bridge" and parts[1] in BRIDGE_ARROWS:
            known = {name.split(".")[2] for name in imports(path) if name.startswith("edgewam.robot_bridge.")}
            wrong += [f"{'/'.join(parts)} imports {name}" for name in known - BRIDGE_ARROWS[parts[1]]]
    assert not wrong, "\n".join(wrong)

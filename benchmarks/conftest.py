"""What the suites of pytest-benchmark share: the shipped bundle, and its INT8 form, compiled once a run."""

from __future__ import annotations

import pytest

from edgewam.cli._shipped import shipped
from edgewam.runtime.bundle import Bundle

THREADS = 1  # two threads that wait for each other measure the neighbours of a shared machine


@pytest.fixture(scope="session")
def float32() -> Bundle:
    """The shipped bundle."""
    pytest.importorskip("onnxruntime", reason="needs edgewam[onnx]")
    return Bundle.open(shipped("bundle"), threads=THREADS)


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped quantised artifact, compiled for ONNX Runtime."""
    for package, extra in (("torch", "train"), ("onnxruntime", "onnx")):
        pytest.importorskip(package, reason=f"needs edgewam[{extra}]")
    from edgewam.compile.compile import compile_bundle
    from edgewam.recipes.deploy import compile_plan

    out = tmp_path_factory.mktemp("int8") / "bundle"
    compile_bundle(compile_plan(shipped("quantized"), threads=THREADS), out)
    return Bundle.open(out, threads=THREADS)

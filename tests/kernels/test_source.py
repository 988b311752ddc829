"""Triton sources: interpreted and compiled forms in one process, in any order, and Triton is afterwards as it was."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from edgewam.core.errors import PluginError
from edgewam.kernels.program import Program
from edgewam.kernels.source import interpreting, source
from edgewam.kernels.target import INTERPRETER, TARGETS, target_of

triton = pytest.importorskip("triton", reason="needs edgewam[kernels]")

NAME = "tests.kernels.adding"


def interpreted_sums(x):
    y = torch.zeros(len(x))
    source(NAME, interpreted=True).row_sums[(len(x),)](x, y, x.shape[1], BLOCK=16, num_warps=4)
    return y


def compiled_ptx():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "columns": "i32", "BLOCK": "constexpr"}
    kernel, options = source(NAME, interpreted=False).row_sums, Program(NAME, "row_sums", {}).options
    return compile(ASTSource(kernel, signature, {(3,): 64}), target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_interpreted_kernel_calls_tritons_own_functions_and_its_helpers(dtype):
    x = torch.randn(3, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(interpreted_sums(x), 2 * x.float().sum(1), rtol=1e-6, atol=1e-6)


def test_both_forms_live_in_one_process_in_any_order():
    x = torch.ones(2, 20)
    first = interpreted_sums(x)
    assert "sm_90" in compiled_ptx()
    assert torch.equal(interpreted_sums(x), first) and torch.equal(first, torch.full((2,), 40.0))
    assert "sm_90" in compiled_ptx()


def test_triton_is_afterwards_as_it_was():
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    places = (tl, tl.core, tl.standard, tl.math, tl.tensor, tl.dtype)
    interpreted_sums(torch.ones(1, 5))  # names that are added to modules are added now
    before = [dict(vars(place)) for place in places]
    environment = dict(os.environ)
    interpreted_sums(torch.ones(1, 5))
    with pytest.raises(ZeroDivisionError), interpreting():
        assert not isinstance(tl.sum, JITFunction)
        raise ZeroDivisionError
    assert [dict(vars(place)) for place in places] == before
    assert isinstance(tl.sum, JITFunction) and not triton.knobs.runtime.interpret and dict(os.environ) == environment
    assert isinstance(triton.jit(compiled_ptx), JITFunction), "and Inductor's kernels are compiled as ever"


def test_a_source_is_loaded_once_for_each_form():
    assert source(NAME, True) is source(NAME, True) and source(NAME, False) is source(NAME, False)
    assert source(NAME, True) is not source(NAME, False)


def test_an_unknown_source_is_refused():
    with pytest.raises(
        PluginError, match=r"There is no Triton source 'linaer'\. Look into the package edgewam\.kernels\.sources"
    ):
        source("linaer", True)


def test_a_process_that_only_interprets_refuses_to_compile():
    code = (
        "import pytest; from edgewam.kernels.source import source; from edgewam.core.errors import PluginError\n"
        f"with pytest.raises(PluginError, match='TRITON_INTERPRET=1'): source({NAME!r}, False)\n"
        "import torch; y = torch.zeros(1)\n"
        f"source({NAME!r}, True).row_sums[(1,)](torch.ones(1, 5), y, 5, BLOCK=16)\n"
        "assert y.item() == 10"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_the_processor_is_the_interpreter_and_other_devices_are_named():
    assert target_of("cpu") is INTERPRETER and INTERPRETER.has_fp8_products and not INTERPRETER.has_dependent_launch
    with pytest.raises(PluginError, match=r"no kernels for the device 'xpu'\. Available: cpu \(interpreted\), cuda"):
        target_of("xpu")
    if not torch.cuda.is_available():
        with pytest.raises(PluginError, match="there is no 'cuda:3'"):
            target_of("cuda:3")
    assert [TARGETS[sm].has_dependent_launch for sm in (89, 90, 110, 120)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("triton", "numpy", "works"), [("3.6.0", "2.4.1", False), ("3.6.0", "2.3.5", True), ("3.7.0", "2.4.1", True)]
)
def test_versions_that_cannot_interpret_together_are_refused(monkeypatch, triton, numpy, works):
    monkeypatch.setattr("triton.__version__", triton)
    monkeypatch.setattr("numpy.__version__", numpy)
    with contextlib.nullcontext() if works else pytest.raises(PluginError, match=r"pip install 'triton>=3.7', or use --device"):
        target_of("cpu")


def test_without_triton_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(PluginError, match=r"pip install 'edgewam\[kernels\]', or compile for another backend"):
        target_of("cpu")

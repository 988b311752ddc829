"""Candidates are compiled at once before they are tried: a launch afterwards compiles nothing, in Triton and in CUDA C++."""

import pytest

pytest.importorskip("triton", reason="needs triton: it compiles kernels")

from edgewam.kernels import cuda_source
from edgewam.kernels.bound import kernel_of
from edgewam.kernels.launch import Launch
from edgewam.kernels.source import source
from edgewam.kernels.target import TARGETS
from edgewam.kernels.trial import Operand, Trial
from tests.kernels.cases import CASES
from tests.kernels.full_size import CASES as FULL

CARD = TARGETS[90]
FIRST = {case.call.op: case for case in reversed(CASES) if case.name.endswith("f16")}


class Driver:
    """Of a card that is not there, as far as Triton asks before it compiles."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CARD.sm, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A card, an empty cache of Triton's, and sources that nothing was compiled of."""
    from triton.runtime import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Driver())
    source.cache_clear()
    yield tmp_path
    source.cache_clear()


@pytest.mark.parametrize("op", sorted(FIRST))
def test_a_launch_compiles_nothing_that_was_compiled_ahead(cache, op):
    case = FIRST[op]
    trial = Trial(case.call, {role: Operand.of(tensor) for role, tensor in case.operands.items()}, CARD, "cpu")
    variants = [v for v in kernel_of(op).variants(trial.call, trial.sets[0], CARD) if v.source == "triton"][:2]
    trial.compile_ahead(variants)
    ahead = sorted(cache.iterdir())
    for variant in variants:
        for launch in kernel_of(op).launches(trial.call, trial.sets[0], variant, CARD):
            launch.compile()
    assert ahead and sorted(cache.iterdir()) == ahead, "Triton found all of it in its cache"


def test_cuda_sources_are_compiled_once(monkeypatch):
    built = []
    monkeypatch.setattr(cuda_source, "_built", lambda text, name, sm: built.append((text, sm)) or (b"", ""))
    case = FULL["down fp8"]
    variant = next(v for v in kernel_of("linear").variants(case.call, case.meta(), CARD) if v.source == "cuda")
    (launch,) = kernel_of("linear").launches(case.call, case.meta(), variant, CARD)
    launch.compile()
    assert built == [(cuda_source.text_of(launch.program()), 90)]


def test_what_cannot_be_compiled_waits_for_its_trial(cache, monkeypatch):
    def compile(self):
        raise RuntimeError("ptxas says no")

    monkeypatch.setattr(Launch, "compile", compile)
    case = FIRST["text_attention"]
    trial = Trial(case.call, {role: Operand.of(tensor) for role, tensor in case.operands.items()}, CARD, "cpu")
    trial.compile_ahead(kernel_of("text_attention").variants(trial.call, trial.sets[0], CARD))
    assert not list(cache.iterdir())

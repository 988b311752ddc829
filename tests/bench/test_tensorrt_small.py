"""The TensorRT job: left out where nothing can build or run, for the card that is here, and honest about what it did."""

import re
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs the extra train")

import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import tensorrt_small, tensorrt_target
from benchmarks.gpu.jobs import find_jobs
from benchmarks.gpu.runner import run_jobs
from benchmarks.gpu.worker import work
from edgewam.compile import tensorrt_targets
from edgewam.compile.tensorrt_targets import find_target
from edgewam.core.errors import EdgewamError, GateError
from edgewam.quantize.layers import quantized_layers
from edgewam.runtime.engine import Support

(JOB,) = find_jobs(["tensorrt_small"])


@pytest.fixture
def card(monkeypatch):
    """Pretends a GPU of a name and a compute capability, with these libraries."""

    def pretend(name, sm, libraries):
        monkeypatch.setattr(tensorrt_target, "read_gpu", lambda: {"name": name})
        monkeypatch.setattr(tensorrt_target, "gpu_support", lambda: Support(True))
        monkeypatch.setattr(tensorrt_target, "is_installed", lambda family: family in libraries)
        for module in (tensorrt_target, tensorrt_targets):
            monkeypatch.setattr(module, "load_cudart", lambda: None)
            monkeypatch.setattr(module, "read_device", lambda cudart, index: SimpleNamespace(name=name, sm=sm))
        modules = {"tensorrt_rtx": "rtx", "tensorrt": "full"}
        found = SimpleNamespace(find_spec=lambda module: True if modules[module] in libraries else None)
        monkeypatch.setattr(tensorrt_targets, "importlib", SimpleNamespace(util=found))

    return pretend


@pytest.mark.parametrize(
    ("name", "sm", "library", "target"),
    [
        ("NVIDIA GeForce RTX 5090 D", "sm_120", "rtx", "rtx-5090d"),
        ("NVIDIA GeForce RTX 4080", "sm_89", "rtx", "rtx-4090"),
        ("NVIDIA Thor", "sm_110", "full", "thor"),
    ],
)
def test_the_target_is_the_cards_own_file_or_one_of_equal_capability(card, name, sm, library, target):
    card(name, sm, [library])
    assert JOB.lacks("cuda") == "" and tensorrt_target.target_here("cuda").name == target


@pytest.mark.parametrize(
    ("name", "sm", "libraries", "reason"),
    [
        ("NVIDIA H100 80GB HBM3", "sm_90", [], "TensorRT is not installed"),
        ("NVIDIA H100 80GB HBM3", "sm_90", ["rtx"], "needs the package 'tensorrt', which is not installed"),
        ("NVIDIA GeForce RTX 5090", "sm_120", ["full"], "needs the package 'tensorrt_rtx'"),
        ("Some Card", "sm_77", ["rtx"], "No device file is for 'Some Card' \\(sm_77\\)"),
    ],
)
def test_it_is_skipped_with_the_reason_and_the_call_is_done(card, name, sm, libraries, reason, tmp_path, monkeypatch, capsys):
    card(name, sm, libraries)
    (outcome,) = run_jobs([JOB], "cuda", name, tmp_path, [], 600.0, say=print)
    assert outcome.record is None and not outcome.can_run and not list(tmp_path.iterdir())
    assert re.search(reason, outcome.note) and "skipped, not for this machine" in capsys.readouterr().out
    assert command._status([outcome]) == 0
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert command.main(["--dry-run", "--only", "tensorrt_small", "--out", str(tmp_path)]) == 0
    assert "skipped: " in capsys.readouterr().out


def test_fp8_is_what_the_named_plan_says_with_scales_for_every_step():
    plan = tensorrt_small.planned("fp8", "rtx-5090", layer_groups=2)
    packed = {name: quantized_layers(stage) for name, stage in plan.stages.items()}
    assert {name for name, layers in packed.items() if layers} == {"denoise", "router", "planner_0_2", "planner_2_4"}
    assert all(layer.kind.name == "fp8" for layers in packed.values() for layer in layers.values())
    rows = plan.programs.constants["scale_rows"]
    assert rows.shape == (2, len(packed["denoise"])) and (rows == tensorrt_small.INPUT_SCALE).all()
    assert plan.config["precision"] == "fp8+bf16" and plan.build_options.target == "rtx-5090"


def test_a_bundle_that_fails_does_not_cost_the_other_one(monkeypatch, tmp_path, capsys):
    tried = []

    def bundle(job, device, target, precision, emit):
        tried.append(precision)
        if precision == "bf16":
            raise GateError("off by 0.5")

    monkeypatch.setattr(tensorrt_small, "target_here", lambda device: find_target("rtx-5090"))
    monkeypatch.setattr(tensorrt_small, "_bundle", bundle)
    with pytest.raises(EdgewamError, match=r"bf16: off by 0\.5"):
        work(JOB, "cpu", tmp_path / "sections.json")
    assert tried == ["bf16", "fp8"]


def test_a_card_without_fp8_has_a_section_that_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tensorrt_small, "target_here", lambda device: find_target("orin"))
    monkeypatch.setattr(tensorrt_small, "compile_bundle", lambda *_: pytest.fail("nothing to build"))
    (section,) = work(JOB.small(), "cpu", tmp_path / "sections.json").values()
    assert section.figures == {"refused": "'orin' (sm_87) has no fp8 units"}


def test_figures_of_a_run_are_those_of_the_worst_program():
    programs = {"act": {"relative": 0.01}, "plan": {"relative": 0.02}}
    manifest = SimpleNamespace(measured={"programs": programs, "graphs": {"act": "bitwise", "plan": "no room"}})
    assert tensorrt_small.run_figures(manifest, ("act",)) == {
        "graph_act": "bitwise", "graph_plan": "no room", "graphs_opened": "act", "off_eager": 0.02, "off_eager_in": "plan",
    }  # fmt: skip


torch.set_num_threads(1)

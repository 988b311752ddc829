"""The parts of the jobs that only a GPU reaches, played through with replays that call again and a CUDA that is pretended."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import capture_checks, policy, program_timing
from benchmarks.gpu.jobs import find_jobs
from benchmarks.gpu.steps import GATES
from benchmarks.gpu.worker import work
from edgewam.runtime.memory import CaptureError
from edgewam.runtime.replay import HALF_REPLAY_TOLERANCE
from edgewam.runtime.torch_memory import TorchMemory

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def forget():
    policy.forget_policy()  # another file's tests may have left one without graphs
    yield
    policy.forget_policy()


@pytest.fixture
def replays(monkeypatch):
    sizes = []

    def capture(self, calls, stream):
        sizes.append(len(calls := list(calls)))
        return lambda: [call() for call in calls]

    monkeypatch.setattr(TorchMemory, "capture", capture)
    monkeypatch.setattr(program_timing, "has_graphs", lambda memory: True)
    return sizes


def play(name, tmp_path):
    (job,) = find_jobs([name])
    return work(job.small(), "cpu", tmp_path / "sections.json")


def test_steps_are_graphs_with_their_gates(tmp_path, replays, capsys):
    sections = play("steps", tmp_path)
    assert list(sections) == ["chunk_2", "chunk_1", "prefill"]
    for name, section in sections.items():
        assert section.figures["graph"] == "bitwise" and section.figures["graph_within_product_limit"] is True
        assert ("gate_passed" in section.figures) == (name in GATES)
    chunk, prefill = sections["chunk_2"].figures, sections["prefill"].figures
    assert (chunk["gate_x_floor"], prefill["gate_x_floor"]) == (4, 3)
    assert chunk["gate_passed"] == (chunk["x_floor"] <= 4) and prefill["gate_passed"] == (prefill["x_floor"] <= 3)


def test_a_graph_beyond_the_products_limit_is_kept_and_marked():
    asked = []

    def capture(program, inputs, one_graph, tolerance=None):
        asked.append(tolerance)
        if tolerance is None and program == "off":
            raise CaptureError("the graph's result is off by 0.03")
        return "bitwise" if program == "act" else "replay within 0.03 of the maximum"

    pipeline = SimpleNamespace(memory=SimpleNamespace(on_gpu=True), capture=capture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_timing, "has_graphs", lambda memory: True)
        assert program_timing.capture(pipeline, "act", {}) == {"graph": "bitwise", "graph_within_product_limit": True}
        assert asked == [None]
        assert program_timing.capture(pipeline, "off", {})["graph_within_product_limit"] is False
        assert asked[1:] == [None, program_timing.SAME_REPLAY] and program_timing.SAME_REPLAY > HALF_REPLAY_TOLERANCE


def test_modes_differ_in_graphs_of_the_refresh(tmp_path, replays, capsys):
    sections = play("prefill_modes", tmp_path)
    captured = {name: section.figures.get("graph_plan") for name, section in sections.items()}
    assert captured == {"eager": None, "compile": None, "one_graph": "bitwise", "groups": "bitwise"}
    assert all(section.figures["graph_act"] == "bitwise" and section.contract.concurrent_refresh for section in sections.values())
    assert replays.count(1) >= 2 * 4  # both buffers: image encoder and three groups of layers, each a graph of its own


def test_the_load_runs_on_graphs(tmp_path, replays, capsys):
    sections = play("under_load", tmp_path)
    assert list(sections) == ["idle", "load", "saturated"] and sections["load"].figures["graph"] == "bitwise"
    assert [section.contract.concurrent_refresh for section in sections.values()] == [False, True, True]
    assert sections["load"].timings["L_chunk"].n == 6 and sections["load"].timings["refresh"].n >= 1


class Cuda:
    """What `capture_checks` asks of torch.cuda; `grow` allocations per look."""

    def __init__(self, monkeypatch, grow=0):
        self.mode, self.allocated, self.grow = "default", 5, grow
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        monkeypatch.setattr(torch.cuda, "memory_stats", self.stats)

    def stats(self):
        self.allocated += self.grow
        return {"allocation.all.allocated": self.allocated}


def watched(start=lambda program, inputs: None):
    pipeline = SimpleNamespace(run=lambda *_: None, start=start, finish=lambda program: None)
    return capture_checks._watched(pipeline, "act", {}, 3, SimpleNamespace(device="cuda"))


def test_allocations_of_a_replay_fail_the_check(monkeypatch):
    Cuda(monkeypatch)
    timing, allocations = watched()
    assert allocations == 0 and timing.n == 3
    Cuda(monkeypatch, grow=2)
    with pytest.raises(AssertionError, match="allocated 2 times"):
        watched()


def test_waiting_in_start_fails_the_check_and_the_watch_ends(monkeypatch):
    cuda = Cuda(monkeypatch)

    def start(program, inputs):
        assert cuda.mode == "error"
        raise RuntimeError("called a synchronizing operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        watched(start)
    assert cuda.mode == "default"

"""The kernel jobs find what is wrong, judge by the gates of the issue, and come first within eight minutes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("triton", reason="needs the extra kernels")

import torch

from benchmarks.gpu import fused_small, fused_steps, kernel_bandwidth, kernel_checks, policy, program_timing
from benchmarks.gpu.fused_policy import fused_policy
from benchmarks.gpu.fused_under_load import gated
from benchmarks.gpu.jobs import JOBS, find_jobs
from benchmarks.gpu.kernel_choices import Tuner
from benchmarks.gpu.kernel_recipes import drawn, lowered_stages, meta_stages, operands
from benchmarks.gpu.random_policy import TINY_LAYERS
from benchmarks.gpu.worker import work
from benchmarks.results import Section
from edgewam.kernels.bound import bind_call
from edgewam.kernels.choices import Choices
from edgewam.kernels.target import INTERPRETER, TARGETS
from edgewam.kernels.variant import Variant
from edgewam.profiles.measure import Timing
from edgewam.runtime.torch_memory import TorchMemory
from tests.bench.fake_jobs.good import section

torch.set_num_threads(1)
FIRST = ("kernel_checks", "kernel_bandwidth", "fused_steps", "fused_under_load", "fused_small")


@pytest.fixture(scope="module")
def state():
    (stage,) = lowered_stages({"state": meta_stages("tiny", torch.float32)["state"]})[0].values()
    return stage


def test_the_kernel_jobs_come_first_in_one_process_and_take_eight_minutes():
    assert tuple(job.name for job in JOBS[: len(FIRST)]) == FIRST
    assert [job.name for job in JOBS if job.process == "fused"] == [*FIRST, "vae_profile"]
    assert sum(job.expected_s for job in JOBS[: len(FIRST)]) <= 480


def test_a_wrong_kernel_fails_the_job_and_the_others_are_recorded(monkeypatch, tmp_path, capsys):
    def bind(call, given, target, choices):
        bound = bind_call(call, given, target, choices)
        if call.op != "state_write":
            return bound

        def wrong():
            bound.run()
            given["y"].mul_(1.1)

        return replace(bound, run=wrong)

    monkeypatch.setattr(kernel_checks, "bind_call", bind)
    (job,) = find_jobs(["kernel_checks"])
    job = replace(job.small(), params={**job.small().params, "formats": {"state": ["bf16"]}})
    with pytest.raises(kernel_checks.WrongKernelError, match=r"state bf16 state_write is off by 0\.1, more than 1e-05"):
        work(job, "cpu", tmp_path / "sections.json")
    text = (tmp_path / "sections.json").read_text()
    assert '"within_limits": false' in text and "linear_" in text


def test_a_kernel_that_cannot_run_is_a_finding_and_one_that_breaks_is_an_error(monkeypatch, state):
    (call,) = (call for call in state.ops if call.op == "state_write")
    given = operands(call, drawn(state, "cpu"))
    monkeypatch.setattr(kernel_checks, "bind_call", lambda *_: SimpleNamespace(why="the last axis has a stride"))
    assert kernel_checks.check(call, given, INTERPRETER, Choices.defaults(INTERPRETER)) == "the last axis has a stride"

    def breaks(*_):
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(kernel_checks, "bind_call", breaks)
    section, wrong = kernel_checks._stage(state, "bf16", INTERPRETER, "cpu")
    assert len(wrong) == section.figures["checks"] and not section.figures["within_limits"]
    assert section.figures["state_write"] == "failed: RuntimeError: illegal memory access"


def test_products_of_a_step_are_checked_in_both_languages():
    from tests.kernels.full_size import CASES

    case, planner = CASES["down fp8"], CASES["planner down fp8"]
    found = kernel_checks.by_source(case.call, case.meta(), TARGETS[90])
    assert [(name, *(v.source for v in choices.by_key.values())) for name, choices in found.items()] == [
        ("", "triton"), (" cuda", "cuda"),
    ]  # fmt: skip
    assert list(kernel_checks.by_source(planner.call, planner.meta(), TARGETS[90])) == [""]


def test_what_is_off_is_relative_and_a_nan_is_beyond_every_limit():
    ones = torch.ones(4)
    assert kernel_checks.relative_off(1.1 * ones, ones) == pytest.approx(0.1)
    assert not kernel_checks.relative_off(torch.full((4,), torch.nan), ones) <= 1.0


def test_a_share_is_bytes_over_time_over_the_copy_of_this_machine(monkeypatch):
    monkeypatch.setattr(
        kernel_bandwidth, "measured_device", lambda _: SimpleNamespace(bandwidth_gb_s=SimpleNamespace(value=2000.0))
    )
    found = kernel_bandwidth.shares(10**9, 30, Timing.from_samples([1.0]), "cuda")
    assert found["bandwidth_gb_s"] == pytest.approx(1000.0) and found["share"] == pytest.approx(0.5)
    assert found["us_per_call"] == pytest.approx(1e3 / 30)


def test_names_of_kinds_stay_apart():
    assert kernel_bandwidth.numbered("linear", ["linear", "linear 2"]) == "linear 3"


def test_tuning_stops_at_its_time_and_never_repeats_itself(monkeypatch, state):
    asked = []

    def tune(recipe, specs, target, device, limit_s):
        asked.append((len(recipe.calls), set(state.weights) <= set(specs), limit_s))
        keys = list(kernel_checks.distinct(state.with_calls(recipe.calls)))
        return replace(Choices.defaults(target), by_key=dict.fromkeys(keys[:-1], Variant(16, 64, 64)))

    monkeypatch.setattr("benchmarks.gpu.kernel_choices.tune", tune)
    tuner, kinds = Tuner(TARGETS[90]), len(kernel_checks.distinct(state))
    tuner.tune(state, 50.0)
    assert asked == [(kinds, True, 50.0)] and tuner.untuned(state) == 1 and len(tuner.choices().by_key) == kinds - 1
    tuner.tune(state, 50.0)
    assert asked[1][0] == 1 and asked[1][2] < 50.0  # only what is new, in what is left of the time
    tuner.spent_s = 50.0
    tuner.tune(state, 50.0)
    assert len(asked) == 2


@pytest.fixture
def replays(monkeypatch):
    """Graphs that replay by calling again, so that the code for a device with graphs runs here."""

    def capture(self, calls, stream):
        calls = list(calls)
        return lambda: [call() for call in calls]

    policy.forget_policy()
    monkeypatch.setattr(TorchMemory, "capture", capture)
    monkeypatch.setattr(program_timing, "has_graphs", lambda memory: True)
    yield
    policy.forget_policy()


def test_the_whole_policy_runs_in_every_format_as_graphs(replays, tmp_path, capsys):
    (job,) = find_jobs(["fused_steps"])
    sections = work(job.small(), "cpu", tmp_path / "sections.json")
    assert list(sections) == [
        "upstream_eager_1", "bf16_chunk_1", "bf16_prefill", "bf16_cosine", "fp8_chunk_1", "fp8_prefill", "fp8_cosine",
        "inductor_chunk_1",
    ]  # fmt: skip
    chunk, fused = sections["bf16_chunk_1"], fused_policy(policy.shared_policy(job.small(), "cpu"), job.small().params)
    plain, packed = (fused.declared(fused.stages(format))["denoise"].cost for format in ("bf16", "fp8"))
    assert plain == fused.policy.stages()["denoise"].cost and packed.weight_bytes < 0.3 * plain.weight_bytes  # float32 before
    assert chunk.figures["graph"] == "bitwise" and chunk.figures["not_lowered_image_encoder"] == "it is made of convolutions"
    assert chunk.figures["us_per_layer_denoise"] == pytest.approx(chunk.timings["denoise"].p50_ms * 1e3 / TINY_LAYERS)
    ratio = sections["upstream_eager_1"].timings["L_chunk"].p50_ms / chunk.timings["L_chunk"].p50_ms
    assert chunk.figures["release_at_1_steps_over_this"] == pytest.approx(ratio)
    assert sections["bf16_cosine"].figures["cosine_min"] > 1 - 1e-6
    assert 0.9 < sections["fp8_cosine"].figures["cosine_min"] < 1 - 1e-6  # rounded to three bits of mantissa, on random weights
    turns = sections["inductor_chunk_1"]
    assert turns.figures["fused_is_faster_by"] == turns.timings["inductor"].p50_ms / turns.timings["fused"].p50_ms


def with_figures(p50_ms, x_floor, **more):
    return Section(section().contract, {"x_floor": x_floor, **more}, {"L_chunk": Timing.from_samples([p50_ms])})


@pytest.mark.parametrize(("p50_ms", "x_floor", "passed"), [(3.4, 1.9, True), (3.6, 1.9, False), (3.4, 2.1, False)])
def test_a_chunk_meets_both_gates_or_none(p50_ms, x_floor, passed):
    figures = fused_steps.gate_figures("bf16", 2, with_figures(p50_ms, x_floor))
    assert figures == {"gate_ms": 3.5, "gate_x_floor": 2.0, "gate_passed": passed}
    assert fused_steps.gate_figures("bf16", 10, with_figures(p50_ms, x_floor)) == {}
    assert fused_steps.gate_figures("int8", 2, with_figures(p50_ms, x_floor)) == {}


@pytest.mark.parametrize(("p99_ms", "late", "passed"), [(3.8, 0, True), (4.0, 0, False), (3.8, 1, False)])
def test_the_load_is_judged_by_its_tail_and_by_late_refreshes(p99_ms, late, passed):
    seen = with_figures(p99_ms, 1.0, refreshes_over_limit=late, refreshes_left_out=0)
    assert gated(seen, idle_ms=3.0).figures["gate_passed"] is passed


def test_frames_and_states_are_those_of_the_shipped_student():
    scenes, origin = fused_small.scenes_of({"frames": 2})
    assert "synthetic" in origin and len(scenes) == 2
    assert scenes[0].canvas.dtype == np.uint8 and scenes[0].canvas.shape[2] == 3 and scenes[0].state.shape == (14,)
    assert not np.array_equal(scenes[0].state, scenes[1].state)


def test_what_is_known_is_not_computed_again():
    calls = []
    look = fused_small.remembered(lambda scene, noise: calls.append(1) or noise)
    scene, noise = object(), np.zeros(3, np.float32)
    assert look(scene, noise) is look(scene, noise) and look(scene, noise + 1) is not noise and len(calls) == 2


def test_a_chain_of_codes_stays_a_number():
    """Codes of size one would grow what they multiply by 32 a product, and infinite inputs are not what is timed."""
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randn(1024, 1024, generator=generator).to(torch.float8_e4m3fn) for _ in range(4)]
    weights = [kernel_bandwidth.steady(code) for code in codes]
    assert all(weight.dtype == torch.float8_e4m3fn for weight in weights)
    h = torch.randn(16, 1024, generator=generator)
    for weight in weights:
        h = h @ weight.float().t()
    assert 0.5 < h.std() < 2
    plain = torch.randn(4, 4).bfloat16()
    assert kernel_bandwidth.steady(plain) is plain

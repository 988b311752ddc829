"""The rungs compute the same chunk, their floors are those of what ran, and one that fails does not take the others with it."""

import numpy as np
import pytest
import torch

from benchmarks.gpu import ladder, policy, program_timing
from benchmarks.gpu.floors import counted, part_floor, program_floor
from benchmarks.gpu.hoisted import HoistedEager
from benchmarks.gpu.jobs import find_jobs
from benchmarks.gpu.rates import measured_device
from benchmarks.gpu.upstream import UpstreamEager
from benchmarks.gpu.worker import work
from edgewam.core.observation import Normalizer
from edgewam.models import aha_wam
from edgewam.models.wan_vae_image import image_encoder
from edgewam.profiles.device import load_device
from edgewam.runtime.memory import CaptureError
from edgewam.runtime.torch_memory import TorchMemory
from tests.models import aha_wam_golden as golden

torch.set_num_threads(1)
FLOAT32_PATH = 1e-4  # relative RMS of a chunk between the release and our rewritten stages in float32; 3e-6 seen


def small_job(name, **params):
    (job,) = find_jobs([name])
    job = job.small()
    return type(job)(**{**vars(job), "params": {**job.params, "dtype": "float32", **params}})


@pytest.fixture
def fresh():
    policy.forget_policy()
    yield
    policy.forget_policy()


@pytest.fixture
def replays(monkeypatch):
    """Graphs that replay by calling again, so that the code for a device with graphs runs here."""
    made = []

    def capture(self, calls, stream):
        calls = list(calls)
        made.append(calls)
        return lambda: [call() for call in calls]

    monkeypatch.setattr(TorchMemory, "capture", capture)
    monkeypatch.setattr(program_timing, "has_graphs", lambda memory: True)
    return made


def test_every_rung_computes_the_chunk_of_the_release(tmp_path, capsys, fresh, replays):
    sections = work(small_job("ladder"), "cpu", tmp_path / "sections.json")
    assert list(sections) == [
        "eager_chunk_2", "graph_chunk_2", "eager_prefill", "memory_context_chunk_2", "memory_context_prefill", "stages",
        "prefill_compile_prefill", "hot_path_chunk_2", "vae_chunk_2", "vae_prefill",
    ]  # fmt: skip
    off = {name: section.figures["off_eager"] for name, section in sections.items() if "off_eager" in section.figures}
    assert set(off) == {"graph_chunk_2", "memory_context_chunk_2", "hot_path_chunk_2", "vae_chunk_2"}
    assert all(error < FLOAT32_PATH for error in off.values()), off
    assert sections["vae_chunk_2"].figures["graph"] == "bitwise" == sections["vae_prefill"].figures["graph"] and replays
    for name, section in sections.items():
        if name != "stages":
            assert section.figures["x_floor"] == next(iter(section.timings.values())).p50_ms / section.figures["floor_ms"]
            assert section.contract.stages and section.contract.host_copies
    assert sections["eager_chunk_2"].contract.stages == ("vae", "observation", "editor", "words", "denoise")
    assert sections["vae_chunk_2"].contract.stages == ("image_encoder", "router", "state", "begin", "denoise", "finish")
    assert set(sections["vae_chunk_2"].contract.stages) < set(sections["vae_chunk_2"].timings)  # each stage alone, too


def test_a_rung_that_fails_is_named_and_the_others_are_recorded(tmp_path, capsys, fresh, replays, monkeypatch):
    def refuse(self, calls, stream):
        raise CaptureError("no such luck")

    monkeypatch.setattr(TorchMemory, "capture", refuse)
    path = tmp_path / "sections.json"
    with pytest.raises(ladder.RungError, match=r"hot_path: .*no such luck; vae: "):
        work(small_job("ladder"), "cpu", path)
    assert "memory_context_chunk_2" in path.read_text() and "vae_chunk_2" not in path.read_text()


def test_wrong_actions_fail_their_rung():
    reference = np.ones((4, 3), np.float32)
    assert program_timing.relative(1.1 * reference, reference) == pytest.approx(0.1)
    with pytest.raises(AssertionError, match="not numbers"):
        program_timing.relative(np.full((4, 3), np.nan, np.float32), reference)
    with pytest.raises(AssertionError, match="or nothing"):
        program_timing.relative(np.zeros((4, 3), np.float32), reference)


def test_holding_text_and_memory_back_changes_no_chunk():
    refreshes, samples = golden.arrays("prefill_memory"), golden.arrays("sampler_streaming")
    text, config = refreshes["text.context"], golden.config()
    plain, hoisted = (
        made(golden.model(), golden.read_vae(), *more) for made, more in ((UpstreamEager, ()), (HoistedEager, (text,)))
    )
    image, proprio = samples["chunk_obs_images_u8"][0], samples["chunk_proprio"][:1]
    noise = samples["start_noise_full_horizon"][:, : config.chunk_size]
    for number in range(config.memory_slots + 3):  # the ring goes round
        for each in (plain, hoisted):
            each.refresh(refreshes["refresh0.image_u8"][0], text, number)
    chunks = [each.act(image, proprio, text, noise, 0, 2) for each in (plain, hoisted)]
    torch.testing.assert_close(*chunks, atol=golden.SAMPLER_ATOL, rtol=0)


def test_counting_sees_weights_once_and_kept_tensors_per_part():
    layer, kept = torch.nn.Linear(8, 16, bias=False), torch.ones(16, 4)

    def parts(mark):
        for _ in range(2):
            x = layer(torch.ones(3, 8))
            mark("linear")
        x @ kept.t().t()
        mark("kept")

    costs = counted(parts, layer, [kept])
    assert (costs["linear"].weight_bytes, costs["linear"].flops) == (4 * 8 * 16, 2 * 3 * 8 * 16)
    assert (costs["kept"].weight_bytes, costs["kept"].flops) == (4 * 16 * 4, 2 * 3 * 16 * 4)
    h200 = load_device("h200:lent")
    assert part_floor({"denoise": costs["linear"]}, h200, 10).total_ms == pytest.approx(
        10 * part_floor({"denoise": costs["linear"]}, h200).total_ms
    )


def test_the_floor_of_a_program_is_the_sum_over_its_calls():
    h200, steps = load_device("h200:lent"), 10
    stages = golden_stages()
    program = aha_wam.programs(golden.model(), steps).programs["act"]
    names = ["image_encoder", "router", "state", "begin", "finish", *["denoise"] * steps]

    def least(cost):
        seconds = (
            (cost.weight_bytes + cost.io_bytes) / h200.bandwidth_gb_s.value / 1e9,
            cost.flops / h200.peak_tflops["bf16"].value / 1e12,
        )
        return 1e3 * max(seconds)

    assert program_floor(program, stages, h200).total_ms == pytest.approx(sum(least(stages[name].cost) for name in names))


def golden_stages():
    config, unit = golden.config(), [Normalizer(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (6, 5)]
    assert (config.proprio_dim, config.action_dim) == (6, 5)
    return aha_wam.stages(golden.model(), image_encoder(golden.read_vae()), *unit)


def test_rates_are_measured_once_and_are_those_of_this_machine(monkeypatch):
    device = measured_device("cpu")
    assert device is measured_device("cpu") and device.bandwidth_gb_s.value > 0 and device.peak_tflops["bf16"].value > 0
    assert "measured in this run" in device.bandwidth_gb_s.source


def test_no_stage_is_compiled_twice(tmp_path, capsys, fresh):
    # at full size each compilation costs a minute of a lent machine
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        # one group: several share their code, and Dynamo calls a second module of the same code a recompilation
        for job in (small_job("steps", steps=[10, 2], n=1, layer_groups=1), small_job("capture_checks", n=1, layer_groups=1)):
            assert work(job, "cpu", tmp_path / f"{job.name}.json")
        pipeline = policy.shared_policy(job, "cpu").pipeline(4, released_image=True, eager=("router",), overlap=True)
    assert np.isfinite(pipeline.state("context")).all()

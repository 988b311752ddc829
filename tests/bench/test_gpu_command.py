"""`make gpu` without a GPU: lists and plans, refuses to measure, and every job's code runs at toy size on the processor."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.floors import HOISTED_CHUNK, RELEASED_CHUNK, RELEASED_PREFILL, measured_device
from benchmarks.gpu.jobs import JOBS, find_jobs
from benchmarks.gpu.worker import work
from benchmarks.results import ROOT, Record, Section, write_record
from edgewam.core.errors import EdgewamError
from edgewam.profiles.device import load_device
from edgewam.profiles.roofline import roofline
from tests.bench.fake_jobs.good import section


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "read_gpu", dict)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.delenv("OUT", raising=False)


@pytest.mark.parametrize("option", ["--list", "--dry-run"])
def test_list_and_dry_run_need_no_gpu(option, no_gpu, capsys):
    assert command.main([option]) == 0
    out = capsys.readouterr().out
    assert "No GPU here" in out and all(job.name in out for job in JOBS)


def test_a_plain_run_without_a_gpu_says_so(no_gpu, capsys):
    assert command.main([]) == 2
    assert "nvidia-smi shows none" in capsys.readouterr().err


def test_the_command_itself_works_from_the_shell():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--list"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "upstream_eager" in done.stdout


def test_listing_imports_no_torch():
    code = "import sys; from benchmarks.gpu.__main__ import main; main(['--list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_unknown_jobs_are_refused_with_the_known_ones(no_gpu, capsys):
    assert command.main(["--list", "--only", "upstream"]) == 2
    assert "Available: copy_bandwidth" in capsys.readouterr().err


def test_the_plan_shows_recorded_jobs_and_the_budget(no_gpu, tmp_path, capsys):
    first = JOBS[0]
    record = Record(first.name, first.key(), "ok", "NVIDIA H200", "2026-01-01T00:00:00Z", 1.0, {}, {"a": section()})
    write_record(tmp_path / "results" / "nvidia-h200", record)
    assert command.main(["--dry-run", "--budget-s", "30"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "recorded 2026-01-01T00:00:00Z on NVIDIA H200" in lines[first.name]
    assert "next call (budget)" in lines["upstream_eager"]


def test_all_jobs_fit_one_call_and_its_files():
    assert sum(job.expected_s for job in JOBS) <= command.BUDGET_S <= 600
    assert len(JOBS) <= 8  # as many files come back from a lent machine
    assert all(job.expected_s < job.limit_s for job in JOBS)
    assert len({job.name for job in JOBS}) == len(JOBS) and find_jobs([]) == list(JOBS)
    assert all(len(job.key()) == 16 for job in JOBS)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_job_runs_at_toy_size_on_the_processor(job, tmp_path, capsys):
    sections = work(job.small(), "cpu", tmp_path / "sections.json")
    assert sections and all(s.contract.device and s.contract.n >= 1 for s in sections.values())
    figures = [value for s in sections.values() for value in s.figures.values() if isinstance(value, float)]
    assert all(value > 0 for value in figures) and any(s.timings for s in sections.values())
    assert {name: Section.from_json(s.to_json()) for name, s in sections.items()} == sections


def test_upstream_sections_have_their_stages(tmp_path, capsys):
    (job,) = find_jobs(["upstream_eager"])
    sections = work(job.small(), "cpu", tmp_path / "sections.json")
    assert list(sections) == ["model", "prefill", "chunk_2"]
    assert sections["prefill"].contract.stages == ("upload", "vae", "prefill", "memory")
    chunk = sections["chunk_2"]
    assert chunk.contract.stages == ("upload", "vae", "observation", "editor", "denoise", "download")
    assert chunk.timings["denoise"].n == 2 * chunk.timings["vae"].n and chunk.contract.host_copies


def test_the_smoke_command_ends_with_a_table(tmp_path, capsys):
    assert command.main(["--smoke", "--only", "graph_nodes", "--out", str(tmp_path)]) == 0
    assert "us_per_node" in capsys.readouterr().out and (tmp_path / "graph_nodes_smoke.json").exists()


def test_floors_of_both_plans_on_the_measured_h200():
    device = load_device("h200:lent")
    hoisted = roofline(HOISTED_CHUNK, device, "bf16", {"denoise": 2}).total_ms
    released = roofline(RELEASED_CHUNK, device, "bf16", {"denoise": 2}).total_ms
    assert hoisted == pytest.approx(1.77, rel=0.02) and released > 1.3 * hoisted
    assert roofline(RELEASED_PREFILL, device).total_ms > 2.0


def test_floors_use_what_this_card_recorded(tmp_path):
    def record(job, sections):
        return Record(job, "k", "ok", "NVIDIA H200", "t", 1.0, {}, sections)

    base = section()
    copies = {name: Section(base.contract, {"bandwidth_gb_s": v}) for name, v in (("64MB", 9000.0), ("8192MB", 4000.0))}
    write_record(tmp_path, record("copy_bandwidth", copies))
    assert measured_device("NVIDIA H200", [tmp_path]) is None
    write_record(tmp_path, record("matmul_rate", {"square_bf16": Section(base.contract, {"tflops": 700.0})}))
    device = measured_device("NVIDIA H200", [tmp_path])
    assert device.bandwidth_gb_s.value == 4000.0 and device.peak_tflops["bf16"].value == 700.0
    assert measured_device("NVIDIA H100 80GB HBM3", [tmp_path]) is None


def test_an_ok_without_sections_is_no_result():
    with pytest.raises(EdgewamError):
        Record.from_json(Record("a", "k", "ok", "d", "t", 1.0).to_json())

"""`make gpu` without a GPU: lists and plans, refuses to measure, and every job's code runs at toy size on the processor."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.jobs import JOBS, find_jobs
from benchmarks.gpu.worker import work
from benchmarks.results import ROOT, Record, Section, write_record
from edgewam.core.errors import EdgewamError
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
    assert done.returncode == 0 and "under_load" in done.stdout


def test_listing_imports_no_torch():
    code = "import sys; from benchmarks.gpu.__main__ import main; main(['--list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_unknown_jobs_are_refused_with_the_known_ones(no_gpu, capsys):
    assert command.main(["--list", "--only", "upstream_eager"]) == 2
    assert "Available: kernel_checks" in capsys.readouterr().err


def test_the_plan_shows_recorded_jobs_and_the_budget(no_gpu, tmp_path, capsys):
    first = JOBS[0]
    record = Record(first.name, first.key(), "ok", "NVIDIA H200", "2026-01-01T00:00:00Z", 1.0, {}, {"a": section()})
    write_record(tmp_path / "results" / "nvidia-h200", record)
    assert command.main(["--dry-run", "--budget-s", "30"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "recorded 2026-01-01T00:00:00Z on NVIDIA H200" in lines[first.name]
    assert "next call (budget)" in lines["under_load"]


def test_all_jobs_but_the_last_fit_two_calls():
    *jobs, last = JOBS
    kernels = [job for job in jobs if job.process == "fused"]
    others = [job for job in jobs if job.process != "fused" and job.data != "latents"]  # those need a file
    assert max(sum(job.expected_s for job in part) for part in (kernels, others)) <= command.BUDGET_S <= 600
    assert last.name == "under_load_full"  # as long as the timing contract asks: for a card that is not lent
    assert all(job.expected_s < job.limit_s <= 480 for job in JOBS)
    assert len({job.name for job in JOBS}) == len(JOBS) and find_jobs([]) == list(JOBS)
    assert all(len(job.key()) == 16 for job in JOBS)


def test_jobs_that_share_a_process_stand_together_and_ask_for_the_same_policy():
    shared = [job for job in JOBS if job.process == "full"]
    first = JOBS.index(shared[0])
    assert list(JOBS[first : first + len(shared) - 1]) == shared[:-1]  # the full load comes last and builds its own
    assert len({tuple(job.params[name] for name in ("size", "dtype", "seed", "compiler", "layer_groups")) for job in shared}) == 1


def test_the_processor_is_for_jobs_that_make_sense_there(no_gpu, capsys):
    assert command.main(["--device", "cpu"]) == 2
    assert "'kernel_checks' makes no sense on a processor" in capsys.readouterr().err


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_job_runs_at_toy_size_on_the_processor(job, tmp_path, capsys):
    if reason := job.lacks("cpu"):
        pytest.skip(reason)
    sections = work(job.small(), "cpu", tmp_path / "sections.json")
    assert sections and all(s.contract.device and s.contract.n >= 1 for s in sections.values())
    figures = [value for s in sections.values() for value in s.figures.values() if isinstance(value, float)]
    assert all(value >= 0 for value in figures) and any(s.timings for s in sections.values())
    assert {name: Section.from_json(s.to_json()) for name, s in sections.items()} == sections


def test_the_smoke_command_ends_with_a_table(tmp_path, capsys):
    assert command.main(["--smoke", "--only", "graph_nodes", "--out", str(tmp_path)]) == 0
    assert "us_per_node" in capsys.readouterr().out and (tmp_path / "graph_nodes_smoke.json").exists()


def test_an_ok_without_sections_is_no_result():
    with pytest.raises(EdgewamError):
        Record.from_json(Record("a", "k", "ok", "d", "t", 1.0).to_json())


def test_each_job_gets_the_file_that_it_takes(no_gpu, tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(command, "_plan", lambda jobs, *_: seen.update({job.name: job.params.get("data") for job in jobs}) or "")
    for name in ("latents", "frames"):
        (tmp_path / name).write_text(name)
    assert command.main(["--list", "--data", str(tmp_path / "latents"), "--frames", str(tmp_path / "frames")]) == 0
    given = {name: path for name, path in seen.items() if path}
    frames = dict.fromkeys(("fused_small", "vae_parity"), str(tmp_path / "frames"))
    assert given == {"train_small": str(tmp_path / "latents"), **frames}

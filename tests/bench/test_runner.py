"""Running GPU jobs: each is recorded as it ends, a bad one harms no other, a hanging one is killed, a recorded one is skipped."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.jobs import Job
from benchmarks.gpu.runner import run_jobs
from benchmarks.results import Record, bundle_path, collect, output_folder, read_record, slug, write_record
from edgewam.core.errors import EdgewamError
from tests.bench.fake_jobs.good import section

RECORD = Record("good", "k", "ok", "Some Card", "2026-01-01T00:00:00Z", 1.0, {"a": [1]}, {"first": section()})


def job(name, module, limit_s=60, expected_s=1, **params):
    sources = ("tests/bench/fake_jobs/*.py",)
    return Job(name, "a fake", f"tests.bench.fake_jobs.{module}", expected_s, limit_s, sources, params)


def run(jobs, folder, known=(), budget_s=120.0):
    return run_jobs(jobs, "cpu", "Some Card", folder, list(known), budget_s, say=lambda _: None)


def num_runs(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "Z (zombie)" not in status.read_text()


def test_a_bad_job_is_recorded_and_the_next_ones_run(tmp_path):
    jobs = [job("bad", "bad"), job("empty", "empty"), job("good", "good", runs=str(tmp_path / "runs"))]
    outcomes = run(jobs, tmp_path)
    assert [o.record.status for o in outcomes] == ["failed", "failed", "ok"]
    bad = read_record(tmp_path / "bad.json")
    assert "out of luck" in bad.error and list(bad.sections) == ["before"]
    assert "without a result" in read_record(tmp_path / "empty.json").error
    good = read_record(tmp_path / "good.json")
    assert good.device == "Some Card" and good.sections["first"].figures["answer"] == 42


def test_a_job_past_its_limit_is_killed_with_its_children_and_the_next_runs(tmp_path):
    pid_file, runs = tmp_path / "pid", tmp_path / "runs"
    start = time.monotonic()
    outcomes = run([job("hangs", "hangs", limit_s=8, pid_file=str(pid_file)), job("good", "good", runs=str(runs))], tmp_path)
    assert [o.record.status for o in outcomes] == ["timeout", "ok"] and time.monotonic() - start < 60
    record = read_record(tmp_path / "hangs.json")
    assert "time limit of 8 s" in record.error and list(record.sections) == ["before"]
    assert not alive(int(pid_file.read_text()))


def test_a_recorded_result_is_not_measured_again(tmp_path):
    runs = tmp_path / "runs"
    good = job("good", "good", runs=str(runs))
    first = run([good], tmp_path)[0].record
    again = run([good], tmp_path)[0]
    assert num_runs(runs) == 1 and again.record == first and "recorded" in again.note


def test_results_in_a_known_folder_count_too(tmp_path):
    runs = tmp_path / "runs"
    good = job("good", "good", runs=str(runs))
    run([good], tmp_path / "before")
    run([good], tmp_path / "now", known=[tmp_path / "before"])
    assert num_runs(runs) == 1 and not (tmp_path / "now").exists()


def test_other_parameters_and_failures_are_measured_again(tmp_path):
    runs = tmp_path / "runs"
    run([job("good", "good", runs=str(runs))], tmp_path)
    run([job("good", "good", runs=str(runs), names=["other"])], tmp_path)
    assert num_runs(runs) == 2
    run([job("bad", "bad")], tmp_path)
    outcome = run([job("bad", "bad")], tmp_path)[0]
    assert outcome.record.status == "failed" and "recorded" not in outcome.note


def test_a_broken_result_file_is_replaced(tmp_path):
    runs = tmp_path / "runs"
    (tmp_path / "good.json").write_text('{"format": 1, "job"')
    assert run([job("good", "good", runs=str(runs))], tmp_path)[0].record.status == "ok"
    assert read_record(tmp_path / "good.json").status == "ok"


def test_no_job_starts_that_does_not_fit_the_budget(tmp_path):
    runs = tmp_path / "runs"
    outcomes = run([job("long", "bad", expected_s=1000), job("good", "good", runs=str(runs))], tmp_path)
    assert outcomes[0].record is None and "no budget" in outcomes[0].note and outcomes[1].record.status == "ok"
    assert not (tmp_path / "long.json").exists()


def test_the_budget_cuts_a_job_before_its_own_limit(tmp_path):
    outcome = run([job("hangs", "hangs", limit_s=500, pid_file=str(tmp_path / "pid"))], tmp_path, budget_s=5)[0]
    assert outcome.record.status == "timeout" and outcome.record.wall_s < 30


def test_the_key_follows_sources_parameters_and_data_but_not_the_path(tmp_path):
    base = job("good", "good", runs="x")
    assert base.key() == job("good", "good", runs="x").key() != job("good", "good", runs="y").key()
    needs = Job("d", "", "tests.bench.fake_jobs.good", 1, 1, (), {}, {}, data="required")
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
    a, b, c = (needs.with_data(tmp_path / name).key() for name in "abc")
    assert a == b != c and base.with_data(tmp_path / "a") == base
    with pytest.raises(EdgewamError, match="no data file"):
        needs.with_data(tmp_path / "none")
    with pytest.raises(EdgewamError, match="matches no file"):
        Job("x", "", "tests.bench.fake_jobs.good", 1, 1, ("nothing/*.py",)).key()


def test_a_job_without_its_data_is_left_out(tmp_path):
    outcome = run([Job("d", "", "tests.bench.fake_jobs.bad", 1, 9, (), {}, {}, data="required")], tmp_path)[0]
    assert outcome.record is None and outcome.note == "needs --data"


def test_all_records_of_a_run_go_to_one_file_in_out(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert bundle_path() == tmp_path / "records.json"
    monkeypatch.delenv("OUT")
    assert bundle_path() is None
    assert output_folder("NVIDIA H200").parts[-3:] == ("benchmarks", "results", "nvidia-h200")
    assert slug("NVIDIA GeForce RTX 5090 D") == "nvidia-geforce-rtx-5090-d"


def test_a_bundle_of_records_is_collected_job_by_job(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.results.RESULTS", tmp_path / "results")
    jobs = [job("bad", "bad"), job("good", "good", runs=str(tmp_path / "runs"))]
    run_jobs(jobs, "cpu", "Some Card", tmp_path / "here", [], 120, say=lambda _: None, bundle=tmp_path / "out" / "records.json")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["records.json"]
    assert [read_record(path).status for path in collect(tmp_path / "out")] == ["failed", "ok"]


def test_jobs_of_one_process_share_what_the_first_built_and_survive_a_bad_one(tmp_path):
    runs, names = tmp_path / "runs", ("one", "bad", "two", "apart")
    jobs = [replace(job(name, "bad" if name == "bad" else "good", runs=str(runs)), process="shared") for name in names]
    jobs[3] = replace(jobs[3], process="")
    records = [outcome.record for outcome in run(jobs, tmp_path)]
    assert [record.status for record in records] == ["ok", "failed", "ok", "ok"]
    one, two, apart = (line.split()[1] for line in runs.read_text().splitlines())
    assert one == two != apart  # process ids


def test_a_process_that_died_is_replaced_for_the_next_job(tmp_path):
    runs = tmp_path / "runs"
    jobs = [replace(job(name, module, runs=str(runs)), process="shared") for name, module in (("dies", "dies"), ("good", "good"))]
    first, second = (outcome.record for outcome in run(jobs, tmp_path))
    assert first.status == "failed" and "exit status 7" in first.error and list(first.sections) == ["before"]
    assert second.status == "ok"


def test_collected_results_are_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.results.RESULTS", tmp_path / "results")
    write_record(tmp_path / "back", RECORD)
    (path,) = collect(tmp_path / "back")
    assert path == tmp_path / "results" / "some-card" / "good.json" and read_record(path).status == "ok"
    (tmp_path / "back" / "bad.json").write_text("{}")
    with pytest.raises(EdgewamError, match="format None"):
        collect(tmp_path / "back")
    with pytest.raises(EdgewamError, match="No results"):
        collect(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"status": "fine"}, {"status": "failed"}, {"error": "x"}, {"sections": {}}, {"speed": 1}, {"key": None}],
)
def test_the_schema_of_results_is_strict(change):
    data = RECORD.to_json()
    assert Record.from_json(json.loads(json.dumps(data))) == RECORD
    data.update(change)
    if change == {"key": None}:
        del data["key"]
    with pytest.raises(EdgewamError):
        Record.from_json(data)


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_record(tmp_path, RECORD)
    before = (tmp_path / "good.json").read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_record(tmp_path, RECORD)
    assert (tmp_path / "good.json").read_bytes() == before and not list(tmp_path.glob(".*partial"))

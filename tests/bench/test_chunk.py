"""The chunk benchmark: partners are compared at equal steps or on the same backend only, gates judge what was measured."""

import dataclasses

import pytest

from benchmarks import chunk
from benchmarks.results import read_record
from edgewam.core.errors import EdgewamError
from edgewam.profiles.measure import Timing
from tests.bench.fake_policy import make_bundle


def timings(**p50):
    return {name: {"L_chunk": Timing.from_samples([ms])} for name, ms in p50.items()}


def test_ratios_pair_equal_steps_and_equal_backends_only():
    found = chunk.ratios(timings(onnxruntime_2=4.0, eager_2=12.0, onnxruntime_10=16.0, eager_10=50.0))
    assert found == {
        "eager_2 / onnxruntime_2": 3.0,
        "onnxruntime_10 / onnxruntime_2": 4.0,
        "eager_10 / onnxruntime_10": 3.125,
        "eager_10 / eager_2": pytest.approx(50 / 12),
    }


def test_gates_say_which_one_fails():
    held = chunk.gates(timings(onnxruntime_2=4.0, eager_2=9.0, onnxruntime_10=16.0), "onnxruntime_2")
    assert len(held) == 3 and all(held.values())
    missed = chunk.gates(timings(onnxruntime_2=7.0, eager_2=9.0, onnxruntime_10=13.0), "onnxruntime_2")
    assert len(missed) == 3 and not any(missed.values())


def test_a_gate_without_its_partner_is_not_judged():
    assert list(chunk.gates(timings(onnxruntime_2=4.0), "onnxruntime_2")) == ["L_chunk p50 <= 6 ms"]


def test_measured_bundles_take_turns_and_show_their_known_speed():
    bundles = {"onnxruntime_2": make_bundle("onnxruntime", 2, 0.001), "eager_2": make_bundle("eager", 2, 0.004)}
    assert [chunk.name_of(bundle) for bundle in bundles.values()] == list(bundles)
    found = chunk.measure_bundles(bundles, n=7, rounds=3, warmup=1)
    assert all(t.n == 7 for figures in found.values() for t in figures.values())
    assert found["onnxruntime_2"]["L_chunk"].p50_ms >= 2.0 and found["eager_2"]["L_chunk"].p50_ms >= 8.0
    assert chunk.ratios(found)["eager_2 / onnxruntime_2"] > 1.5


def test_a_run_writes_one_record_and_one_table(tmp_path, monkeypatch, capsys):
    opened = {"a": make_bundle("onnxruntime", 2, 0.001), "b": make_bundle("eager", 2, 0.003)}
    monkeypatch.setattr(chunk.Bundle, "open", staticmethod(lambda path, threads: opened[path.name]))
    arguments = [
        "--bundle",
        "a",
        "--bundle",
        "b",
        "--n",
        "4",
        "--rounds",
        "2",
        "--warmup",
        "1",
        "--out",
        str(tmp_path),
        "--check",
    ]
    assert chunk.main(arguments) == 0
    out = capsys.readouterr().out
    assert "eager_2 / onnxruntime_2" in out and "PASS" in out and "onnxruntime, fp32, 2 steps" in out
    record = read_record(tmp_path / "chunk.json")
    assert set(record.sections) == {f"{b}_{f}" for b in ("onnxruntime_2", "eager_2") for f in ("L_chunk", "L_compose")}
    assert record.sections["onnxruntime_2_L_chunk"].contract.stages == ("denoise",)


def test_a_missed_gate_is_an_exit_status_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chunk.Bundle, "open", staticmethod(lambda path, threads: make_bundle("onnxruntime", 2, 0.005)))
    arguments = ["--bundle", "a", "--n", "2", "--rounds", "1", "--warmup", "0", "--out", str(tmp_path)]
    assert chunk.main(arguments) == 0 and chunk.main([*arguments, "--check"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_wrong_input_is_refused(tmp_path, monkeypatch, capsys):
    assert chunk.main(["--bundle", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setattr(chunk.Bundle, "open", staticmethod(lambda path, threads: make_bundle("eager", 2, 0.0)))
    assert chunk.main(["--bundle", "a", "--bundle", "b", "--out", str(tmp_path)]) == 2
    assert "same backend and steps" in capsys.readouterr().err
    with pytest.raises(EdgewamError, match="no policy"):
        chunk.measure_bundles({"a": dataclasses.replace(make_bundle("eager", 2, 0.0), policy=None)}, 2, 1, 0)
    with pytest.raises(EdgewamError, match="rounds"):
        chunk.measure_bundles({"a": make_bundle("eager", 2, 0.0)}, 2, 3, 0)

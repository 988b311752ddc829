"""Baselines: what counts as slower, what is stored, and what the report says where there is nothing to compare with."""

import json

import pytest

from benchmarks import baselines
from benchmarks.baselines import FACTOR, Spread, best, circumstances, compare, is_slower, main, parse, read_baselines
from benchmarks.results import RESULTS
from edgewam.core.errors import EdgewamError

OLD = Spread(10.0, 8.0, 50)


def test_pytest_benchmarks_seconds_become_milliseconds():
    stats = {"median": 0.002, "min": 0.001, "rounds": 7}
    data = {"benchmarks": [{"fullname": "benchmarks/test_roofline.py::test_x[y]", "stats": stats}]}
    assert parse(data) == {"test_roofline.py::test_x[y]": Spread(2.0, 1.0, 7)}


@pytest.mark.parametrize(
    ("now", "slower"),
    [
        (Spread(16.0, 13.0, 50), True),
        (Spread(40.0, 8.5, 50), False),  # a neighbour on the machine: the fastest calls are as fast as before
        (Spread(10.0, 13.0, 50), False),
        (Spread(15.0, 12.0, 50), False),  # exactly the factor
        (Spread(5.0, 4.0, 50), False),
    ],
)
def test_slower_is_what_is_slower_in_its_median_and_its_fastest_call(now, slower):
    assert is_slower(now, OLD, FACTOR) is slower
    text, names = compare({"a": now}, {"a": OLD}, FACTOR)
    assert names == (["a"] if slower else []) and ("SLOWER" in text) is slower


def test_the_report_names_what_is_new_and_what_did_not_run():
    text, slower = compare({"new": OLD}, {"gone": OLD}, FACTOR)
    assert "new" in text.splitlines()[-2] and "not run this time: gone" in text and not slower


def test_of_several_runs_the_quietest_counts():
    assert best([{"a": Spread(3, 2, 9), "b": OLD}, {"a": Spread(2, 1, 5)}]) == {"a": Spread(2, 1, 5), "b": OLD}


def test_saving_and_comparing_go_through_the_same_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(baselines, "RESULTS", tmp_path)
    monkeypatch.setattr(baselines, "run_suites", lambda expression: {"a": OLD})
    assert main([]) == 2 and "--save" in capsys.readouterr().err
    assert main(["--save", "-k", "x"]) == 2
    assert main(["--save"]) == 0 and len(list(tmp_path.glob("*/baselines.json"))) == 1
    monkeypatch.setattr(baselines, "run_suites", lambda expression: {"a": Spread(40.0, 30.0, 9)})
    capsys.readouterr()
    assert main([]) == 0, "a report, not a gate"
    said = capsys.readouterr().out
    assert "1 of 1 are more than 1.5 times slower" in said and "baselines: " in said


def test_a_busy_machine_is_named():
    assert "busy" in circumstances({"num_cpus": 2, "load_1min": 1.5})
    assert "busy" not in circumstances({"num_cpus": 2, "load_1min": 0.3})
    assert "unknown" in circumstances({"num_cpus": 2, "load_1min": None})


def test_a_failed_benchmark_is_no_result():
    with pytest.raises(EdgewamError, match="did not run"):
        baselines.run_suites("no benchmark is called so")


def test_the_stored_baselines_are_those_of_the_suites_and_name_their_machine():
    for path in RESULTS.glob("*/baselines.json"):
        stored, data = read_baselines(path), json.loads(path.read_text())
        assert data["cpu"] and data["versions"]["python"] and data["machine"]["num_cpus"] >= 1
        suites = {name.partition("::")[0] for name in stored}
        assert suites == {"test_host_path.py", "test_chunk_stages.py", "test_roofline.py"}
        assert all(0 < s.min_ms <= s.median_ms and s.rounds > 0 for s in stored.values())

"""The benchmark of chunk schedules: the latency it takes from the recorded minute, and what the shipped weights refuse."""

import json

import pytest

from benchmarks.schedules import SCHEDULES, TASK, main, measured_latency, refusal
from edgewam.cli._shipped import shipped
from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.control import scheduling
from edgewam.robot_bridge.evaluation.lockstep import LockstepSettings


@pytest.mark.parametrize(("p50", "ticks"), [(19.9, 1), (40.0, 2), (43.4, 3)])
def test_the_latency_is_the_recorded_median_in_whole_ticks(tmp_path, p50, ticks):
    (tmp_path / "run_60s.json").write_text(json.dumps({"observation_to_command_ms": {"p50": p50}}))
    assert measured_latency(tmp_path, 50.0) == ticks


def test_without_a_record_the_latency_must_be_given(tmp_path):
    with pytest.raises(EdgewamError, match="--latency-ticks"):
        measured_latency(tmp_path, 50.0)


def test_every_schedule_of_the_bridge_is_measured():
    assert {*SCHEDULES, "rtc"} == set(scheduling.SCHEDULES)


def test_the_shipped_weights_refuse_real_time_chunking():
    text = refusal(shipped("bundle"), LockstepSettings(latency_ticks=3, execute_ticks=8, schedule="rtc"), TASK)
    assert "never trained to" in text and "choose the schedule replace, ensemble or crossfade" in text


def test_wrong_input_is_told(tmp_path, capsys):
    assert main(["--task", "dance", "--work", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err

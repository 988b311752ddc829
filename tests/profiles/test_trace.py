"""Traces: what the Trace Event Format asks for, in order and without overlap, and nothing lost or invented."""

import json
import time

import pytest

from edgewam.core.errors import EdgewamError
from edgewam.profiles.contract import TimingContract
from edgewam.profiles.trace import ProgramTrace, Span, chrome_trace, record
from tests.profiles.trace_format import require_trace

CONTRACT = TimingContract("cpu", "linux", "eager", "fp32", 2, {}, ("a", "b"), True, False, 1, 0, 2)


class Walk:
    """Three stages that sleep, as a pipeline runs them."""

    on_stage = None

    def run(self):
        for name in ("a", "b", "b"):
            start = time.perf_counter_ns()
            time.sleep(0.001)
            if self.on_stage is not None:
                self.on_stage(name, time.perf_counter_ns() - start)


def trace_of(program, runs):
    walk = Walk()
    spans, durations = record(walk, walk.run, runs, warmup=1)
    return ProgramTrace(program, CONTRACT, tuple(spans), tuple(durations))


def test_a_recorded_trace_has_the_required_fields_and_does_not_overlap():
    data = json.loads(json.dumps(chrome_trace("toy", [trace_of("act", 3), trace_of("plan", 2)]), allow_nan=False))
    events = require_trace(data)
    assert [len(events[track]) for track in sorted(events)] == [9, 6]
    names = {e["args"]["name"] for e in data["traceEvents"] if e["ph"] == "M" and "name" in e["args"]}
    assert names == {"toy", "program act", "program plan"}


def test_the_sums_of_the_events_are_the_measured_totals():
    trace = trace_of("act", 3)
    data = chrome_trace("toy", [trace])
    found = data["otherData"]["programs"]["act"]
    for stage, total in found["stage_ms"].items():
        durations = [e["dur"] for e in data["traceEvents"] if e["ph"] == "X" and e["name"] == stage]
        assert sum(durations) / 1e3 == pytest.approx(total) and total >= len(durations) * 1.0
    assert sum(found["stage_ms"].values()) <= sum(found["run_ms"]) and len(found["run_ms"]) == 3
    for run, duration in enumerate(found["run_ms"]):
        own = [e for e in data["traceEvents"] if e["ph"] == "X" and e["args"]["run"] == run]
        assert sum(e["dur"] for e in own) / 1e3 <= duration
        assert (own[-1]["ts"] + own[-1]["dur"] - own[0]["ts"]) / 1e3 <= duration
    assert TimingContract.from_json(found["contract"]) == CONTRACT


def test_time_begins_at_zero_in_microseconds():
    spans = (Span("a", 0, 5_000_000, 1_500), Span("b", 0, 5_002_000, 500))
    data = chrome_trace("toy", [ProgramTrace("act", CONTRACT, spans, (3_000,))])
    assert [(e["name"], e["ts"], e["dur"]) for e in data["traceEvents"] if e["ph"] == "X"] == [("a", 0.0, 1.5), ("b", 2.0, 0.5)]


def test_the_hook_is_gone_afterwards_even_when_a_run_fails():
    walk = Walk()

    def fail():
        walk.run()
        if walk.on_stage is not None:
            raise RuntimeError("a stage failed")

    with pytest.raises(RuntimeError):
        record(walk, fail, 1)
    assert walk.on_stage is None
    with pytest.raises(EdgewamError, match="at least one run"):
        record(walk, walk.run, 0)


@pytest.mark.parametrize(
    "spans",
    [
        (Span("a", 0, 0, 2_000), Span("b", 0, 1_000, 2_000)),
        (Span("a", 0, 5_000, 1_000), Span("b", 0, 1_000, 1_000)),
    ],
    ids=["overlap", "backwards"],
)
def test_the_check_of_these_tests_finds_a_bad_trace(spans):
    with pytest.raises(AssertionError):
        require_trace(chrome_trace("toy", [ProgramTrace("act", CONTRACT, spans, (9_000,))]))

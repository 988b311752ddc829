"""Replay: the same policy computes a recording again bit for bit, another one is caught at its first action, and what the
recording lost is said and not compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgewam
from edgewam.core.errors import EdgewamError
from edgewam.core.records import ActionChunk, Observation
from edgewam.robot_bridge.control.delay import committed
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.recorder.reader import Recording
from edgewam.robot_bridge.recorder.replay import OTHER_MACHINE, replay
from edgewam.robot_bridge.recorder.summary import summarize
from edgewam.robot_bridge.run import RunSettings, run
from tests.cli.command import here
from tests.robot_bridge.recorded import CAMERAS, NUM_JOINTS

BUNDLE = Path(edgewam.__file__).parent / "assets/small/bundle"
FIRST_SEED = 7
EPISODE_TICKS = 96
REFRESH, REPLAN, HORIZON = 32, 8, 16
LIMITS = {
    "lower": [-1.0] * NUM_JOINTS,
    "upper": [1.0] * NUM_JOINTS,
    "max_velocity": [1.0] * NUM_JOINTS,
    "max_acceleration": None,
}


class Remembering:
    """A policy whose every action depends on all refreshes of the episode, the images, the state, the prefix and the noise."""

    refresh_ticks, horizon, chunk_size, offset_trained, prefix_trained = REFRESH, 2 * REFRESH, HORIZON, True, True
    context_tick = None

    def reset(self, prompt, seed):
        self._memory, self._noise = float(len(prompt)), np.random.default_rng(seed).normal(size=(HORIZON, NUM_JOINTS))
        self.context_tick = None

    def plan(self, observation):
        self._memory = 0.5 * self._memory + float(observation.images["cam_wrist"].mean())
        self.context_tick = observation.tick

    def act(self, observation, prefix=None):
        seen = float(observation.images["cam_high"].mean()) + self._memory + float(observation.state.sum()) + observation.tick
        actions = (np.sin(seen + np.arange(HORIZON))[:, None] + 0.1 * self._noise).astype(np.float32)
        if prefix is not None:
            actions[: len(prefix)] = prefix
            actions[len(prefix) :] += prefix.sum()
        return ActionChunk(actions, observation.tick, observation.tick)

    def infer(self, observation):
        self.plan(observation)
        return self.act(observation)

    def start_plan(self, observation):
        self.plan(observation)

    def poll_plan(self):
        return True

    def export_context(self):
        return b""

    def import_context(self, data):
        raise AssertionError("replay plans for itself")


class Live:
    """An engine and a planner in one, driven by frames that the test publishes: what is recorded is what a run computes."""

    def __init__(self, bridge, recorder, policy, planner="process", prefix_rows=0):
        self.bridge, self.recorder, self.policy = bridge, recorder, policy
        self.planner, self.prefix_rows = planner, prefix_rows
        self.frame_number = self.chunk_number = self.context_number = 0
        self.last = None

    def episode(self, episode, ticks=EPISODE_TICKS, lose=()):
        """Run an episode; what is named in `lose`, such as ("frame", 16), comes and goes between two polls."""
        begin, context_tick = episode * EPISODE_TICKS, -1
        self.policy.reset("reach", FIRST_SEED + episode)
        self.last = None
        for tick in range(0, ticks, 4):
            self.frame_number += 1
            stamp = 1_000 + self.frame_number
            frame = self.bridge.frame(
                self.frame_number, begin + tick, episode=episode, episode_tick=tick, t_camera_ns=stamp, t_ns=stamp
            )
            images = {name: frame[name] for name in CAMERAS}
            observation = Observation(images, frame["state"], tick, stamp)
            self._poll("frame", ("frame", tick) in lose)
            if tick % REFRESH == 0 and self.planner != "none":
                self.policy.plan(observation)
                self.context_number, context_tick = self.context_number + 1, begin + tick
                if self.planner == "process":
                    self.bridge.context(self.context_number, context_tick, episode=episode, t_capture_ns=stamp)
                    self._poll("context", ("context", tick) in lose)
            if tick % REPLAN == 0:
                self._act(observation, episode, begin + tick, context_tick, ("chunk", tick) in lose)

    def restart(self, episode):
        """The process dies and its successor goes on in the same episode, with numbers above."""
        self.chunk_number = self.context_number = 1 << 32
        self.episode(episode, ticks=4 * REPLAN)

    def _act(self, observation, episode, tick, context_tick, is_lost):
        more = {"context_tick": context_tick, "context_number": self.context_number}
        if self.planner == "none":
            actions, more = self.policy.infer(observation).actions, {}
        elif self.prefix_rows and self.last is not None:
            prefix = committed(*self.last, tick, self.prefix_rows)
            actions, more = self.policy.act(observation, prefix).actions, {**more, "prefix_rows": len(prefix)}
        else:
            actions = self.policy.act(observation).actions
        self.chunk_number += 1
        self.last = (actions, tick)
        fields = {"episode": episode, "start_tick": tick, "observation_tick": tick, "frame_number": self.frame_number}
        self.bridge.chunk(self.chunk_number, actions, **fields, **more)
        self._poll("chunk", is_lost)

    def _poll(self, name, is_lost):
        if is_lost:  # as if a newer one had replaced it already
            self.recorder._versions[name] = self.bridge.wires[name].read()[0]
        self.recorder.poll()


@pytest.fixture
def record(bridge, tmp_path):
    """Record some episodes with a live policy; gives the recording."""

    def make(*episodes, planner="process", prefix_rows=0, **more):
        config = {"seed": FIRST_SEED, "planner": "process" if planner == "process" else "engine", **LIMITS, **more}
        restart = config.pop("restart", False)
        recorder = bridge.recorder(tmp_path / "run.mcap", **config)
        live = Live(bridge, recorder, Remembering(), planner, prefix_rows)
        for number, lose in enumerate(episodes):
            live.episode(number, lose=lose)
        if restart:
            live.restart(len(episodes) - 1)
        recorder.close()
        return Recording(tmp_path / "run.mcap")

    return make


NUM_CHUNKS = EPISODE_TICKS // REPLAN


@pytest.mark.parametrize("planner", ["process", "engine", "none"])
@pytest.mark.parametrize("prefix_rows", [0, 3])
def test_the_recorded_policy_computes_every_action_again(record, planner, prefix_rows):
    result = replay(record((), (), planner=planner, prefix_rows=prefix_rows), Remembering())
    assert result.chunks == result.compared == result.exact == 2 * NUM_CHUNKS
    assert result.max_deviation == 0.0 and result.first is None and result.broken_from is None
    assert result.refreshes == (0 if planner == "none" else 2 * EPISODE_TICKS // REFRESH)


@pytest.mark.parametrize("planner", ["process", "engine", "none"])
def test_a_process_that_was_started_again_begins_with_an_empty_memory(record, planner):
    result = replay(record((), planner=planner, restart=True), Remembering())
    assert result.exact == result.chunks == NUM_CHUNKS + 4 and result.broken == 0


class Deviating(Remembering):
    """Off by a little, in one joint of one row, from one tick of the second episode on."""

    def act(self, observation, prefix=None):
        chunk = super().act(observation, prefix)
        self._acts += 1
        if self._acts > NUM_CHUNKS + 2:
            chunk.actions[5, 1] += 1e-4
        return chunk

    _acts = 0


def test_the_first_difference_is_named_and_a_tolerance_accepts_it(record):
    recording = record((), ())
    result = replay(recording, Deviating())
    first, chunk = result.first, NUM_CHUNKS + 3
    assert (first.chunk_id, first.row, first.joint) == (chunk, 5, 1) and first.reason == "value"
    assert first.tick == EPISODE_TICKS + 2 * REPLAN + 5
    assert abs(first.replayed - first.recorded - 1e-4) < 1e-6 and 0.9e-4 < result.max_deviation < 1.1e-4
    assert result.exact == NUM_CHUNKS + 2 and result.compared == 2 * NUM_CHUNKS
    accepted = replay(recording, Deviating(), tolerance=1e-3)
    assert accepted.first is None and accepted.max_deviation == result.max_deviation and accepted.exact == result.exact


class Shorter(Remembering):
    """Another policy: it gives half a chunk, and refuses in the end."""

    def act(self, observation, prefix=None):
        if observation.tick > 40:
            raise EdgewamError("There is no plan that reaches so far. Refresh (plan) before acting.")
        chunk = super().act(observation, prefix)
        return replace(chunk, actions=chunk.actions[:8])


def test_a_policy_of_another_shape_or_one_that_refuses_differs_in_words(record):
    result = replay(record(()), Shorter())
    assert result.first.recorded is None and result.first.reason == f"shape [8, 3], not [{HORIZON}, 3]"
    assert result.compared == NUM_CHUNKS and result.exact == 0


def test_another_prompt_or_seed_is_another_run(record):
    assert replay(record((), seed=FIRST_SEED + 1), Remembering()).first is not None


def test_a_lost_frame_costs_its_chunk_and_nothing_else(record):
    result = replay(record([("frame", 40)]), Remembering())
    assert (result.no_frame, result.compared, result.exact) == (1, NUM_CHUNKS - 1, NUM_CHUNKS - 1) and result.broken == 0


@pytest.mark.parametrize("lost", ["frame", "context"])
def test_a_lost_refresh_breaks_the_memory_until_the_next_episode(record, lost):
    """The chunks of the lost context itself name its tick, so a lost record alone costs nothing where its frame is there."""
    result = replay(record([(lost, REFRESH)], ()), Remembering())
    assert result.first is None and result.exact == result.compared
    if lost == "context":
        assert result.compared == 2 * NUM_CHUNKS
        return
    assert result.broken_from == REFRESH and result.broken == NUM_CHUNKS - REFRESH // REPLAN
    assert result.compared == 2 * NUM_CHUNKS - result.broken


@pytest.mark.parametrize("planner", ["process", "engine"])
def test_an_episode_whose_beginning_is_lost_is_not_compared(record, planner):
    lose = [("context", 0), *(("chunk", tick) for tick in range(0, REFRESH, REPLAN))]
    result = replay(record((), lose, (), planner=planner), Remembering())
    assert result.first is None and result.exact == result.compared == 2 * NUM_CHUNKS
    assert result.broken == result.chunks - result.compared == NUM_CHUNKS - REFRESH // REPLAN


@pytest.mark.parametrize("planner", ["process", "engine"])
def test_a_refresh_that_nothing_recorded_names_breaks_the_memory(record, planner):
    per_refresh = REFRESH // REPLAN
    lose = [("context", REFRESH), *(("chunk", tick) for tick in range(REFRESH, 2 * REFRESH, REPLAN))]
    result = replay(record(lose, (), planner=planner), Remembering())
    assert result.first is None and result.exact == result.compared == 2 * NUM_CHUNKS - 2 * per_refresh
    assert (result.broken_from, result.broken) == (2 * REFRESH, NUM_CHUNKS - 2 * per_refresh)


def test_a_lost_chunk_costs_nothing_where_the_context_is_kept_apart(record):
    result = replay(record([("chunk", 40), ("chunk", 48)]), Remembering())
    assert result.chunks == result.exact == NUM_CHUNKS - 2 and result.broken == 0


def test_a_lost_chunk_before_a_prefix_is_made_up_for_by_the_policy_giving_its_prefix_back(record):
    result = replay(record([("chunk", 40)], prefix_rows=3), Remembering())
    assert result.chunks == result.exact == NUM_CHUNKS - 1


def test_where_refreshing_happens_inside_a_lost_chunk_breaks_the_memory(record):
    recording = record([("frame", 40)], (), planner="none")
    result = replay(recording, Remembering())
    assert result.broken_from == 40 and result.broken == NUM_CHUNKS - 40 // REPLAN and result.exact == result.compared
    assert result.compared == 2 * NUM_CHUNKS - result.broken and result.first is None


def test_chunks_that_were_never_numbers_are_counted_apart(bridge, record, tmp_path):
    recorder = bridge.recorder(tmp_path / "odd.mcap", seed=FIRST_SEED, **LIMITS)
    bridge.frame(1, 0)
    for number, more in enumerate(({"rows": 0}, {"dtype": b"<f8"}, {"rows": 99}, {"rows": -3}), 1):
        bridge.chunk(number, frame_number=1, **more)
        recorder.poll()
    recorder.close()
    result = replay(Recording(tmp_path / "odd.mcap"), Remembering())
    assert result.malformed == result.chunks == 4 and result.compared == 0


def test_a_summary_counts_the_run_as_its_supervisor_does(bridge, tmp_path):
    recorder = bridge.recorder(tmp_path / "run.mcap", **LIMITS)
    for _ in range(600):
        bridge.tick()
    recorder.poll()
    for _ in range(20):
        bridge.tick(mode=Mode.HOLD, cause=Cause.STALE_STATE)
    bridge.frame(1)
    recorder.poll()
    bridge.frame(4)
    recorder.close()
    summary = summarize(Recording(tmp_path / "run.mcap"))
    assert summary.found == {"state": 0, "frame": 2, "chunk": 0, "context": 0, "tick": 620} and summary.torn == []
    assert summary.lost == {"state": 0, "frame": 2, "chunk": 0, "context": 0, "tick": 0} and summary.fault is None
    report = summary.report
    assert (report.sent, report.missed, report.run, report.held_by_cause) == (620, 0, 600, {"stale_state": 20})
    assert summary.bytes == (tmp_path / "run.mcap").stat().st_size
    json.dumps(summary.to_json(), allow_nan=False)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Four seconds of the shipped bundle in the simulator, recorded by real processes: the file, and the run's report."""
    path = tmp_path_factory.mktemp("real") / "run.mcap"
    settings = RunSettings(record=str(path), episode_ticks=120)
    arguments = {"bundle": str(BUNDLE), "threads": 1}
    report = run("edgewam.runtime.factory.open_policy", arguments, "aloha_sim", seconds=4.0, seed=3, settings=settings)
    return path, report


def test_a_real_run_is_recorded_and_its_bundle_computes_it_again_bit_for_bit(real):
    path, report = real
    counts = report.processes["recorder"]
    assert counts["fault"] is None and not report.faults
    streams = counts["streams"]
    assert streams["tick"] == {"kept": report.sent, "lost": 0, "last": report.sent - 1}
    done = here("replay", path, BUNDLE, "--json").ok()
    data = done.json
    assert data["is_same_bundle"] and data["is_same_machine"] and data["tolerance"] == 0.0
    kept, lost = streams["chunk"]["kept"], streams["chunk"]["lost"]
    assert data["chunks"] == kept > 10 and kept + lost >= report.chunks_received
    assert data["first"] is None and data["exact"] == data["compared"] == data["chunks"] - data["broken"] - data["no_frame"]
    assert streams["frame"]["lost"] or lost or data["compared"] == data["chunks"], "only a loss excuses"
    counted = here("replay", path, "--json").ok().json
    for name in ("sent", "run", "held", "chunks_applied", "rejected", "violations", "observation_to_command_ms"):
        assert counted["report"][name] == json.loads(json.dumps(report.to_json()))[name], name
    assert "No difference" in done.err and counted["run"]["bundle"] == data["bundle"]


def test_a_perturbed_recording_fails_and_names_the_joint(real, tmp_path, monkeypatch):
    path, _ = real
    from edgewam.robot_bridge.recorder import reader

    seen = []
    decode = reader.decode

    def perturbed(data, layout):
        value = decode(data, layout)
        if "actions" in (layout.names or ()):
            seen.append(int(value["id"]))
            if len(seen) == 4:
                value["actions"][2, 6] += 0.01
        return value

    monkeypatch.setattr(reader, "decode", perturbed)
    done = here("replay", path, BUNDLE, "--json")
    first = done.json["first"]
    assert done.code == 1 and (first["chunk_id"], first["row"], first["joint"]) == (seen[3], 2, 6)
    assert f"chunk {seen[3]}, row 2, left_gripper" in done.err
    seen.clear()
    assert here("replay", path, BUNDLE, "--tolerance", 0.02).code == 0


def test_another_bundle_or_machine_is_said_and_compared_within_a_tolerance(real, monkeypatch):
    path, _ = real
    head = Recording._head
    changed = {"bundle": "f" * 64, "hardware": {"cpu": "another"}}
    monkeypatch.setattr(Recording, "_head", lambda self, file: {**head(self, file), **changed})
    done = here("replay", path, BUNDLE, "--json").ok()
    assert "Another bundle" in done.err and "another machine" in done.err
    assert (done.json["is_same_bundle"], done.json["is_same_machine"], done.json["tolerance"]) == (False, False, OTHER_MACHINE)
    assert done.json["first"] is None and done.json["max_deviation"] == 0.0


def test_a_file_that_is_no_recording_is_one_sentence(tmp_path):
    (tmp_path / "x.mcap").write_bytes(b"something else")
    for path in (tmp_path / "x.mcap", tmp_path / "y.mcap"):
        done = here("replay", path)
        assert done.code == 1 and done.err.startswith("edgewam: ") and "Traceback" not in done.err

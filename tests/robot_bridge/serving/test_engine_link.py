"""The policy in its own process: answers, refusals, deadlines, and what happens when it dies, hangs or cannot start."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.core.records import Observation
from edgewam.robot_bridge.serving.engine_link import EngineLink, LinkSettings
from edgewam.robot_bridge.serving.engine_wire import ObservationBuffer, decode, encode
from edgewam.robot_bridge.serving.handler import DoorError
from tests.robot_bridge.serving.fake_engine import CAMERAS, SPEC, images, state
from tests.robot_bridge.serving.policies import DIE, RAISE, REFUSE, STALL

HERE = "tests.robot_bridge.serving.policies"
PATIENCE_S = 30.0  # a child starts in half a second, on a busy machine in several


@contextmanager
def linked(policy="null", settings=None, **arguments):
    events = []
    link = EngineLink(f"{HERE}.{policy}", arguments, SPEC, "reach", settings or LinkSettings(), events.append)
    link.start()
    link.events = events
    try:
        yield link
    finally:
        pid = link.pid
        link.close()
        assert pid is None or not is_running(pid)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def seen(value=0, *joints, tick=0):
    return Observation(images(value), state(*joints), tick, 123)


def refused(call, *arguments):
    with pytest.raises(DoorError) as caught:
        call(*arguments)
    return caught.value.code


def until_back(link):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            return link.infer(seen())
        except DoorError as error:
            assert error.code in ("deadline", "engine_restarting")
            time.sleep(0.05)
    raise AssertionError("the engine did not come back")


def test_an_observation_survives_the_shared_memory_bit_for_bit():
    rng = np.random.default_rng(0)
    given = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in CAMERAS.items()}
    writer = ObservationBuffer(2, CAMERAS)
    reader = ObservationBuffer(2, CAMERAS, os.dup(writer.fd))
    writer.write(Observation(given, state(0.1, -0.2), 77, 1 << 60))
    found = reader.read()
    writer.write(seen())  # what was read is a copy
    assert (found.tick, found.t_capture_ns) == (77, 1 << 60)
    np.testing.assert_array_equal(found.state, state(0.1, -0.2))
    for name, image in given.items():
        np.testing.assert_array_equal(found.images[name], image)
    reader.close()
    writer.close()


def test_messages_carry_actions_bit_for_bit():
    actions = np.random.default_rng(0).standard_normal((16, 14)).astype(np.float32)
    fields, found = decode(encode({"number": 3, "error": "a\nb"}, actions))
    assert fields == {"number": 3, "error": "a\nb"}
    np.testing.assert_array_equal(found, actions)
    assert decode(encode({"number": 4})) == ({"number": 4}, None)


def test_one_engine_answers_refuses_dies_and_comes_back():
    with linked() as link:
        assert (link.facts.horizon, link.facts.action_dim, link.facts.grid_ticks) == (16, 2, 1)
        link.reset("reach", 3)
        for i in range(50):
            answer = link.infer(seen(i, 0.5, i / 64, tick=i))
            np.testing.assert_array_equal(answer.actions, np.tile(np.float32([i + 0.5, i / 64]), (16, 1)))
            assert answer.tick == i
            assert answer.timing.keys() == {"engine_ms", "link_ms"}
        assert refused(link.reset, "juggle", 0) == "unknown_prompt"
        assert refused(link.infer, seen(0, REFUSE, 0.0)) == "bad_request"
        assert refused(link.act, seen(0, REFUSE, 0.0)) == "no_plan"
        assert link.generation == 1
        for order in (DIE, RAISE):  # an unforeseen error ends the process as well
            before = link.generation
            assert refused(link.infer, seen(0, order, 0.0)) == "engine_restarting"
            assert refused(link.infer, seen()) == "engine_restarting"
            np.testing.assert_array_equal(until_back(link).actions[0], state())
            assert link.generation == before + 1
        os.kill(link.pid, signal.SIGKILL)  # between calls
        until_back(link)
        assert [event for event in link.events if "back" in event] == ["the engine is back"] * 3


def test_a_late_answer_never_answers_the_next_question_and_a_hang_is_ended():
    settings = LinkSettings(deadline_s=0.3, hang_s=1.5)
    with linked(settings=settings, stall_s=0.5) as link:
        assert refused(link.infer, seen(1, STALL, 0.0)) == "deadline"
        time.sleep(0.4)
        np.testing.assert_array_equal(link.infer(seen(2)).actions[0], state(2.25, 0.5))
        assert link.generation == 1
    with linked(settings=settings, stall_s=60.0) as link:
        assert refused(link.infer, seen(1, STALL, 0.0)) == "deadline"
        until_back(link)
        assert link.generation == 2
        assert any("hangs" in event for event in link.events)


def test_restarts_are_bounded():
    settings = LinkSettings(max_restarts=1, restart_window_s=60.0)
    with linked(settings=settings) as link:
        assert refused(link.infer, seen(0, DIE, 0.0)) == "engine_restarting"
        until_back(link)
        assert refused(link.infer, seen(0, DIE, 0.0)) == "engine_restarting"
        time.sleep(1.5)
        assert refused(link.infer, seen()) == "engine_restarting"
        assert link.generation == 2


def test_an_engine_that_cannot_start_says_why():
    link = EngineLink(f"{HERE}.broken", {}, SPEC, "reach")
    with pytest.raises(EdgewamError, match="self-test failed, as ordered"):
        link.start()
    link.close()


def test_refreshes_run_beside_acts_and_the_newest_look_wins():
    with linked("split", plan_s=0.3) as link:
        assert link.facts.grid_ticks == 16
        link.reset("reach", 0)
        assert refused(link.act, seen()) == "no_plan"
        begin = time.monotonic()
        for i in range(1, 8):  # the first starts at once; of the others only the last is ever looked at
            assert link.plan(seen(i, tick=i))["queued"]
            time.sleep(0.02)
        values, numbers, slowest_s = [], [], 0.0
        while time.monotonic() - begin < 1.5:
            sent = time.monotonic()
            try:
                answer = link.act(seen(0, tick=16))
            except DoorError as error:
                assert error.code == "no_plan" and not values
                continue
            slowest_s = max(slowest_s, time.monotonic() - sent)
            values.append(int(answer.actions[0, 1]))
            numbers.append((answer.context_number, answer.context_age_ticks))
            time.sleep(0.01)
        assert sorted(set(values)) == [1, 7]
        assert sorted(set(numbers)) == [(0, 15), (1, 9)]
        assert len(values) > 20
        assert slowest_s < 0.25  # an act never waits for a refresh
        link.reset("reach", 1)
        assert refused(link.act, seen()) == "no_plan"


def test_closing_while_a_call_waits_ends_both():
    with linked(stall_s=60.0, settings=LinkSettings(deadline_s=30.0, hang_s=60.0)) as link:
        codes = []
        caller = threading.Thread(target=lambda: codes.append(refused(link.infer, seen(0, STALL, 0.0))))
        caller.start()
        time.sleep(0.3)
    caller.join(5.0)
    assert codes == ["engine_restarting"]

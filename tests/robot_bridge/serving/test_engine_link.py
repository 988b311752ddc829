"""The policy in its own process: answers, refusals, deadlines, and what happens when it dies, hangs or cannot start."""

import os
import signal
import threading
import time
import types
from contextlib import contextmanager

import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.core.records import Observation
from edgewam.robot_bridge.serving.engine_link import EngineLink, LinkSettings
from edgewam.robot_bridge.serving.engine_wire import ObservationBuffer, decode, encode
from edgewam.robot_bridge.serving.handler import DoorError
from tests.robot_bridge.serving.fake_engine import CAMERAS, SPEC, images, state
from tests.robot_bridge.serving.policies import DIE, GROW, RAISE, REFUSE, STALL

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


def until_back(link, observation=None):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            return link.infer(observation or seen())
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
        assert refused(link.infer, seen(0, GROW, 0.0)) == "internal"
        with pytest.raises(TypeError):
            link.reset("reach", np.array(0))  # nothing was sent, so nothing is owed
        assert link._process.owed_since_s is None
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


def test_a_late_answer_never_answers_the_next_question():
    with linked(settings=LinkSettings(deadline_s=0.3, hang_s=60.0), stall_s=0.8) as link:
        assert refused(link.infer, seen(1, STALL, 0.0)) == "deadline"
        for i in range(2, 5):
            np.testing.assert_array_equal(until_back(link, seen(i)).actions[0], state(i + 0.25, 0.5))
        assert link.generation == 1


def test_an_engine_that_hangs_is_replaced():
    with linked(settings=LinkSettings(deadline_s=0.3, hang_s=1.0), stall_s=600.0) as link:
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


def test_an_engine_that_is_being_started_is_not_waited_for():
    link = EngineLink(f"{HERE}.null", {}, SPEC, "reach")
    link._closing.set()  # as `close` does first
    with pytest.raises(EdgewamError, match="ended while it started"):
        link._open()
    link.close()


def test_the_keeper_survives_a_reply_that_comes_while_it_looks():
    class Process:
        popen = types.SimpleNamespace(poll=lambda: None)
        reads = 0

        @property
        def owed_since_s(self):  # owed, then answered
            self.reads += 1
            return time.monotonic() if self.reads == 1 else None

    link = EngineLink(f"{HERE}.null", {}, SPEC, "reach")
    link._process = Process()
    keeper = threading.Thread(target=link._keep, daemon=True)
    keeper.start()
    time.sleep(0.3)
    assert keeper.is_alive()
    link._process = None
    link.close()
    keeper.join(5.0)


def test_an_engine_that_cannot_start_says_why():
    link = EngineLink(f"{HERE}.broken", {}, SPEC, "reach")
    with pytest.raises(EdgewamError, match="self-test failed, as ordered"):
        link.start()
    link.close()


def test_refreshes_run_beside_acts_and_the_newest_look_wins():
    with linked("split", plan_s=0.8) as link:
        assert link.facts.grid_ticks == 16
        link.reset("reach", 0)
        assert refused(link.act, seen()) == "no_plan"
        assert link.plan(seen(1, tick=1))["queued"]
        found = acts_until(link, 1)
        for i in range(2, 8):  # a refresh takes the first of them, or a later one; the last waits for it; the others are dropped
            link.plan(seen(i, tick=i))
        found += acts_until(link, 7)
        values = [int(answer.actions[0, 1]) for answer in found]
        assert values == sorted(values) and len(set(values)) <= 3
        assert values.count(1) >= 5  # acts went on while the second refresh ran
        assert (found[0].context_number, found[0].context_age_ticks) == (0, 15)
        assert (found[-1].context_number, found[-1].context_age_ticks) == (len(set(values)) - 1, 9)
        link.reset("reach", 1)
        assert refused(link.act, seen()) == "no_plan"


def acts_until(link, value):
    """Answers at tick 16 until one was computed with the plan of that value."""
    found, end = [], time.monotonic() + PATIENCE_S
    while not found or int(found[-1].actions[0, 1]) != value:
        assert time.monotonic() < end
        try:
            found.append(link.act(seen(0, tick=16)))
        except DoorError as error:
            assert error.code == "no_plan" and not found
        time.sleep(0.01)
    return found


def test_closing_while_a_call_waits_ends_both():
    with linked(stall_s=60.0, settings=LinkSettings(deadline_s=30.0, hang_s=60.0)) as link:
        codes = []
        caller = threading.Thread(target=lambda: codes.append(refused(link.infer, seen(0, STALL, 0.0))))
        caller.start()
        time.sleep(0.3)
    caller.join(5.0)
    assert codes == ["engine_restarting"]

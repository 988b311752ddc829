"""Every door, whatever it speaks: round trip, big, malformed, disconnect, deadline; garbage does not crash, stall or grow it."""

import gc
import random
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edgewam.core import plugins
from edgewam.robot_bridge.serving.handler import DoorError
from tests.robot_bridge.doors.running import Refused, probe_of, running
from tests.robot_bridge.serving.fake_engine import FakeEngine, images, session, state
from tests.waiting import wait_for

DOORS = [name for name in plugins.names("door") if name != "ros2"]  # it streams; see doors/test_ros2.py
FAST_FRAMES, SOAK_FRAMES = 500, 10_000
GROWTH_BYTES = 2 << 20  # the allocator's own unrest over thousands of connections; or a leak of 200 bytes a frame
CODES = {
    "bad_request", "too_large", "unauthorized", "not_controller", "rate_limited", "unknown_prompt", "stopped",
    "engine_restarting", "deadline", "no_plan", "internal",
}  # fmt: skip


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture(params=DOORS)
def name(request):
    return request.param


@pytest.fixture
def served(name, engine):
    handler = session(engine)
    with running(name, handler) as address:
        yield probe_of(name), address, handler


def refused(call, *arguments):
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.code


def test_there_is_a_door():
    assert "openpi" in DOORS


def test_answers_belong_to_their_questions(served):
    probe, address, _ = served
    client = probe.connect(address)
    for i in range(20):
        actions = client.infer(images(i), state(0.5, i / 32))
        np.testing.assert_array_equal(actions, np.tile(np.float32([i + 0.5, i / 32]), (16, 1)))
    client.close()


def test_a_frame_that_is_too_big_is_refused_and_the_door_goes_on(served):
    probe, address, _ = served
    assert probe.connect(address).big() in ("too_large", "closed")
    client = probe.connect(address)
    assert client.infer(images(), state()).shape == (16, 2)
    client.close()


def test_a_state_that_is_not_finite_is_refused_before_the_policy_sees_it(served, engine):
    probe, address, _ = served
    client = probe.connect(address)
    assert refused(client.infer, images(), state(np.nan, 0.0)) == "bad_request"
    assert not engine.calls
    client.close()


def test_a_client_that_vanishes_gives_up_control(served):
    probe, address, handler = served
    client = probe.connect(address)
    client.infer(images(), state())
    client.drop()
    wait_for(lambda: handler.controller is None, "the client has left")
    second = probe.connect(address)
    assert second.infer(images(), state()).shape == (16, 2)
    second.close()


@pytest.mark.parametrize("code", ["deadline", "engine_restarting", "internal"])
def test_the_engines_refusals_arrive_as_codes(served, engine, code):
    probe, address, _ = served
    client = probe.connect(address)
    engine.refuse = DoorError(code, "as ordered")
    assert refused(client.infer, images(), state()) == code
    client.drop()
    second = probe.connect(address)
    wait_for(lambda: served[2].controller is None, "the client has left")
    assert second.infer(images(), state()).shape == (16, 2)
    second.close()


def test_an_unforeseen_error_is_a_code_and_no_traceback(served, engine):
    probe, address, _ = served
    client = probe.connect(address)
    engine.refuse = ZeroDivisionError("secret of the house")
    with pytest.raises(Refused) as caught:
        client.infer(images(), state())
    assert caught.value.code == "internal"
    assert "secret" not in str(caught.value) and "Traceback" not in str(caught.value)
    client.drop()


def test_after_a_stop_nobody_gets_actions(served):
    probe, address, handler = served
    client = probe.connect(address)
    client.infer(images(), state())
    handler.stop("somebody")
    assert refused(client.infer, images(), state()) == "stopped"
    client.drop()


def test_the_door_ends_while_clients_are_connected_and_leaves_no_thread(name):
    before = set(threading.enumerate())
    with running(name, session()) as address:
        clients = [probe_of(name).connect(address) for _ in range(3)]
        clients[0].infer(images(), state())
    for client in clients:
        client.drop()
    wait_for(lambda: set(threading.enumerate()) <= before, "its threads end")


def test_strangers_who_only_connect_keep_nobody_out_and_drop_nobody_who_has_spoken(name):
    handler = session()
    with running(name, handler, max_connections=4, open_s=60.0) as address, ExitStack() as stack:
        first = probe_of(name).connect(address)
        stack.callback(first.drop)
        first.infer(images(), state())
        for _ in range(6):
            stack.callback(socket.create_connection((address.host, address.port), 5.0).close)
        assert first.infer(images(), state()).shape == (16, 2)
        handler.release(handler.controller)
        second = probe_of(name).connect(address)
        stack.callback(second.drop)
        if name == "aha_wam":  # one address is one client there, and the first one has the seat
            assert refused(second.infer, images(), state()) == "not_controller"
        else:
            assert second.infer(images(), state()).shape == (16, 2)


def mutated(data, rng):
    """One of the usual accidents and attacks on a valid message."""
    data = bytearray(data)
    kind = rng.randrange(7)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        return bytes(data) + rng.randbytes(rng.randrange(1, 64))
    if kind == 2:
        return rng.randbytes(rng.randrange(1, 2048))
    if kind == 3:  # a piece twice
        start = rng.randrange(len(data))
        return bytes(data[:start] + data[start : start + 64] + data[start:])
    if kind == 4:  # a hole
        start = rng.randrange(len(data))
        return bytes(data[:start] + data[start + rng.randrange(1, 32) :])
    where = min(len(data), 256) if kind == 5 else len(data)  # the head holds keys and lengths
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(where)] = rng.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDC, 0xDF, 0xFF, rng.randrange(256)))
    return bytes(data)


def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fuzz(served, num_frames, seed=5):
    probe, address, _ = served
    rng, outcomes, client, settled = random.Random(seed), {}, None, 0
    for i in range(num_frames):
        client = client or probe.connect(address)
        outcome = client.send_raw(mutated(client.raw(), rng))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if not client.is_open:
            client.drop()
            client = None
        if i == num_frames // 4:
            settled = resident_bytes()
    grown = resident_bytes() - settled
    if client is not None:
        client.close()
    assert set(outcomes) <= CODES | {"answer", "closed"}, outcomes
    assert outcomes.get("bad_request", 0) + outcomes.get("closed", 0) > num_frames // 3, outcomes
    assert "internal" not in outcomes, outcomes
    assert grown < GROWTH_BYTES, f"{grown} bytes"
    healthy = probe.connect(address)
    wait_for(lambda: served[2].controller is None, "the client has left")
    assert healthy.infer(images(), state()).shape == (16, 2)
    healthy.close()


def test_a_few_hundred_damaged_frames_do_no_harm(served):
    fuzz(served, FAST_FRAMES)


@pytest.mark.soak
def test_ten_thousand_damaged_frames_do_no_harm(served):
    fuzz(served, SOAK_FRAMES, seed=6)

"""What networks and attackers do to the aha_wam door: it stays up, answers the next client and forgets what it was sent."""

import os
import pickle
import random
import socket
import struct
import threading
import time

import psutil
import pytest

from edgewam.robot_bridge.doors.aha_wam_wire import frames
from tests.robot_bridge.doors.aha_wam_client import Client, action_request, image, infer
from tests.robot_bridge.doors.engines import NotedEngine, session
from tests.robot_bridge.doors.running import running
from tests.robot_bridge.doors.test_aha_wam_pickles import HUGE, SHAPES, Runs, mark_frame

MAX_CONNECTIONS = 8
GROWTH_BYTES = 4 << 20  # the allocator's arenas and a thread's stack; a leak of one frame in a hundred would be 40 MB
NUM_BYTES = 1 << 30


@pytest.fixture
def address():
    with running("aha_wam", session(NotedEngine()), max_connections=MAX_CONNECTIONS, open_s=2.0, idle_s=2.0) as where:
        yield where


def assert_alive(address):
    client = Client(address)
    assert client.ask(infer())["ok"]
    client.close()


def test_a_malicious_pickle_ends_the_connection_and_runs_nothing(address, tmp_path):
    mark = tmp_path / "mark"
    client = Client(address)
    client.send_frame(pickle.dumps(Runs(os.system, f"touch {mark}")))
    reply = client.receive()
    assert reply["ok"] is False and reply["fatal"] and reply["error"].startswith("bad_request: ")
    assert client.is_closed() and not mark.exists()
    assert_alive(address)


@pytest.mark.parametrize("name", ["BINBYTES8", "an array of claims", "deep tuples", "a doubling list"])
def test_claims_and_bombs_over_the_wire(address, name):
    client = Client(address)
    client.send_frame(mark_frame({**HUGE, **SHAPES}[name]))
    assert client.receive()["fatal"] and client.is_closed()
    assert_alive(address)


def test_an_oversize_frame_is_refused_by_its_length_before_it_is_read(address):
    before = psutil.Process().memory_info().rss
    for size in (9 << 20, NUM_BYTES, 0xFFFFFFFF):
        client = Client(address)
        client.socket.sendall(struct.pack("!I", size) + b"x" * 100)
        reply = client.receive()
        assert reply["error"].startswith("too_large: ") and reply["fatal"] and client.is_closed()
    assert psutil.Process().memory_info().rss - before < GROWTH_BYTES
    assert_alive(address)


def test_a_client_that_goes_in_the_middle_of_a_frame_frees_its_place(address):
    frame = pickle.dumps(infer())
    for end in (1, 3, 4, 5, len(frame) // 2):
        client = Client(address)
        client.socket.sendall((struct.pack("!I", len(frame)) + frame)[:end])
        client.close()
    assert_alive(address)


def test_a_frame_that_trickles_is_cut_off(address, monkeypatch):
    monkeypatch.setattr(frames, "FRAME_S", 0.5)
    client = Client(address)
    frame = pickle.dumps(infer())
    client.socket.sendall(struct.pack("!I", len(frame)))
    begin_s, data = time.monotonic(), iter(frame)
    with pytest.raises(OSError):
        while time.monotonic() - begin_s < 5:
            client.socket.sendall(bytes([next(data)]))
            time.sleep(0.05)
    assert time.monotonic() - begin_s < 4
    client.close()
    assert_alive(address)


def test_a_silent_connection_is_closed(address):
    silent = Client(address)
    polite = Client(address)
    assert polite.ask(infer())["ok"]
    begin_s = time.monotonic()
    assert silent.is_closed() and polite.is_closed()
    assert time.monotonic() - begin_s < 6
    assert_alive(address)


def test_a_client_that_does_not_read_its_replies_stops_nobody(address, monkeypatch):
    monkeypatch.setattr(frames, "SEND_S", 0.5)
    deaf = Client(address)
    deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.socket.settimeout(0.5)
    frame = pickle.dumps({"type": "config"})
    try:
        for _ in range(200_000):
            deaf.send_frame(frame)
    except OSError:
        pass  # the door has stopped reading
    assert_alive(address)
    deaf.close()


def test_a_hundred_connections_leave_room_for_the_next_client(address):
    many = []
    for _ in range(100):
        many.append(socket.create_connection((address.host, address.port), timeout=5))
        time.sleep(0.002)  # the door's thread shares this interpreter
    for connection in many:
        connection.close()
    end_s = time.monotonic() + 5
    while True:
        try:
            return assert_alive(address)
        except (OSError, AssertionError):
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_connections_beyond_the_limit_are_closed_at_once(address):
    first = [Client(address) for _ in range(MAX_CONNECTIONS)]
    time.sleep(0.3)
    extra = Client(address)
    begin_s = time.monotonic()
    assert first[0].is_closed() and time.monotonic() - begin_s < 1, "who has said nothing for longest makes room"
    for client in (*first[1:], extra):
        assert client.ask({"type": "config"})["ok"]
    late = Client(address)
    begin_s = time.monotonic()
    assert late.is_closed() and time.monotonic() - begin_s < 1, "nobody makes room who has spoken"
    extra.close()
    for client in first:
        client.close()


def test_the_door_ends_while_clients_wait():
    with running("aha_wam", session(NotedEngine())) as where:
        clients = [Client(where) for _ in range(3)]
        clients[0].send(action_request())  # waits for a first refresh
        time.sleep(0.2)
    for client in clients:
        client.close()


def mutations(seed):
    """Endless frames: valid messages with bytes flipped, cut, doubled and spliced, and plain noise."""
    rng = random.Random(seed)
    valid = [
        pickle.dumps(message, protocol=protocol) for message in (infer(), image(), action_request()) for protocol in (3, 4, 5)
    ]
    while True:
        frame = bytearray(rng.choice(valid))
        match rng.randrange(6):
            case 0:
                for _ in range(rng.randint(1, 8)):
                    frame[rng.randrange(len(frame))] = rng.randrange(256)
            case 1:
                del frame[rng.randrange(len(frame)) :]
            case 2:
                start = rng.randrange(len(frame))
                frame[start:start] = frame[start : start + rng.randint(1, 64)]
            case 3:
                other = rng.choice(valid)
                frame = bytearray(frame[: rng.randrange(len(frame))] + other[rng.randrange(len(other)) :])
            case 4:
                frame = bytearray(rng.randbytes(rng.randint(0, 200)))
            case 5:
                start = rng.randrange(len(frame))
                frame[start : start + 8] = struct.pack("<Q", rng.choice((0, 1, 1 << 20, 1 << 31, 1 << 62)))
        yield bytes(frame)


def fuzz(address, num_frames, seed):
    frames_of = mutations(seed)
    answered = closed = 0
    client = None
    settled = psutil.Process().memory_info().rss
    for number in range(num_frames):
        client = client or Client(address)
        try:
            client.send_frame(next(frames_of))
            reply = client.receive()
        except ConnectionError:
            reply = {"fatal": True}
            closed += 1
        assert reply.get("ok") or reply.get("fatal") or reply["error"].split(":")[0] in ("bad_request", "too_large", "no_plan")
        answered += 1
        if reply.get("fatal"):
            client.close()
            client = None
        if number == num_frames // 4:
            settled = psutil.Process().memory_info().rss
    if client is not None:
        client.close()
    assert answered == num_frames and closed < num_frames / 50  # a refusal is nearly always read; a full backlog closes
    assert psutil.Process().memory_info().rss - settled < GROWTH_BYTES
    assert threading.active_count() < MAX_CONNECTIONS + 8
    assert_alive(address)


def test_five_hundred_damaged_frames(address, monkeypatch):
    monkeypatch.setattr("edgewam.robot_bridge.doors.aha_wam.FIRST_CONTEXT_S", 0.0)
    fuzz(address, 500, seed=1)


@pytest.mark.soak
def test_ten_thousand_damaged_frames(address, monkeypatch):
    monkeypatch.setattr("edgewam.robot_bridge.doors.aha_wam.FIRST_CONTEXT_S", 0.0)
    fuzz(address, 10_000, seed=2)

"""The openpi door as its protocol promises it, and against strangers: tokens, web pages, garbage, slow and many connections."""

import http.client
import socket
import threading
import time

import msgpack
import numpy as np
import pytest

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.client import EdgewamClient
from edgewam.robot_bridge.remote import open_policy
from edgewam.robot_bridge.serving import packing
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.handler import DoorError
from tests.robot_bridge.doors.openpi_probe import array, connect
from tests.robot_bridge.doors.running import Refused, running
from tests.robot_bridge.serving.fake_engine import CAMERAS, FakeEngine, images, session, state

openpi_client = pytest.importorskip("openpi_client")
# openpi-client 0.1.2 opens its connection in a way that websockets 17 calls outdated
old_client = pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def handler(engine):
    return session(engine)


@pytest.fixture
def address(handler):
    with running("openpi", handler) as at:
        yield at


@pytest.fixture(scope="module")
def shared():
    """A door that many strangers visit, and its engine."""
    engine = FakeEngine()
    with running("openpi", session(engine)) as at:
        yield at, engine


def policy(address, **options):
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    return WebsocketClientPolicy(address.host, address.port, **options)


def looked(value=0, *joints, **more):
    return {"images": images(value), "state": state(*joints), **more}


def get(address, path, **headers):
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def refused(call, *arguments):
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value


@old_client
def test_the_unmodified_client_gets_metadata_and_actions(address):
    client = policy(address)
    metadata = client.get_server_metadata()
    assert metadata["cameras"] == {name: list(shape) for name, shape in CAMERAS.items()}
    assert (metadata["state_dim"], metadata["action_dim"], metadata["horizon"], metadata["control_hz"]) == (2, 2, 16, 50.0)
    for i in range(30):
        result = client.infer(looked(i, 0.5, i / 32, tick=i))
        assert result["actions"].dtype == np.float32
        np.testing.assert_array_equal(result["actions"], np.tile(np.float32([i + 0.5, i / 32]), (16, 1)))
        assert result["server_timing"]["infer_ms"] > 0
        assert ("prev_total_ms" in result["server_timing"]) == (i > 0)
        assert result["tick"] == i
    client._ws.close()


@old_client
def test_the_unmodified_broker_hands_out_rows(address):
    from openpi_client.action_chunk_broker import ActionChunkBroker

    client = policy(address)
    broker = ActionChunkBroker(client, 16)
    rows = [broker.infer(looked(i))["actions"] for i in range(32)]
    assert [row[0] for row in rows] == [np.float32(0.25)] * 16 + [np.float32(16.25)] * 16
    client._ws.close()


@old_client
def test_the_unmodified_client_sees_a_refusal_as_an_error_and_can_connect_again(address, engine):
    client = policy(address)
    with pytest.raises(RuntimeError, match=r"bad_request: .*finite") as caught:
        client.infer(looked(0, np.nan, 0.0))
    assert "Traceback" not in str(caught.value)
    assert not engine.calls
    again = policy(address)
    assert again.infer(looked())["actions"].shape == (16, 2)
    client._ws.close()
    again._ws.close()


@old_client
def test_a_token_is_asked_for_when_there_is_one(handler):
    from websockets.exceptions import InvalidStatus

    with running("openpi", handler, token=TOKEN) as address:
        for key in (None, TOKEN[:-1] + "0", TOKEN.upper()):
            with pytest.raises(InvalidStatus, match="401"):
                policy(address, api_key=key)
        assert get(address, "/", Authorization=f"Bearer {TOKEN}")[0] == 401
        assert get(address, "/healthz") == (200, b"OK\n")
        client = policy(address, api_key=TOKEN)
        assert client.infer(looked())["actions"].shape == (16, 2)
        client._ws.close()


def test_a_web_page_cannot_talk_to_a_robot_on_the_readers_own_machine(address):
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    status, _ = get(address, "/", Origin="https://example.org", **{"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}, **upgrade)
    assert status == 403


def test_an_option_that_it_does_not_have_is_said(handler):
    with pytest.raises(EdgewamError, match="has no option colour"), running("openpi", handler, extra={"colour": "red"}):
        pass


def test_an_address_that_others_reach_needs_a_token(handler):
    with pytest.raises(EdgewamError, match="--token-file"), running("openpi", handler, Address("0.0.0.0")):
        pass


@pytest.mark.parametrize("prefix", ["observation/", "observation/images/"])
def test_flat_keys_and_channels_first_are_understood(address, prefix):
    client = connect(address)
    given = images(3)
    given["cam_high"][0, 0, 0] = 9
    request = {prefix + name: array(np.ascontiguousarray(image.transpose(2, 0, 1))) for name, image in given.items()}
    reply = client.ask(msgpack.packb({**request, "observation/state": [0.25, 0.5], "ignored": [1, 2, 3]}))
    np.testing.assert_array_equal(reply["actions"][0], np.float32([9.25, 0.5]))
    client.close()


def lying(**changes):
    return msgpack.packb({"state": {**array(state()), **{key.encode(): value for key, value in changes.items()}}})


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\xc1", b"\x80", b"\x90", msgpack.packb([1]), msgpack.packb(None), msgpack.packb("state"), msgpack.packb({1: 2}),
        msgpack.packb({"state": 3}), msgpack.packb({b"state": [0.0, 0.0]}), msgpack.packb({"command": "arm"}),
        msgpack.packb({"command": {"stop": 1}}), msgpack.packb({"command": "reset", "prompt": 3}),
        msgpack.packb({"command": "reset", "seed": -1}), msgpack.packb({"state": msgpack.ExtType(5, b"x")}),
        lying(dtype="|O"), lying(dtype="<f8"), lying(dtype=">f4"), lying(dtype="|V4"), lying(shape=[3]), lying(shape=[1 << 62]),
        lying(shape=[-2]), lying(shape=None), lying(data=None), lying(data=b""), b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdc\x00\x40" + b"\x9f" * 64, b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", "text",
    ],
)  # fmt: skip
def test_malformed_messages_are_bad_requests_without_a_traceback(shared, message):
    address, engine = shared
    engine.calls.clear()
    client = connect(address)
    found = refused(client.ask, message)
    assert found.code == "bad_request"
    assert len(str(found)) < 400 and "Traceback" not in str(found)
    assert not engine.calls
    client.close()


def test_a_message_of_many_small_objects_is_refused_before_it_fills_the_memory():
    begin = time.thread_time()  # of this thread: who else is busy does not count
    for bomb in (
        b"\xdc\x00\x3f" * 500 + b"\x90",
        b"\x9f" + (b"\x9f" + b"\x90" * 15) * 500_000,
        b"\xde\x00\x40" + b"\xa1a\x90" * 64,
    ):
        with pytest.raises(DoorError):
            packing.unpack(bomb)
    assert time.thread_time() - begin < 2.0  # the second is 8 MB, which would be half a million lists


def test_what_is_packed_is_unpacked_and_nothing_else_is_packed():
    message = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float32(0.5),
        "c": [1, "x", None],
        "d": np.zeros((0, 3)),
    }
    found = packing.unpack(packing.pack(message))
    np.testing.assert_array_equal(found["a"], message["a"])
    assert (found["b"], found["c"], found["d"].shape) == (0.5, [1, "x", None], (0, 3))
    for value in (np.array([object()]), np.zeros(2, np.complex64), np.zeros(2, ">f4"), object()):
        with pytest.raises(TypeError):
            packing.pack({"a": value})


GARBAGE = {
    "nothing": b"",
    "bytes": bytes(range(256)) * 40,
    "no http": b"\r\n\r\n",
    "post": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000,
    "many headers": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000,
    "two keys": b"GET / HTTP/1.1\r\nAuthorization: Api-Key a\r\nAuthorization: Api-Key b\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_instead_of_http_ends_that_connection_only(shared, name):
    address, _ = shared
    with socket.create_connection((address.host, address.port), 10) as plug:
        plug.sendall(GARBAGE[name])
        plug.shutdown(socket.SHUT_WR)
        with_reply = b""
        try:
            while piece := plug.recv(65536):
                with_reply += piece
        except ConnectionResetError:
            pass
    assert b"Traceback" not in with_reply
    assert get(address, "/healthz") == (200, b"OK\n")


def shaken(address):
    """A raw socket behind a WebSocket handshake."""
    plug = socket.create_connection((address.host, address.port), 10)
    plug.sendall(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert plug.recv(65536).startswith(b"HTTP/1.1 101")
    return plug


FRAMES = {
    "reserved bits": b"\xf2\x80\0\0\0\0",
    "unknown opcode": b"\x8b\x80\0\0\0\0",
    "unmasked": b"\x82\x05hello",
    "4 GB announced": b"\x82\xff\0\0\0\1\0\0\0\0\0\0\0\0",
    "exabytes announced": b"\x82\xff\x7f" + b"\xff" * 7 + b"\0\0\0\0",
    "long ping": b"\x89\xfe\x01\x00" + b"\0" * 260,
    "continuation of nothing": b"\x80\x80\0\0\0\0",
    "bad close": b"\x88\x81\0\0\0\0\1",
    "bad utf-8": b"\x81\x82\0\0\0\0\xff\xff",
}


@pytest.mark.parametrize("name", FRAMES)
def test_broken_websocket_frames_end_that_connection_only(shared, name):
    address, _ = shared
    with shaken(address) as plug:
        plug.sendall(FRAMES[name])
        received = b"."
        while received:
            try:
                received = plug.recv(65536)
            except ConnectionResetError:
                break
    assert get(address, "/healthz") == (200, b"OK\n")


def closes_within(plug, seconds):
    plug.settimeout(seconds)
    try:
        while plug.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_who_says_nothing_or_never_finishes_is_dropped(handler):
    with running("openpi", handler, open_s=1.0, idle_s=1.0) as address:
        silent = socket.create_connection((address.host, address.port), 10)
        slow = socket.create_connection((address.host, address.port), 10)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        idle, half = shaken(address), shaken(address)
        half.sendall(b"\x82\xfe\x10\x00\0\0\0\0" + b"x" * 100)
        for plug in (silent, slow, idle, half):
            assert closes_within(plug, 8.0)
            plug.close()


def test_who_floods_with_pings_and_reads_no_echo_is_dropped(address):
    with shaken(address) as plug:
        plug.settimeout(10)
        pings = (b"\x89\xfd\0\0\0\0" + b"x" * 125) * 500
        with pytest.raises(ConnectionError):
            for _ in range(1000):  # 64 MB, of which the kernel's buffers take some
                plug.sendall(pings)
    assert get(address, "/healthz") == (200, b"OK\n")


def test_a_hundred_connections_do_not_starve_the_first(handler):
    with running("openpi", handler, max_connections=8) as address:
        client = connect(address)
        client.infer(images(), state())
        crowd = []
        for _ in range(100):
            try:
                crowd.append(socket.create_connection((address.host, address.port), 10))
            except OSError:
                break
        assert client.infer(images(5), state())[0, 0] == np.float32(5.25)
        dropped = sum(closes_within(plug, 0.05) for plug in crowd)
        assert dropped >= 92
        for plug in crowd:
            plug.close()
        client.close()


def test_our_client_reads_resets_and_stops(address, engine, handler):
    with EdgewamClient(address.host, address.port) as client:
        assert client.metadata["state_dim"] == 2
        client.reset("wave", 7)
        assert engine.episodes == [("wave", 7)]
        answer = client.infer(images(2), state(), tick=5)
        assert (answer.tick, answer.actions[0].tolist()) == (5, [2.25, 0.5])
        with pytest.raises(DoorError) as caught:
            client.infer(images(), state(np.inf, 0.0))
        assert caught.value.code == "bad_request"
        assert client.infer(images(), state()).actions.shape == (16, 2)  # it has connected again
        with EdgewamClient(address.host, address.port) as other:
            with pytest.raises(DoorError, match="Another client"):
                other.infer(images(), state())
            other.stop()
        with pytest.raises(DoorError) as caught:
            client.infer(images(), state())
        assert caught.value.code == "stopped"
        handler.clear_stop()
        assert client.infer(images(), state()).actions.shape == (16, 2)


def test_our_client_knows_bundles_of_many_instructions_and_strangers_may_send_none_of_that(address, handler):
    prompts = [f"task {number}" for number in range(300)]
    handler._metadata["prompts"] = prompts
    with EdgewamClient(address.host, address.port) as client:
        assert client.metadata["prompts"] == prompts
    with pytest.raises(DoorError):
        packing.unpack(packing.pack({"prompts": prompts}))


@pytest.mark.parametrize("change", [{"tick": "x"}, {"tick": None}, {"context_number": 1.5}, {"server_timing": 3}, {"actions": 1}])
def test_our_client_refuses_an_answer_that_is_none(change, monkeypatch):
    client = EdgewamClient()
    good = {"actions": np.zeros((16, 2), np.float32), "tick": 3}
    monkeypatch.setattr(client, "_ask", lambda request: good)
    assert client.infer({}, state()).tick == 3
    monkeypatch.setattr(client, "_ask", lambda request: {**good, **change})
    with pytest.raises(EdgewamError, match="sent no action chunk"):
        client.infer({}, state())


def test_our_client_over_a_unix_socket(handler, tmp_path):
    path = tmp_path / "door"
    with running("openpi", handler, Address(path=path)), EdgewamClient(path=path) as client:
        assert client.infer(images(), state()).actions.shape == (16, 2)


def test_our_client_says_what_is_wrong(handler, tmp_path):
    with pytest.raises(EdgewamError, match="edgewam serve"):
        EdgewamClient(port=1).reset()
    with pytest.raises(EdgewamError, match="edgewam serve"):
        EdgewamClient(path=tmp_path / "none").reset()
    with running("openpi", handler, token=TOKEN) as address:
        with pytest.raises(DoorError) as caught:
            EdgewamClient(address.host, address.port).reset()
        assert caught.value.code == "unauthorized"
        with EdgewamClient(address.host, address.port, token=TOKEN) as client:
            client.reset()


def test_a_late_answer_is_an_error_and_never_the_next_ones_answer(address, engine):
    from edgewam.core.records import Observation

    remote = open_policy(address.host, address.port, timeout_s=1.0)
    remote.reset("reach", 1)
    chunk = remote.infer(Observation(images(1), state(), 3, 99))
    assert (chunk.start_tick, chunk.observation_tick, chunk.t_capture_ns, chunk.actions[0, 0]) == (3, 3, 99, 1.25)
    engine.stall_s = 2.0
    with pytest.raises(EdgewamError, match="did not answer"):
        remote.infer(Observation(images(2), state(), 19))
    engine.stall_s = 0.0
    end = time.monotonic() + 10.0
    while True:  # until the server has noticed that the old connection is gone
        try:
            chunk = remote.infer(Observation(images(3), state(), 35))
            break
        except DoorError as error:
            assert error.code == "not_controller" and time.monotonic() < end
            time.sleep(0.05)
    assert chunk.actions[0, 0] == 3.25
    assert engine.episodes[-1] == ("reach", 1)
    remote.close()


def test_the_remote_policy_is_a_policy(address):
    from edgewam.robot_bridge.policy import Policy
    from edgewam.robot_bridge.policy import open_policy as opened

    remote = opened("edgewam.robot_bridge.remote.open_policy", {"host": address.host, "port": address.port})
    assert isinstance(remote, Policy)
    with pytest.raises(EdgewamError, match="reset"):
        remote.infer(None)
    remote.close()


def test_two_clients_at_once_get_their_own_answers_when_control_passes(address, handler):
    first, second = connect(address), connect(address)
    first.infer(images(), state())
    codes = []
    other = threading.Thread(target=lambda: codes.append(refused(second.infer, images(), state()).code))
    other.start()
    for i in range(20):
        assert first.infer(images(i), state())[0, 0] == i + 0.25
    other.join()
    assert codes == ["not_controller"]
    first.close()
    second.close()

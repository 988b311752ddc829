"""The flows of AHA-WAM's deploy protocol as its own clients speak them, written from the facts (aha_wam.md 5.2)."""

import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edgewam.core import plugins
from edgewam.core.errors import EdgewamError
from edgewam.core.observation import compose_images
from edgewam.robot_bridge.doors import aha_wam
from edgewam.robot_bridge.doors.aha_wam_wire import seats
from edgewam.robot_bridge.doors.aha_wam_wire.messages import cameras_of, canvas_size
from edgewam.robot_bridge.robots.aloha_sim import SPEC as ALOHA
from edgewam.robot_bridge.serving.handler import DoorError
from tests.robot_bridge import fakes
from tests.robot_bridge.doors.aha_wam_client import FRONT, STATE, Client, action_request, image, infer
from tests.robot_bridge.doors.engines import HORIZON, NotedEngine, session
from tests.robot_bridge.doors.running import running
from tests.waiting import wait_for


@pytest.fixture
def engine():
    return NotedEngine()


@pytest.fixture
def address(engine):
    with running("aha_wam", session(engine)) as where:
        yield where


@pytest.fixture
def connect(address):
    clients = []

    def make():
        clients.append(Client(address))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_it_is_a_door_that_has_to_be_asked_for_twice():
    assert "aha_wam" in plugins.names("door")
    with pytest.raises(EdgewamError, match="--option allow_pickle=true"):
        aha_wam.settings_of({})
    with pytest.raises(EdgewamError, match="no option colour"):
        aha_wam.settings_of({"allow_pickle": "true", "colour": "red"})
    with pytest.raises(EdgewamError, match="allow_pickle must be true or false, got 'ture'"):
        aha_wam.settings_of({"allow_pickle": "ture"})


def test_the_synchronous_flow_gives_the_fields_of_upstream(connect, engine):
    client = connect()
    assert client.ask({"type": "reset", "instruction": "reach"}) == {"ok": True, "type": "reset_ack"}
    for step in (1, 2):
        reply = client.ask(infer())
        chunk = reply.pop("action_chunk")
        assert reply.pop("model_latency_ms") > 0
        assert reply == {"ok": True, "type": "action_chunk", "server_inference_step": step}
        assert chunk.dtype == np.float32 and chunk.shape == (HORIZON, 2) and (chunk == len(engine.calls)).all()
    assert engine.names() == ["reset", "infer", "infer"]
    observation = engine.calls[-1][1]
    np.testing.assert_array_equal(observation.state, STATE)
    np.testing.assert_array_equal(observation.images["cam_high"], FRONT)


def test_a_connection_of_the_synchronous_flow_begins_an_episode(connect, engine):
    for _ in range(3):
        client = connect()
        assert client.ask(infer())["ok"]
        assert client.ask(infer())["ok"]
        client.close()  # the next one connects at once
    assert engine.names() == ["reset", "infer", "infer"] * 3


def test_the_instruction_of_a_request_is_the_prompt(connect, engine):
    client = connect()
    client.ask({"type": "reset", "instruction": "wave"})
    client.ask(infer(instruction="wave"))
    client.ask(infer(instruction="reach"))
    assert [call[1] for call in engine.calls if call[0] == "reset"] == ["wave", "reach"]


def test_the_asynchronous_flow_over_two_connections(connect, engine):
    actions = connect()
    assert actions.ask({"type": "reset", "instruction": "reach"})["type"] == "reset_ack"
    images = connect()
    assert images.ask(image()) == {"ok": True, "type": "image_ack", "queued": True}
    for number in (1, 2):
        reply = actions.ask(action_request(request_id=number))
        assert reply.pop("action_chunk").shape == (HORIZON, 2) and reply.pop("model_latency_ms") > 0
        assert reply == {
            "ok": True, "type": "action_chunk", "request_id": number, "kv_version": 1, "kv_age_ms": 5 * 1000 / 50.0,
            "video_prefill_ms": 7.0,
        }  # fmt: skip
    assert images.ask(image())["queued"]
    assert actions.ask(action_request())["kv_version"] == 2
    assert engine.names() == ["reset", "plan", "act", "act", "plan", "act"]


def test_the_asynchronous_flow_when_images_come_first(connect, engine):
    images, actions = connect(), connect()
    assert images.ask(image())["queued"]
    reply = actions.ask(action_request())
    assert reply["ok"] and reply["kv_version"] == 1 and "request_id" not in reply
    assert engine.names() == ["reset", "plan", "act"], "the image began the episode, and its context served the request"


def test_a_connection_that_opens_beside_another_does_not_reset_it(connect, engine):
    actions = connect()
    actions.ask({"type": "reset", "instruction": "reach"})
    connect().ask(image())
    connect().ask({"type": "config"})
    actions.ask(action_request())
    assert engine.names().count("reset") == 1


def test_the_first_request_waits_for_the_first_refresh(connect, engine):
    engine.is_slow = True
    actions, images = connect(), connect()
    actions.send(action_request(request_id="a"))
    assert engine.entered.wait(5)
    images.ask(image())
    threading.Timer(0.2, engine.finish_plan).start()
    reply = actions.receive()
    assert reply["ok"] and reply["request_id"] == "a" and reply["kv_version"] == 1


def test_a_context_that_became_too_old_is_an_error_reply_and_no_silence(connect, engine):
    actions, images = connect(), connect()
    images.ask(image())
    actions.ask(action_request())
    engine.forget_context()
    begin_s = time.monotonic()
    reply = actions.ask(action_request(request_id=9))
    assert time.monotonic() - begin_s < aha_wam.FIRST_CONTEXT_S / 2
    assert reply == {"ok": False, "type": "action_error", "request_id": 9, "error": "no_plan: There is no context for this tick."}
    images.ask(image())
    assert actions.ask(action_request(request_id=10))["request_id"] == 10, "the next answer belongs to the next request"


def test_requests_sent_without_waiting_are_answered_in_order(connect, engine):
    client = connect()
    client.ask({"type": "reset"})
    client.send(image())
    for number in range(20):
        client.send(action_request(request_id=number))
    assert client.receive()["type"] == "image_ack"
    replies = [client.receive() for _ in range(20)]
    assert [reply["request_id"] for reply in replies] == list(range(20))
    values = [reply["action_chunk"][0, 0] for reply in replies]
    assert values == sorted(values) and len(set(values)) == 20


def test_only_one_connection_sends_the_actions(connect):
    first, second = connect(), connect()
    first.ask({"type": "reset"})
    for message in (infer(), action_request(), {"type": "reset"}):
        reply = second.ask(message)
        assert not reply["ok"] and reply["error"].startswith("not_controller: ")
    first.close()
    assert second.ask(infer())["ok"]


def test_nobody_slips_an_image_into_the_synchronous_flow(connect, engine):
    first, second = connect(), connect()
    assert first.ask(infer())["ok"]
    assert second.ask(image())["error"].startswith("not_controller: ")
    assert first.ask(infer())["ok"] and engine.names() == ["reset", "infer", "infer"]


def test_a_connection_that_was_cut_without_a_word_is_replaced(connect, monkeypatch):
    first, second = connect(), connect()
    first.ask({"type": "reset"})
    assert second.ask(infer())["error"].startswith("not_controller: ")
    monkeypatch.setattr(seats, "SILENT_S", 0.1)
    assert second.ask(infer())["ok"]
    monkeypatch.undo()
    assert first.ask(infer())["error"].startswith("not_controller: "), "the seat is the second one's now"


def test_a_local_session_keeps_the_door_shut_for_other_doors(engine):
    handler = session(engine)
    with running("aha_wam", handler) as where:
        client = Client(where)
        client.ask({"type": "reset"})
        with pytest.raises(DoorError, match="controls the robot"):
            handler.reset("somebody else", None)
        client.close()
        wait_for(lambda: handler.controller is None)
        handler.reset("somebody else", None)


def test_config_changes_nothing(connect, engine):
    assert connect().ask({"type": "config", "kv_max_age_ms": 1}) == {"ok": True, "type": "config_ack"}
    assert not engine.calls


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "kill"}, "bad_request: unknown request type: 'kill'"),
        ({"type": {}}, "bad_request: unknown request type"),
        ({"type": np.zeros(3)}, "bad_request: unknown request type: ndarray"),
        ({}, "bad_request: unknown request type: None"),
        (infer(images=np.zeros(3)), "bad_request: images must be a dict"),
        (infer(images={"front": {}}), "bad_request: Camera 'cam_high' must be"),
        (infer(state={}), "bad_request: The state"),
        (infer(state=np.zeros((2, 2), np.float32)), "bad_request: The state"),
        (infer(instruction=np.zeros(3)), "bad_request: A prompt"),
        (infer(tick=np.zeros(3)), "bad_request: A tick"),
        (infer(tick=True), "bad_request: A tick"),
        (["infer"], "bad_request: A message must be a dict"),
        (infer(state=np.zeros(3, np.float32)), r"bad_request: The state must be float32\[2\]"),
        (infer(state=np.array([np.nan, 0], np.float32)), "bad_request: The state must be finite"),
        (infer(state=None), "bad_request: infer must contain"),
        (infer(images={}), "bad_request: images must hold 'front' or all of: cam_high"),
        (infer(images={"front": FRONT[:2]}), r"bad_request: Camera 'cam_high' must be uint8\[4, 6, 3\]"),
        (infer(images={"front": FRONT.astype(np.float32)}), "bad_request: Camera 'cam_high' must be uint8"),
        (infer(instruction=7), "bad_request: A prompt"),
        (infer(tick=-1), "bad_request: A tick"),
        (action_request(images=None), "bad_request: action_request must contain"),
        ({"type": "image"}, "bad_request: image request must contain"),
    ],
)
def test_a_wrong_message_gets_a_code_and_a_sentence_and_the_connection_lives(connect, message, text):
    client = connect()
    reply = client.ask(message)
    assert reply["ok"] is False and "fatal" not in reply
    assert re.match(text, reply["error"])
    assert "Traceback" not in reply["error"] and "Error(" not in reply["error"]
    assert client.ask(infer())["ok"]


def test_a_failure_of_ours_is_a_code_without_details(connect, engine):
    client = connect()
    engine.failure = RuntimeError("secret path /home/someone")
    reply = client.ask(infer())
    assert reply == {"ok": False, "server_inference_step": 1, "error": "internal: The server failed at this. See its log."}
    engine.failure = DoorError("engine_restarting", "The engine restarts.")
    assert client.ask(infer())["error"] == "engine_restarting: The engine restarts."
    engine.failure = None
    assert client.ask(infer())["ok"]


def test_a_stop_reaches_this_door(engine):
    handler = session(engine)
    with running("aha_wam", handler) as where:
        client = Client(where)
        assert client.ask(infer())["ok"]
        handler.stop("operator")
        for message in (infer(), action_request(), image(), {"type": "reset"}):
            assert client.ask(message)["error"].startswith("stopped: ")
        client.close()


def test_rows_can_be_limited(engine):
    with running("aha_wam", session(engine), extra={"allow_pickle": "true", "max_return_actions": "4"}) as where:
        client = Client(where)
        assert client.ask(infer())["action_chunk"].shape == (4, 2)
        client.close()


def test_a_door_with_a_token_wants_it_first(engine):
    with running("aha_wam", session(engine), token="0123456789abcdef" * 2) as where:
        for wrong in (infer(), infer(token="no"), infer(token=7)):
            client = Client(where)
            reply = client.ask(wrong)
            assert reply["error"].startswith("unauthorized: ") and reply["fatal"] and client.is_closed()
            client.close()
        client = Client(where)
        assert client.ask({"type": "reset", "token": "0123456789abcdef" * 2})["ok"] and client.ask(infer())["ok"]
        client.close()
    assert engine.names() == ["reset", "infer"]


def test_a_composed_front_is_cut_into_cameras_that_compose_to_it_again():
    height, width = canvas_size(ALOHA.camera_shapes)
    canvas = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cameras = cameras_of({"front": canvas}, ALOHA.camera_shapes, is_resizing=False)
    assert {name: image.shape for name, image in cameras.items()} == dict(ALOHA.camera_shapes)
    np.testing.assert_array_equal(compose_images(cameras, height, width), canvas)


@pytest.mark.parametrize("is_resizing", [False, True])
def test_a_front_that_is_no_canvas_is_refused_for_three_cameras(is_resizing):
    with pytest.raises(DoorError, match=r"composed canvas uint8\[192, 160, 3\], or all of: cam_high, cam_left_wrist"):
        cameras_of({"front": np.zeros((128, 160, 3), np.uint8)}, ALOHA.camera_shapes, is_resizing)
    uneven = {**ALOHA.camera_shapes, "cam_left_wrist": (60, 80, 3)}
    assert canvas_size(uneven) is None
    with pytest.raises(DoorError, match="has 3 cameras: send all of"):
        cameras_of({"front": np.zeros((192, 160, 3), np.uint8)}, uneven, is_resizing)


def test_images_of_another_size_are_resized_as_upstream_does_only_when_asked(engine):
    big = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with running("aha_wam", session(engine), extra={"allow_pickle": "true", "resize_images": "true"}) as where:
        client = Client(where)
        assert client.ask(infer(images={"front": big}))["ok"]
        for wrong in (big[..., 0], big.astype(np.int32), np.zeros((0, 6, 3), np.uint8)):
            assert client.ask(infer(images={"front": wrong}))["error"].startswith("bad_request: ")
        client.close()
    expected = np.asarray(Image.fromarray(big).resize((6, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(engine.calls[-1][1].images["cam_high"], expected)


def test_three_cameras_by_name():
    engine = NotedEngine(action_dim=2)
    spec = replace(fakes.SPEC, camera_shapes={name: (4, 6, 3) for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")})
    with running("aha_wam", session(engine, spec)) as where:
        client = Client(where)
        views = {name: np.full((4, 6, 3), value, np.uint8) for value, name in enumerate(spec.camera_shapes)}
        assert client.ask(infer(images=views))["ok"]
        client.close()
    for name, view in views.items():
        np.testing.assert_array_equal(engine.calls[-1][1].images[name], view)

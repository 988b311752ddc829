"""The live page: it shows a run in a real browser, its button latches STOP, and nobody else can do anything through it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from edgewam.core.errors import EdgewamError
from edgewam.robot_bridge.clock import now_ns
from edgewam.robot_bridge.control.chunks import Reject
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.processes import view_process
from edgewam.robot_bridge.processes.spawn import Child
from edgewam.robot_bridge.processes.view_process import Live
from edgewam.robot_bridge.records.wires import LOG_ROWS
from edgewam.robot_bridge.serving.access import Address, listen
from edgewam.robot_bridge.view import server as view_server
from edgewam.robot_bridge.view.server import MAX_WATCHERS, ViewServer, serve_in_thread
from edgewam.robot_bridge.view.watch import Watch
from tests.browser import browser, chromium
from tests.robot_bridge.recorded import CAMERAS, NUM_JOINTS, PERIOD_NS
from tests.waiting import wait_for

PHONE, DESK = 375, 1280
READABLE = 4.5  # contrast of small text after WCAG 2.2, level AA
PROMPT = "</script><b>reach</b>"  # a prompt is text, whatever it looks like


def config(bridge, **more):
    limits = {"lower": [-1.0] * NUM_JOINTS, "upper": [1.0] * (NUM_JOINTS - 1) + [float("inf")]}
    told = {**bridge.config("unused"), **limits, "role": "view", "view_port": 0, "prompt": PROMPT}
    return {**told, "roles": ["io", "driver", "camera", "engine", "recorder", "view"], **more}


def test_what_it_counts_is_what_the_log_holds(bridge):
    watch = Watch(config(bridge), bridge.wires)
    watch.update()
    assert watch.glance["mode"] == "INIT" and watch.glance["counts"]["sent"] == 0 and watch.glance["silent_ms"]["io"] is None
    bridge.tick()
    watch.update()
    bridge.tick(mode=Mode.HOLD, cause=Cause.STALE_STATE, reject=Reject.JUMP, range_clamps=2, step_clamps=1, tick=4)
    bridge.tick(mode=Mode.HOLD, cause=Cause.NO_CHUNK, is_violation=1, tick=5)
    due = now_ns() - PERIOD_NS
    bridge.tick(deadline_ns=due, sent_ns=due + 7_000_000, tick=6, chunk_id=3, t_capture_ns=due - 43_000_000, context_number=2,
                context_tick=-4, state=[np.nan, 0.5, 0.25])  # fmt: skip
    bridge.status("recorder", lost=4, count=9)
    points = watch.update()
    glance = watch.glance
    assert glance["counts"] == {
        "sent": 4, "missed": 3, "late": 1, "held": 2, "rejected": 1, "clamped": 1, "violations": 1, "unseen": 0
    }  # fmt: skip
    assert glance["held_by_cause"] == {"STALE_STATE": 1, "NO_CHUNK": 1} and glance["rejected_by_cause"] == {"JUMP": 1}
    assert glance["ages_ms"]["observation"] == 50.0 and glance["ages_ms"]["context"] == 200.0
    assert sum(glance["lateness"]["counts"]) == 4 and glance["recorder"] == {"ticks": 9, "lost": 4, "has_ended": False}
    assert [point[0] for point in points] == [4, 5, 6] and points[2][2] == [None, 0.5, 0.25]
    for _ in range(LOG_ROWS + 5):
        bridge.tick()
    watch.update()
    assert watch.glance["counts"]["unseen"] == 6 and len(watch.history) == 500
    json.dumps(watch.glance, allow_nan=False)


@pytest.fixture
def served(bridge):
    """A server in this process: its address, and the source behind it."""
    made = []

    def start(token=None):
        listener, address = listen(Address("127.0.0.1", 0))
        live = Live(config(bridge), bridge.wires)
        server = ViewServer(listener, address, live, token)
        made.append(serve_in_thread(server))
        return address.port, live, server

    yield start
    for end in made:
        end()


def ask(port, method="GET", path="/", headers=None, host=None):
    """(status, body, headers) of one request; `host` replaces the right Host header."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": host or f"127.0.0.1:{port}", **(headers or {})}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, dict(answer.getheaders())


def stop_headers(port, server, **more):
    return {"Origin": f"http://127.0.0.1:{port}", "X-Edgewam-Token": server.page_token, **more}


def test_a_stop_needs_our_page_and_there_is_no_way_back(bridge, served):
    port, live, server = served()
    good = stop_headers(port, server)
    refused = [
        (403, "wrong_origin", {**good, "Origin": "http://evil.example"}),
        (403, "wrong_origin", {**good, "Origin": "null"}),
        (403, "wrong_origin", {"X-Edgewam-Token": server.page_token}),
        (403, "wrong_origin", {**good, "Sec-Fetch-Site": "cross-site"}),
        (403, "wrong_token", {**good, "X-Edgewam-Token": "x" + server.page_token[1:]}),
        (403, "wrong_token", {"Origin": good["Origin"]}),
    ]
    for status, code, headers in refused:
        got, body, _ = ask(port, "POST", "/stop", headers)
        assert (got, json.loads(body)) == (status, {"error": code})
    assert live.stops == 0 and bridge.wires["requests"].read() is None
    for count in (1, 2):
        assert json.loads(ask(port, "POST", "/stop", good)[1]) == {"stops": count}
        assert int(bridge.wires["requests"].read()[1]["stops"]) == count
    for path in ("/start", "/reset", "/arm", "/estop", "/unstop", "/config", "/stop/../reset", "/"):
        assert ask(port, "POST", path, good)[0] == 404
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert json.loads(ask(port, method, "/stop", good)[1]) == {"error": "method_not_allowed"}
    assert ask(port, "GET", "/stop", good)[0] == 405
    assert bridge.wires["control"].read() is None and live.stops == 2


def test_the_successor_of_a_killed_page_goes_on_counting_its_stops(bridge):
    assert [Live(config(bridge), bridge.wires).stop() for _ in range(3)] == [1, 2, 3], "io stops when the count grows"
    record = bridge.wires["requests"]
    record._header["sequence"][0] += 1  # what a page killed in the middle of writing leaves
    assert record.read() is None
    assert Live(config(bridge), bridge.wires).stop() > 3
    assert int(record.read()[1]["stops"]) > 3


def test_a_page_that_another_name_led_here_is_refused(served):
    port, _, _ = served()
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}.evil.example"):
        status, body, _ = ask(port, host=host)
        assert (status, json.loads(body)) == (403, {"error": "forbidden_host"}), host
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert ask(port, host=host)[0] == 200
    status, page, headers = ask(port)
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["X-Frame-Options"] == "DENY"
    assert b"<b>reach" not in page and status == 200


def test_with_a_token_only_who_knows_it_sees_anything(bridge, served, tmp_path):
    token = "0123456789abcdef0123456789abcdef"
    port, _, server = served(token)
    for header in (None, "Basic " + base64.b64encode(b"me:wrong").decode(), "Basic !", "Bearer " + token[:-1], token):
        status, body, headers = ask(port, headers={"Authorization": header} if header else None)
        assert (status, json.loads(body)) == (401, {"error": "unauthorized"}) and "Basic" in headers["WWW-Authenticate"]
    for header in ("Basic " + base64.b64encode(f"me:{token}".encode()).decode(), "Bearer " + token):
        assert ask(port, headers={"Authorization": header}, host="robot.lan")[0] == 200
        allowed = {**stop_headers(port, server), "Origin": "http://robot.lan", "Authorization": header}
        assert ask(port, "POST", "/stop", allowed, host="robot.lan")[0] == 200
    assert ask(port, "POST", "/stop", stop_headers(port, server))[0] == 401
    with pytest.raises(EdgewamError, match="can be reached from other machines"):
        view_process.run(config(bridge, view_bind="0.0.0.0"), None)
    guessable = tmp_path / "token"
    guessable.write_text("a" * 40)
    guessable.chmod(0o600)
    with pytest.raises(EdgewamError, match="can be guessed"):
        view_process.run(config(bridge, view_bind="0.0.0.0", view_token_file=str(guessable)), None)
    guessable.write_text(token)
    over = types.SimpleNamespace(wires=bridge.wires, is_stopping=True)
    told = view_process.run(config(bridge, view_bind="0.0.0.0", view_token_file=str(guessable)), over)
    assert told["address"].startswith("0.0.0.0:")


def test_requests_that_make_no_sense_get_codes_and_pictures_are_lossless(bridge, served):
    port, live, _ = served()
    sent = bridge.frame(1)
    assert ask(port, path="/camera/cam_high.png")[0] == 404
    live.update(False)
    status, body, headers = ask(port, path="/camera/cam_high.png")
    with Image.open(io.BytesIO(body)) as picture:
        assert status == 200 and headers["Content-Type"] == "image/png" and (np.asarray(picture) == sent["cam_high"]).all()
    for path in ("/camera/nobody.png", "/camera/../../etc/passwd.png", "/etc/passwd", "/events/x", "/camera/"):
        status, body, _ = ask(port, path=path)
        assert status == 404 and json.loads(body)["error"] in ("no_image", "not_found")
    for raw in (b"\x16\x03\x01\x00\xff\r\n\r\n", b"GET /\x00 HTTP/9.9\r\n\r\n", b"GET " + b"/x" * 40_000 + b"\r\n\r\n", b"\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(raw)
            answer = read_all(connection)
            assert b"Traceback" not in answer and (not answer or b'"error": "' in answer)
    assert ask(port)[0] == 200


def read_all(connection):
    found = b""
    try:
        while data := connection.recv(1 << 16):
            found += data
    except OSError:
        pass
    return found


def open_stream(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    found = b""
    while b"\n\n" not in found and b"error" not in found:
        data = connection.recv(1 << 16)
        if not data:
            break
        found += data
    return connection, found


def test_watchers_are_few_and_a_slow_one_is_dropped_without_delaying_the_others(bridge, served, monkeypatch):
    monkeypatch.setattr(view_server, "SLOW_S", 0.3)
    port, _, server = served()
    streams = [open_stream(port) for _ in range(MAX_WATCHERS)]
    assert all(b"event: hello" in greeting for _, greeting in streams)
    extra, refusal = open_stream(port)
    assert b"503" in refusal and b"too_many_clients" in refusal
    extra.close()
    reading = streams[0][0]
    reader = threading.Thread(target=read_all, args=(reading,), daemon=True)
    reader.start()
    big = {"filler": "x" * 500_000}
    longest = 0.0

    def push():
        nonlocal longest
        begin = time.monotonic()
        server.publish("glance", big)
        longest = max(longest, time.monotonic() - begin)
        return server.num_watchers == 1

    wait_for(push, "seven watchers that read nothing are dropped, the one that reads stays")
    assert longest < 1.0, "publishing waits for nobody: seven times 0.3 s would be longer"
    for connection, _ in streams:
        connection.close()
    wait_for(push_nothing(server), "a watcher that has gone is counted out")


def push_nothing(server):
    def push():
        server.publish("glance", {})
        return server.num_watchers == 0

    return push


def test_who_connects_and_asks_nothing_is_ended(served, monkeypatch):
    monkeypatch.setattr(view_server, "REQUEST_S", 0.3)
    port, _, server = served()
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(view_server.MAX_CONNECTIONS + 5)]
    for connection in idle[:8]:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")

    def are_gone():
        server.drop_slow_requests()
        return not server._requests

    wait_for(are_gone, "who asks nothing is ended")
    for connection in idle:
        read_all(connection)  # ends
        connection.close()

    def is_served():
        try:
            return ask(port)[0] == 200
        except (OSError, http.client.HTTPException):  # the threads of the others are still leaving
            return False

    wait_for(is_served, "there is room again")


class Motion:
    """A run that moves until somebody stops it, as io would."""

    def __init__(self, bridge):
        self.bridge, self.is_over = bridge, False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        bridge, step = self.bridge, 0
        while not self.is_over:
            request = bridge.wires["requests"].read()
            mode = Mode.STOP if request is not None and request[1]["stops"] else Mode.RUN
            angle = np.sin(step / 20 + np.arange(NUM_JOINTS))
            bridge.tick(mode=mode, state=angle, command=angle + 0.05, chunk_id=1, t_capture_ns=now_ns() - 30_000_000)
            bridge.status("io", count=bridge.rows, tick=bridge.rows - 1, mode=mode)
            bridge.status("recorder", lost=3)
            bridge.state(step)
            if step % 2 == 0:
                bridge.frame(step // 2 + 1, step)
            step += 1
            time.sleep(0.02)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over = True
        self.thread.join()


STOP = "document.getElementById('stop')"
CONTRAST = """
(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
  };
  const ratio = element => {
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const found = {};
  for (const mode of ["INIT", "READY", "RUN", "HOLD", "STOP", "ESTOP"]) {
    document.getElementById("banner").dataset.mode = mode;
    found[mode] = ratio(document.getElementById("mode"));
  }
  document.getElementById("stop-note").textContent = "x";
  const others = "#stop|.tile span|.tile b|.tile.bad b|figcaption|.joint span|#stop-note|#roles li.bad";
  for (const name of others.split("|"))
    found[name] = ratio(document.querySelector(name));
  return found;
})()
"""


def test_a_browser_shows_the_run_and_pressing_stop_latches(bridge, tmp_path):
    chromium()  # skips
    child = Child(config(bridge, joint_names=["elbow", "wrist", "gripper"]), bridge.wires.fds.values(), {})
    try:
        status = bridge.wires["status_view"]
        wait_for(lambda: status.read() is not None or child.exit_code is not None, "the process starts")
        assert child.exit_code is None, child.failure()
        address = f"http://127.0.0.1:{int(status.read()[1]['tick'])}"
        with Motion(bridge), browser(tmp_path / "profile") as page:
            for width in (PHONE, DESK):
                for scheme in ("light", "dark"):
                    page.look(width, scheme)
                    page.visit(address + "/")
                    wait_for(lambda: page.ask("document.getElementById('mode').textContent") == "RUN", "the state")
                    assert page.ask("document.documentElement.scrollWidth") <= width, (width, scheme)
                    box = page.ask(
                        "(r => [r.width, r.height, r.bottom])(stop.getBoundingClientRect())".replace("stop.", STOP + ".")
                    )
                    assert box[0] >= 100 and box[1] >= 48 and box[2] < 250, "a thumb finds it without scrolling"
                    low = {name: ratio for name, ratio in page.ask(CONTRAST).items() if ratio < READABLE}
                    assert not low, (width, scheme, low)
            wait_for(lambda: page.ask("[...document.images].every(i => i.naturalWidth > 10)"), "pictures")
            assert page.ask("[...document.images].map(i => i.alt)") == [f"Camera {name}" for name in CAMERAS]
            assert page.ask("[...document.querySelectorAll('.joint span')].map(s => s.textContent)") == [
                "elbow",
                "wrist",
                "gripper",
            ]
            drawn = (
                "[...document.querySelectorAll('canvas')].map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
                ".map(data => data.some(value => value > 0))"
            )
            wait_for(lambda: page.ask(drawn) == [True] * (NUM_JOINTS + 1), "traces and the histogram")
            tiles = (
                "Object.fromEntries([...document.querySelectorAll('.tile')]"
                ".map(t => [t.children[1].textContent, t.children[0].textContent]))"
            )
            wait_for(lambda: int(page.ask(tiles)["ticks sent"]) > 50, "ticks")
            shown = page.ask(tiles)
            assert shown["recorder lost"] == "3" and shown["observation age"].endswith("ms")
            assert page.ask("document.querySelector('h1').textContent") == f"fake: {PROMPT}"
            assert "not heard of" in page.ask("document.getElementById('roles').textContent"), "the engine is not there"
            page.ask("document.getElementById('stop').focus()")
            assert page.ask("document.activeElement.textContent") == "STOP"
            page.ask("document.activeElement.click()")
            wait_for(lambda: page.ask("document.getElementById('mode').textContent") == "STOP", "STOP is shown")
            assert int(bridge.wires["requests"].read()[1]["stops"]) == 1
            wait_for(lambda: "is stopped" in page.ask("document.getElementById('stop-note').textContent"), "and said")
            assert page.problems == []
            assert {url for url in page.requests if not url.startswith("data:")} == {
                f"{address}/{p}" for p in ("", "events", "stop")
            }
            control = bridge.wires["control"].blank()
            control["quit"] = 1
            bridge.wires["control"].write(control)
            wait_for(lambda: page.ask("document.getElementById('mode').textContent") == "run ended", "the end")
        assert child.wait(10) and child.results()["stops"] == 1
    finally:
        child.close()

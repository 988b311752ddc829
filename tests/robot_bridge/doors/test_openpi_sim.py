"""`edgewam serve` with the shipped bundle: a client that nobody here wrote drives the simulator to success, as does ours."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgewam.robot_bridge.client import EdgewamClient
from edgewam.robot_bridge.remote import open_policy
from edgewam.robot_bridge.serving.handler import DoorError

pytest.importorskip("openpi_client")
pytest.importorskip("mujoco", reason="needs edgewam[sim]")
pytest.importorskip("onnxruntime", reason="needs edgewam[onnx]")

# openpi-client 0.1.2 opens its connection in a way that websockets 17 calls outdated
pytestmark = pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")

START_S, END_S, BACK_S = 60.0, 20.0, 60.0
CHUNK, MAX_STEPS = 16, 300
SEED = 4101  # held out: demonstrations begin at 300001


class Server:
    """The command in a process of its own, on any free port."""

    def __init__(self, *arguments):
        self.lines = []
        command = [sys.executable, "-m", "edgewam", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.until(r"listening on 127\.0\.0\.1:(\d+) ", START_S)[1])

    def _read(self):
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def until(self, pattern, seconds):
        """Wait for a line that matches."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, "".join(self.lines)):
                return found
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)
        raise AssertionError(f"no '{pattern}' in: {''.join(self.lines)}")

    def engine_pid(self):
        """Its only child process."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        (pid,) = [pid for thread in threads for pid in (thread / "children").read_text().split()]
        return int(pid)

    def end(self, how=signal.SIGINT):
        """Ctrl-C, and its exit code."""
        self.process.send_signal(how)
        code = self.process.wait(END_S)
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def server():
    found = Server()
    yield found
    engine = found.engine_pid()
    assert found.end() == 0
    assert not os.path.exists(f"/proc/{engine}"), "the engine process outlived its server"


@pytest.fixture(scope="module")
def simulator():
    from edgewam.robot_bridge.robots import aloha_sim

    sim = aloha_sim.make()
    yield sim
    sim.close()


def environment_of(sim, with_tick):
    """The simulator as an openpi environment: one control step per action, whatever time it takes."""
    from openpi_client.runtime.environment import Environment

    class Aloha(Environment):
        steps, is_strict = 0, False

        def reset(self):
            sim.reset(SEED)

        def is_episode_complete(self):
            return self.is_strict

        def get_observation(self):
            seen = sim.observe()
            tick = {"tick": seen.tick} if with_tick else {}
            return {"images": dict(seen.images), "state": seen.state, "prompt": sim.spec.prompts[0], **tick}

        def apply_action(self, action):
            self.steps += 1
            self.is_strict = sim.step(action["actions"]).strict_success

    return Aloha()


def counter():
    """An openpi subscriber that counts."""
    from openpi_client.runtime.subscriber import Subscriber

    class Counter(Subscriber):
        episodes, steps = 0, 0

        def on_episode_start(self):
            self.episodes += 1

        def on_step(self, observation, action):
            assert action["actions"].shape == (14,)
            self.steps += 1

        def on_episode_end(self):
            self.episodes += 10

    return Counter()


@pytest.mark.parametrize(("with_tick", "max_hz"), [(True, 0), (False, 50)], ids=["in lockstep", "in real time"])
def test_the_unmodified_openpi_runtime_drives_the_simulator_to_success(server, simulator, with_tick, max_hz):
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.runtime.agents.policy_agent import PolicyAgent
    from openpi_client.runtime.runtime import Runtime
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    client = WebsocketClientPolicy("127.0.0.1", server.port)
    environment, subscriber = environment_of(simulator, with_tick), counter()
    agent = PolicyAgent(ActionChunkBroker(client, CHUNK))
    Runtime(environment, agent, [subscriber], max_hz=max_hz, max_episode_steps=MAX_STEPS).run()
    client._ws.close()
    assert environment.is_strict, f"no success within {environment.steps} steps"
    assert (subscriber.episodes, subscriber.steps) == (11, environment.steps)


def test_a_robot_that_holds_while_the_engine_is_restarted_finishes_its_task(server, simulator):
    remote = open_policy(port=server.port, timeout_s=5.0)
    simulator.reset(SEED)
    remote.reset(simulator.spec.prompts[0], 0)
    is_strict, codes, target, tick = False, [], None, 0
    while not is_strict and tick < 2 * MAX_STEPS:
        if tick == 6 * CHUNK:
            os.kill(server.engine_pid(), signal.SIGKILL)
        end = time.monotonic() + BACK_S
        while True:
            try:
                chunk = remote.infer(simulator.observe())
                break
            except DoorError as error:
                codes.append(error.code)
                assert time.monotonic() < end, codes
                is_strict = simulator.step(target).strict_success  # hold
                tick += 1
                time.sleep(0.02)
        for target in chunk.actions:
            is_strict = is_strict or simulator.step(target).strict_success
            tick += 1
    remote.close()
    assert "engine_restarting" in codes and set(codes) <= {"engine_restarting", "not_controller"}, codes
    assert is_strict


def test_a_stop_from_the_network_is_cleared_at_the_machine_only(server):
    with EdgewamClient(port=server.port) as client:
        assert client.metadata["robot"] == "aloha_sim"
        assert client.metadata["prompts"]
        client.stop()
        for _ in range(3):
            with pytest.raises(DoorError) as caught:
                client.reset()
            assert caught.value.code == "stopped"
        server.until(rf"STOP asked .*kill -USR1 {server.process.pid}", 5.0)
        server.process.send_signal(signal.SIGUSR1)
        server.until("STOP cleared locally", 5.0)
        client.reset()
        with pytest.raises(DoorError) as caught:
            client.reset("juggle three cubes")
        assert caught.value.code == "unknown_prompt"
        assert "edgewam prompt add" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--door", "telnet"], "Available: .*openpi"),
        (["--bind", "0.0.0.0"], "--token-file"),
        (["--token-file", "/does/not/exist"], "openssl rand"),
        (["--robot", "toaster"], "Available: .*aloha_sim"),
        (["--option", "nothing"], "KEY=VALUE"),
        (["--prompt", "juggle three cubes"], "edgewam prompt add"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(arguments, message):
    from tests.cli.command import here

    done = here("serve", "--port", "0", *arguments)
    assert done.code == 1
    assert re.search(message, done.err), done.err

"""The io process on a clock that the test winds: what it reads, sends, logs and publishes, and when it leaves."""

from __future__ import annotations

import numpy as np
import pytest

from edgewam.core.records import ActionChunk
from edgewam.robot_bridge import clock
from edgewam.robot_bridge.control.chunks import Reject, to_record
from edgewam.robot_bridge.control.modes import Cause, Mode
from edgewam.robot_bridge.control.orders import OrderReader
from edgewam.robot_bridge.counting.tally import Tally
from edgewam.robot_bridge.processes import io_process
from edgewam.robot_bridge.records.wires import Wires, layouts
from tests.robot_bridge.bench import CONFIG, PERIOD_NS

EPOCH_NS = 10**12
CAMERAS = {"cam_high": (4, 6, 3), "cam_wrist": (4, 6, 3)}

OPEN: list[Wires] = []


@pytest.fixture(autouse=True)
def closed():
    """Every test gives its memory back."""
    yield
    while OPEN:
        OPEN.pop().close()


class World:
    """Everybody but io: a clock that only sleeping moves, a robot that follows at once, and what happens at which tick."""

    def __init__(self, monkeypatch, num_ticks=40, cameras=CAMERAS, **config):
        self.wires = Wires(2, cameras)
        OPEN.append(self.wires)
        self.now = EPOCH_NS - PERIOD_NS
        self.config = {**CONFIG, "num_ticks": num_ticks, "orphan_s": 0.4, **config}
        self.control = self.wires["control"].blank()
        self.control["is_armed"] = 1
        self.is_orphan = False
        self.events, self.statuses, self.numbers, self.late_ns = {}, [], 0, {}
        self.chunk_every, self.is_robot_alive = 8, True
        for module in (io_process, clock):
            monkeypatch.setattr(module, "now_ns", lambda: self.now)
            monkeypatch.setattr(module, "sleep_until", self.sleep_until)
        monkeypatch.setattr(io_process, "become_real_time", lambda priority: {})

    # what `Link` offers
    epoch_ns = EPOCH_NS
    is_stopping = False

    @property
    def is_quitting(self):
        return bool(self.control["quit"])

    def report(self, **status):
        self.statuses.append(status)

    # the world
    def sleep_until(self, deadline_ns):
        tick = (deadline_ns - EPOCH_NS) // PERIOD_NS
        self.now = max(self.now, deadline_ns + self.late_ns.pop(tick, 0) + 50_000)
        for moment in [m for m in self.events if m <= tick]:
            self.events.pop(moment)()
        if self.is_robot_alive:
            self.publish(tick)
        return self.now

    def publish(self, tick):
        command = self.wires["command"].read()
        state = self.wires["state"].blank()
        state["tick"], state["t_ns"], state["state"] = tick, self.now - 4_000_000, [0.0, 0.5]
        if command is not None:
            state["state"], state["applied_tick"], state["applied_ns"] = (
                command[1]["target"],
                command[1]["tick"],
                self.now - 10**6,
            )
        self.wires["state"].write(state)
        stamps = self.wires["cameras"].blank()
        stamps["t_camera_ns"] = self.now - np.array([30_000_000, 10_000_000])[: stamps["t_camera_ns"].size]
        self.wires["cameras"].write(stamps)
        status = self.wires["status_engine"].blank()
        status["heartbeat_ns"] = self.now - 10**7
        self.wires["status_engine"].write(status)
        if tick % self.chunk_every == 1:
            self.send_chunk(tick)

    def send_chunk(self, tick):
        self.numbers += 1
        actions = np.stack([0.01 * (tick + np.arange(16)), np.full(16, 0.5)], 1).astype(np.float32)
        value = to_record(self.wires["chunk"], ActionChunk(actions, tick, tick - 1, self.now - 30_000_000), self.numbers, 0, 0, 7)
        value["t_frame_ns"], value["t_begin_ns"], value["t_sent_ns"] = self.now - 25, self.now - 20, self.now - 10
        value["context_number"], value["context_tick"] = 5, tick - 9
        self.wires["chunk"].write(value)

    def run(self):
        self.result = io_process.run(self.config, self)
        count = self.statuses[-1].get("count", 0)
        return self.wires.log.read(0, count)[0]


@pytest.fixture
def world(monkeypatch):
    made = World(monkeypatch)
    yield made
    made.wires.close()


def test_a_quiet_run_follows_and_says_everything_about_it(world):
    log = world.run()
    assert len(log) == 40 and (log["tick"] == np.arange(40)).all() and (log["mode"][1:] == Mode.RUN).all()
    np.testing.assert_allclose(log["command"][2:, 0], 0.01 * np.arange(2, 40), atol=1e-6)
    assert (log["woken_ns"] - log["deadline_ns"] == 50_000).all() and (log["sent_ns"] >= log["woken_ns"]).all()
    assert (log["camera_age_ns"] == 30_000_000).all(), "the oldest camera counts"
    row = log[20]
    assert (row["chunk_id"], row["row"], row["num_blended"], row["is_seam"]) == (3, 3, 1, 0)
    assert row["observation_tick"] == 16 and row["context_number"] == 5 and row["context_tick"] == 8
    assert row["t_capture_ns"] < row["t_frame_ns"] < row["t_begin_ns"] < row["t_chunk_ns"] < row["sent_ns"]
    assert row["state"][0] == pytest.approx(0.19) and row["applied_tick"] == 19 and row["applied_ns"] > 0
    assert row["state_t_ns"] == row["woken_ns"] - 4_000_000
    assert log["is_seam"].sum() == 4 and log["is_anchor"].tolist() == [1] + [0] * 39
    assert (log["is_received"] == (log["tick"] % 8 == 1)).all() and not log["reject"].any()
    last = world.statuses[-1]
    assert last == {"count": 40, "tick": 39, "mode": Mode.RUN, "cause": Cause.NONE, "applied_id": 5, "delay_ticks": 1}


def test_a_run_that_is_over_brakes_before_it_leaves_and_does_not_count_that(world):
    log = world.run()
    assert len(log) == 40 and world.statuses[-1]["mode"] is Mode.RUN
    command = world.wires["command"].read()[1]
    assert command["target"][0] == pytest.approx(0.39 + 0.01 * (0.8 + 0.6 + 0.4 + 0.2), abs=1e-6) and command["tick"] >= 44


def test_late_ticks_are_skipped_and_never_made_up_for(world):
    world.late_ns = {10: 300_000_000, 30: 11_000_000, 34: 9_000_000}
    log = world.run()
    assert sorted(set(range(40)) - set(log["tick"].tolist())) == [*range(10, 25), 30]
    assert (np.diff(log["sent_ns"]) >= 0.5 * PERIOD_NS).all(), "no burst"
    assert not log["is_violation"].any()


@pytest.mark.parametrize("stopped_ns", [12_000_000, 300_000_000, 307_000_000])
def test_a_command_that_was_stopped_on_its_way_out_is_not_followed_closely_by_the_next_one(world, stopped_ns):
    record = world.wires.records["command"]
    write, sent_ns = record.write, []

    def delayed(value):
        if value["tick"] == 20:
            world.now += stopped_ns
        sent_ns.append(world.now)
        write(value)

    record.write = delayed
    log = world.run()
    assert 20 in log["tick"] and len(log) <= 39
    assert min(np.diff(sent_ns)) >= 0.5 * PERIOD_NS and not log["is_violation"].any()


def test_a_run_that_is_over_gives_signs_of_life_for_as_long_as_it_brakes(monkeypatch):
    world = World(monkeypatch, ramp_ticks=150)  # three seconds, as a low acceleration limit would need
    world.run()
    braked = world.wires["command"].read()[1]["tick"] - 39
    assert braked >= 150 and len(world.statuses) >= 40 + braked
    assert all(status == world.statuses[-1] for status in world.statuses[-braked:]) and world.statuses[-1]["count"] == 40
    world.wires.close()


def test_ticks_with_nothing_to_send_are_counted_apart_from_missed_ones(world):
    def put_back():
        world.publish = publish

    publish = world.publish

    def beyond(tick):
        publish(tick)
        state = world.wires["state"].read()[1].copy()
        state["state"] = [3.0, 0.5]
        world.wires["state"].write(state)

    world.publish = beyond
    world.events = {12: put_back}
    world.late_ns = {30: 11_000_000}
    log = world.run()
    assert log["tick"].tolist() == [*range(12, 30), *range(31, 40)]
    assert world.result["silent_ticks"] == 12
    assert [status["cause"] for status in world.statuses[:12] if "cause" in status] == [Cause.OUT_OF_RANGE] * 11
    tally = Tally(world.config, ("elbow", "gripper"))
    tally.add(log)
    report = tally.report(40, world.result["silent_ticks"])
    assert (report.ticks, report.sent, report.missed, report.silent, report.missed_percent) == (40, 27, 1, 12, 2.5)


def test_an_orphan_stops_brakes_and_sends_the_held_pose_until_the_robot_s_own_lease_may_run_out(world):
    world.events = {12: lambda: setattr(world, "is_orphan", True)}
    log = world.run()
    stopped = log[log["tick"] >= 12]
    assert (stopped["mode"] == Mode.STOP).all() and (stopped["cause"] == Cause.ORPHANED).all()
    assert stopped["tick"].tolist() == list(range(12, 33)), "0.4 s more"
    assert (np.diff(stopped["command"][4:, 0]) == 0).all()


def test_quitting_brakes_and_leaves_as_soon_as_the_arm_is_at_rest(world):
    world.events = {12: lambda: world.control.__setitem__("quit", 1)}
    log = world.run()
    assert log["tick"][-1] == 16 and log["mode"][-1] == Mode.STOP
    np.testing.assert_allclose(np.diff(log["command"][-6:, 0]), [0.008, 0.006, 0.004, 0.002, 0.0], atol=1e-7)


def test_a_network_can_stop_and_only_somebody_here_can_go_on(world):
    def ask(stops):
        value = world.wires["requests"].blank()
        value["stops"] = stops
        world.wires["requests"].write(value)

    world.config["num_ticks"] = 80
    world.events = {
        10: lambda: ask(1),
        20: lambda: ask(1),
        25: lambda: world.control.__setitem__("resets", 1),
        40: lambda: ask(0),  # a network that was started anew: any change is a request
    }
    log = world.run()
    assert (log["mode"][10:25] == Mode.STOP).all() and (log["cause"][10:25] == Cause.REQUEST).all()
    assert log["mode"][25] == Mode.READY and log["is_anchor"][25]
    assert (log["mode"][34:40] == Mode.RUN).all(), "after two good chunks"
    assert (log["mode"][40:] == Mode.STOP).all()


def test_old_cameras_a_silent_engine_and_a_dead_robot_are_held_and_then_stopped(monkeypatch):
    world = World(monkeypatch, num_ticks=140, max_hold_s=0.6)
    world.events = {20: lambda: setattr(world, "is_robot_alive", False)}
    log = world.run()
    assert log["mode"][21] == Mode.RUN, "its last report is younger than 0.06 s"
    assert (log["mode"][23], log["cause"][23]) == (Mode.HOLD, Cause.STALE_STATE)
    assert (log["mode"][-1], log["cause"][-1]) == (Mode.STOP, Cause.STALE_STATE) and len(log) == 140
    world.wires.close()


def test_without_stamps_of_its_cameras_an_arm_does_not_run_and_without_cameras_it_needs_none(monkeypatch):
    for cameras, expected in ((CAMERAS, Mode.HOLD), ({}, Mode.RUN)):
        world = World(monkeypatch, cameras=cameras)
        world.wires.records["cameras"].write = lambda value: None
        log = world.run()
        assert log["mode"][-1] == expected and (expected is Mode.RUN or log["cause"][-1] == Cause.CAMERA)
        world.wires.close()


@pytest.mark.parametrize("name", ["state", "chunk", "cameras", "status_engine", "requests"])
def test_a_torn_record_of_any_kind_is_counted_and_nothing_raises(world, name):
    def tear():
        record = world.wires.records[name]
        record.write(record.blank())
        record._payload[0] ^= 1
        record.write = lambda value: None

    world.events = {20: tear}
    log = world.run()
    assert len(log) == 40 and world.result["torn_reads"] >= 1
    assert np.isfinite(log["command"]).all() and not log["is_violation"].any()
    if name in ("state", "cameras"):
        assert log["mode"][-1] == Mode.HOLD, "it is as old as its last whole value"


@pytest.mark.parametrize("name", ["state", "chunk", "cameras", "status_engine", "requests"])
def test_whole_records_full_of_nonsense_never_raise(world, name):
    def fill():
        record = world.wires.records[name]
        layout, random = record.layout, np.random.default_rng(1)
        write = record.write

        def nonsense(value):
            for _ in range(5):
                write(np.frombuffer(random.bytes(layout.itemsize), layout).reshape(()))

        record.write = nonsense

    world.events = {20: fill}
    log = world.run()
    assert len(log) == 40 and np.isfinite(log["command"]).all() and not log["is_violation"].any()


def test_bad_chunks_are_logged_with_their_reason(world):
    def spoil():
        world.send_chunk(21)
        value = world.wires["chunk"].read()[1].copy()
        value["actions"][3] = np.nan
        world.wires["chunk"].write(value)

    world.events = {21: spoil}
    log = world.run()
    assert log["reject"][21] == Reject.NOT_FINITE and log["is_received"][21] and log["mode"][21] == Mode.RUN


def control(**fields):
    value = np.zeros((), layouts(2, {})["control"])
    for name, content in fields.items():
        value[name] = content
    return value


def test_orders_come_from_counters_that_change():
    reader = OrderReader()
    assert reader.read(control(is_armed=1), 0, False).stop is Cause.NONE
    assert reader.read(control(stops=1), 0, False).stop is Cause.REQUEST
    assert reader.read(control(stops=1), 0, False).stop is Cause.NONE, "one request is one request"
    assert reader.read(control(stops=1), 4, False).stop is Cause.REQUEST
    asked = reader.read(control(stops=1, resets=2), 4, False)
    assert asked.reset and asked.stop is Cause.NONE
    assert not reader.read(control(stops=1, resets=2), 4, False).reset
    assert not reader.read(control(stops=1, resets=1), 4, False).reset, "a reset has to be new"
    assert reader.read(control(stops=1, quit=1), 4, False).stop is Cause.REQUEST
    assert reader.read(control(stops=1), 4, True).stop is Cause.ORPHANED
    assert reader.read(control(stops=1), 4, False, is_over=True).stop is Cause.REQUEST
    assert OrderReader().read(control(stops=2, resets=1, estop=1), 0, False).stop is Cause.REQUEST, "asked before the start"

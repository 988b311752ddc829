"""The faults in simulated time: for each, what becomes of a value on its way into shared memory."""

from __future__ import annotations

from typing import Any

from edgewam.robot_bridge.run import RunSettings
from tests.robot_bridge.faults import injectors
from tests.robot_bridge.faults.world import BEGIN, MAX_CONTEXT_AGE, Spoiler, World

FIRST_ANSWER = 2  # ticks from a fault's begin to the first answer after it
NS = 1_000_000_000


def answer(kind: str, ticks: int = 48, total: int = 320) -> Spoiler:
    """Every chunk is spoiled."""
    spoil = injectors.CHUNKS[kind]
    return Spoiler("answer", lambda world, tick, chunk: spoil(chunk), ticks, total)


def silent(point: str, ticks: int = 48, total: int = 320, **settings: Any) -> Spoiler:
    """Nothing is published."""
    return Spoiler(point, lambda world, tick, value: None, ticks, total, RunSettings(**settings))


def stalled(ticks: int) -> Spoiler:
    """One answer comes so many ticks late; what would have been looked at meanwhile is not answered at all."""

    def spoil(world: World, tick: int, chunk: Any) -> None:
        if tick == BEGIN + FIRST_ANSWER:
            world.due[tick + ticks] = chunk

    return Spoiler("answer", spoil, max(ticks, FIRST_ANSWER + 1))


def state_nan() -> Spoiler:
    """One joint is NaN."""

    def spoil(world: World, tick: int, value: Any) -> Any:
        value["state"][3] = float("nan")
        return value

    return Spoiler("state", spoil)


def state_old(age_s: float) -> Spoiler:
    """Stamped so long ago."""

    def spoil(world: World, tick: int, value: Any) -> Any:
        value["t_ns"] -= round(age_s * NS)
        return value

    return Spoiler("state", spoil)


def frozen(camera: int) -> Spoiler:
    """One camera's stamp stays where it was when the fault began."""

    def spoil(world: World, tick: int, value: Any) -> Any:
        assert world.frame is not None
        value["t_camera_ns"][camera] = world.frame["t_camera_ns"][camera]
        return value

    return Spoiler("frame", spoil)


def late(age_s: float) -> Spoiler:
    """One camera's images are so old when they come."""

    def spoil(world: World, tick: int, value: Any) -> Any:
        value["t_camera_ns"][1] -= round(age_s * NS)
        return value

    return Spoiler("frame", spoil)


def old_context(ticks: int) -> Spoiler:
    """No new refresh: chunks name the one that was in use when the fault began."""

    def spoil(world: World, tick: int, value: Any) -> Any:
        value["context_tick"] = BEGIN - BEGIN % MAX_CONTEXT_AGE
        return value

    return Spoiler("chunk", spoil, ticks, settings=RunSettings(max_context_age_ticks=MAX_CONTEXT_AGE))


def negative_id() -> Spoiler:
    """A number below all others."""
    return Spoiler("chunk", lambda world, tick, value: injectors.negative_id(value))


def replayed_id() -> Spoiler:
    """A number that was used."""
    return Spoiler("chunk", lambda world, tick, value: injectors.replayed_id(value))


def half_written(name: str) -> Spoiler:
    """The writer dies in the middle of its first write; nobody writes again while the fault lasts."""

    def spoil(world: World, tick: int, value: Any) -> None:
        if name not in world.dead:
            world.dead.add(name)
            injectors.leave_half_written(world.wires[name], value)

    return Spoiler(name, spoil)


def damaged(name: str) -> Spoiler:
    """A byte flips after every write."""

    def spoil(world: World, tick: int, value: Any) -> None:
        world.wires[name].write(value)
        injectors.damage(world.wires[name])

    return Spoiler(name, spoil)

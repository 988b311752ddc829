"""One server: an engine process with the policy, a session that guards it, and a door that speaks a protocol."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgewam.core import plugins
from edgewam.robot_bridge.robot import RobotSpec
from edgewam.robot_bridge.serving import access
from edgewam.robot_bridge.serving.access import Address
from edgewam.robot_bridge.serving.door import DoorOptions
from edgewam.robot_bridge.serving.engine_link import EngineLink, LinkSettings
from edgewam.robot_bridge.serving.session import Session, SessionSettings


def serve(
    door: str,
    address: Address,
    options: DoorOptions,
    factory: str,
    arguments: Mapping[str, Any],
    spec: RobotSpec,
    prompt: str,
    *,
    about: Mapping[str, Any] | None = None,
    session: SessionSettings | None = None,
    link: LinkSettings | None = None,
    on_event: Callable[[str], None] = lambda text: None,
    on_session: Callable[[Session], None] = lambda session: None,
) -> None:
    """Serve the policy `factory(**arguments)` until `options.quit` is set.

    prompt: in force until a client names another.  about: further metadata (`Session`).  on_session: is given the session once
    it exists, to let somebody at the machine clear a stop.

    Raises:
        EdgewamError: an unknown door, an address that may not be used without a token, or a policy that cannot start.
    """
    module = plugins.load("door", door)
    access.check_exposure(address, options.token)  # before a minute of loading
    engine = EngineLink(factory, arguments, spec, prompt, link, on_event)
    try:
        engine.start()
        served = Session(engine, spec, prompt, about=about, settings=session, on_event=on_event)
        on_session(served)
        module.serve(served, address, options)
    finally:
        engine.close()


@contextmanager
def signals(quit_: threading.Event, clear_stop: Callable[[], None]) -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM set `quit_`, and SIGUSR1, which only this machine can send, clears a latched stop."""

    def clear(number: int, frame: object) -> None:
        threading.Thread(target=clear_stop).start()  # the interrupted thread may hold what it needs

    wanted: dict[int, Any] = {
        signal.SIGINT: lambda number, frame: quit_.set(),
        signal.SIGTERM: lambda number, frame: quit_.set(),
        signal.SIGUSR1: clear,
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""`edgewam serve`: answer robots over a network, on loopback unless a token protects another address."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewam.cli._output import say
from edgewam.cli._pairs import pairs
from edgewam.cli._robot import Task
from edgewam.cli._shipped import FACTORY, or_shipped


def command(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory; by default the shipped one.")] = None,
    door: Annotated[str, typer.Option(help="Protocol plugin name, or a dotted module; a wrong name lists them all.")] = "openpi",
    port: Annotated[
        int | None, typer.Option(help="TCP port; by default the protocol's own, 0 takes any free one.", min=0, max=65535)
    ] = None,
    bind: Annotated[str, typer.Option(help="IP address to listen on; any but loopback needs --token-file.")] = "127.0.0.1",
    token_file: Annotated[Path | None, typer.Option(help="Private file with the secret that clients must show.")] = None,
    socket: Annotated[Path | None, typer.Option(help="Listen on this Unix socket instead of a port.")] = None,
    robot: Annotated[str, typer.Option(help="Robot whose cameras and joints the clients have.")] = "aloha_sim",
    task: Task = None,
    prompt: Annotated[str | None, typer.Option(help="Instruction until a client gives one; by default the task's own.")] = None,
    threads: Annotated[int, typer.Option(help="Compute threads of the engine.", min=1)] = 1,
    deadline_s: Annotated[float, typer.Option(help="A client waits at most so long for an answer.", min=0.01)] = 2.0,
    idle_s: Annotated[float, typer.Option(help="A controller silent for so long can be replaced.", min=0.1)] = 10.0,
    option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the door's own settings; repeatable.")] = None,
) -> None:
    """Serve a bundle to one controlling client at a time; any client can stop, only this machine can undo a stop."""
    import os
    import threading

    from edgewam.core import plugins
    from edgewam.core.artifacts import read_manifest
    from edgewam.robot_bridge.robot import with_task
    from edgewam.robot_bridge.serving import access, server
    from edgewam.robot_bridge.serving.door import DoorOptions
    from edgewam.robot_bridge.serving.engine_link import LinkSettings
    from edgewam.robot_bridge.serving.session import Session, SessionSettings
    from edgewam.runtime.prompts import PROMPTS, load_prompts

    module = plugins.load("door", door)
    spec, _ = with_task(robot, task)
    path = or_shipped(bundle, "bundle")
    manifest = read_manifest(path, kind="bundle", verify=False)
    prompts = list(load_prompts(path / PROMPTS))
    extra = pairs("--option", option, "domain=7")
    token = None if token_file is None else access.read_token(token_file)
    address = access.Address(bind, getattr(module, "DEFAULT_PORT", 0) if port is None else port, socket)
    quit_ = threading.Event()
    sessions: list[Session] = []

    def ready(at: access.Address) -> None:
        where = getattr(module, "exposure", access.exposure)(at, token)
        say(f"{door}: {where}. One client controls, others can only look and stop. Ctrl-C ends.")

    def event(text: str) -> None:
        hint = f" (kill -USR1 {os.getpid()})" if text.startswith("STOP asked") else ""
        say(f"{door}: {text}{hint}")

    with server.signals(quit_, lambda: [session.clear_stop() for session in sessions]):
        server.serve(
            door, address, DoorOptions(token, quit=quit_, on_ready=ready, extra=extra),
            FACTORY, {"bundle": str(path), "threads": threads}, spec, prompt or spec.prompts[0],
            about={"name": manifest.config["family"], "robot": spec.name, "digest": manifest.digest, "prompts": prompts},
            session=SessionSettings(idle_s=idle_s), link=LinkSettings(deadline_s=deadline_s),
            on_event=event, on_session=sessions.append,
        )  # fmt: skip
    say(f"{door}: ended")

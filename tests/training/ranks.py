"""Run functions on several ranks: forked processes with the environment that a launcher would give them.

Forked from a process that has imported torch and computed nothing, so that a rank costs milliseconds instead of seconds.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError


def run(world: int, out: Path, function: Callable[..., Any], *arguments: Any) -> list[tuple[int, str]]:
    """(exit code, what was said) of each rank; the code of a killed one is minus its signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in names.items()}
            _run_here(out / f"said.{rank}", function, arguments)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [(code, (out / f"said.{rank}").read_text()) for rank, code in enumerate(codes)]


def _run_here(said: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call it and end the process as the command line does: an error of ours is one sentence."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code: Any = 1
    try:
        function(*arguments)
        code = 0
    except EdgewamError as error:
        print(f"edgewam: {error}", file=sys.stderr)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)

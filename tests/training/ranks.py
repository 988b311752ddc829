"""Start a function of this repository's tests on several ranks, each a process, as a launcher would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(world: int, code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> list[subprocess.Popen[str]]:
    """One process a rank, running `code` with `arguments`; what they print is captured apart."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1", **(environment or {}),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]], timeout_s: float = 240.0) -> list[tuple[int, str]]:
    """(exit code, standard error) of each rank."""
    found = []
    try:
        for process in processes:
            _, errors = process.communicate(timeout=timeout_s)
            found.append((process.returncode, errors))
    finally:
        for process in processes:
            process.kill()
    return found


def run(world: int, code: str, *arguments: str) -> None:
    """Run `code` on all ranks; AssertionError with what they said when one fails."""
    for rank, (code_, errors) in enumerate(finish(start(world, code, *arguments))):
        assert code_ == 0, f"rank {rank} exited with {code_}:\n{errors}"

"""Runs jobs in a process of its own and rewrites a job's sections after each one, so that a job cut short keeps them.

Called by the runner: `python -m benchmarks.gpu.worker DEVICE`.  Orders come on stdin, one a line: {"job": ..., "sections": PATH};
the end of each is a line `END ok` or `END failed` on stdout.  What one job built stays for the next one of the same process.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from benchmarks.gpu.jobs import Job
from benchmarks.results import Section
from edgewam.core.artifacts import write_json

END = "\x1e end"  # no job prints this


def work(job: Job, device: str, path: Path) -> dict[str, Section]:
    """Run a job; `path` always holds the sections finished so far."""
    sections: dict[str, Section] = {}

    def emit(name: str, section: Section) -> None:
        assert name not in sections, f"job '{job.name}' emits '{name}' twice"
        sections[name] = section
        write_json(path, {name: section.to_json() for name, section in sections.items()})
        figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in section.figures.items())
        print(f"{job.name} {name}: {figures}", *(f"{k} {v}" for k, v in section.timings.items()), sep="\n  ", flush=True)

    importlib.import_module(job.module).run(job, device, emit)
    return sections


def serve(device: str) -> int:
    """Work through the orders; ends early, with status 1, when a job left the device unusable."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            work(Job.from_json(order["job"]), device, Path(order["sections"]))
        except Exception:  # one bad job must not cost the next ones what was built
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            if not _usable(device):
                return 1  # without an END: whoever gives orders sees the process end, and starts another one
            print(f"{END} failed", flush=True)
        else:
            print(f"{END} ok", flush=True)
    return 0


def _usable(device: str) -> bool:
    """Whether the device still answers: an illegal access spoils a CUDA context for good."""
    if device == "cpu":
        return True
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))

"""One job in a process of its own: runs it and rewrites its sections after each one, so that a job cut short keeps them.

Called by the runner: `python -m benchmarks.gpu.worker JOB_JSON DEVICE SECTIONS_FILE`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu.jobs import Job
from benchmarks.results import Section
from edgewam.core.artifacts import write_json


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


if __name__ == "__main__":
    work(Job.from_json(json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))

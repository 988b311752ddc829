"""`make gpu`: list, plan and run the GPU jobs.  Exit status: 0 done, 1 a job failed, 2 no GPU or wrong use, 3 jobs are left.

python3 -m benchmarks.gpu --list            what there is and what is recorded (needs no GPU)
python3 -m benchmarks.gpu --dry-run         what a run would do now (needs no GPU)
python3 -m benchmarks.gpu                   run what is not recorded yet, 10 minutes at most, and go on next time
python3 -m benchmarks.gpu --smoke           every job at toy size on the processor, into a temporary folder
python3 -m benchmarks.gpu --device cpu --only vae_parity   a job that makes sense on a processor, at full size
python3 -m benchmarks.gpu --collect DIR     put results that came back from a lent machine into benchmarks/results
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.jobs import Job, find_jobs
from benchmarks.gpu.runner import Outcome, run_jobs
from benchmarks.gpu.summary import summary
from benchmarks.results import RESULTS, bundle_path, collect, output_folder, recorded, slug
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_gpu, read_machine
from edgewam.profiles.report import table

BUDGET_S = 580.0  # one command on a lent machine may take ten minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="jobs, times and what is recorded")
    parser.add_argument("--dry-run", action="store_true", help="what a run would do now")
    parser.add_argument("--only", nargs="+", default=[], metavar="JOB", help="these jobs only")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help=f"seconds for the whole call (default {BUDGET_S:.0f})")
    parser.add_argument("--data", type=Path, help="packed latents for the training job (see benchmarks.gpu.pack_dataset)")
    parser.add_argument("--frames", type=Path, help="packed frames for VAE parity (see benchmarks.gpu.packed_frames)")
    parser.add_argument(
        "--out", type=Path, help="folder for results (default: benchmarks/results/<device>, and $OUT/records.json)"
    )
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the processor")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: at full size, for jobs that can")
    parser.add_argument("--collect", type=Path, metavar="DIR", help="copy results of a lent machine here")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.collect:
        for path in collect(arguments.collect):
            print(f"recorded {path}")
        return 0
    jobs = find_jobs(arguments.only)
    for path, kind in ((arguments.data, "latents"), (arguments.frames, "frames")):
        if path is not None:
            jobs = [job.with_data(path) if job.data == kind else job for job in jobs]
    if arguments.smoke:
        return _smoke(jobs, arguments)
    gpu = read_gpu().get("name", "") if arguments.device == "cuda" else ""
    folder = arguments.out or output_folder(gpu)
    known = [RESULTS / slug(gpu)] if gpu else sorted(path for path in RESULTS.glob("*") if path.is_dir())
    if arguments.list or arguments.dry_run:
        print(_plan(jobs, [folder, *known], arguments))
        print(f"Device: {gpu}" if gpu else "No GPU here: nothing can be run, only listed and planned (or tried with --smoke).")
        return 0
    if arguments.device == "cpu":
        return _run_on_processor(jobs, arguments)
    _refuse_without_gpu(gpu)
    outcomes = run_jobs(jobs, "cuda", gpu, folder, known, arguments.budget_s, bundle=bundle_path())
    print(summary(outcomes))
    print(f"Results in {bundle_path() or folder}")
    return _status(outcomes)


def _run_on_processor(jobs: Sequence[Job], arguments: argparse.Namespace) -> int:
    if wrong := [job.name for job in jobs if not job.on_processor]:
        raise EdgewamError(f"'{wrong[0]}' makes no sense on a processor. Name jobs that do, --only vae_parity, or use --smoke.")
    cpu = read_machine().cpu
    folder = arguments.out or output_folder(cpu)
    outcomes = run_jobs(jobs, "cpu", cpu, folder, [folder], arguments.budget_s)
    print(summary(outcomes))
    return _status(outcomes)


def _refuse_without_gpu(gpu: str) -> None:
    if not gpu:
        raise EdgewamError(
            "No NVIDIA GPU: nvidia-smi shows none. Run this on a machine with one, look at the plan with --dry-run, or try the "
            "code on the processor with --smoke."
        )
    try:
        import torch
    except ModuleNotFoundError:
        raise EdgewamError(f"'{sys.executable}' has no torch. Name the right one: make gpu GPU_PYTHON=/path/to/python3") from None
    if not torch.cuda.is_available():
        raise EdgewamError(f"torch {torch.__version__} sees no GPU though nvidia-smi shows '{gpu}'. Install its CUDA build.")


def _smoke(jobs: Sequence[Job], arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="edgewam_smoke_") as scratch:
        folder = arguments.out or Path(scratch)
        outcomes = run_jobs([job.small() for job in jobs], "cpu", read_machine().cpu, folder, [], arguments.budget_s)
        print(summary(outcomes))
        print("Toy sizes on the processor: these figures say that the code runs, and nothing else.")
    return _status(outcomes)


def _plan(jobs: Sequence[Job], folders: list[Path], arguments: argparse.Namespace) -> str:
    rows, left = [["job", "expected s", "limit s", "this call", "about"]], arguments.budget_s
    for job in jobs:
        record = recorded(job.name, job.key(), folders)
        if record:
            state = f"recorded {record.started_utc} on {record.device}"
        elif job.data == "latents" and "data" not in job.params:
            state = "needs --data"
        elif reason := job.lacks(arguments.device):
            state = f"skipped: {reason}"
        elif left < job.expected_s:
            state = "next call (budget)"
        else:
            state, left = "run", left - job.expected_s
        rows.append([job.name, str(job.expected_s), str(job.limit_s), state, job.about])
    return table(rows)


def _status(outcomes: Sequence[Outcome]) -> int:
    if any(outcome.record is not None and outcome.record.status != "ok" for outcome in outcomes):
        return 1
    return 3 if any(outcome.record is None and outcome.can_run for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

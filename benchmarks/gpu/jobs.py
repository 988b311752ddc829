"""The jobs of `make gpu`, most important first.  A job is a module with `run(job, device, emit)`; its sources make its key.

A job's result stands for the digest of every file named in `sources` and of its parameters: change one and it runs again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.kernel_target import lacks_kernels
from benchmarks.gpu.tensorrt_target import lacks_tensorrt
from benchmarks.results import ROOT, Section
from edgewam.core.artifacts import file_digest
from edgewam.core.errors import EdgewamError

Emit = Callable[[str, Section], None]

_MODEL = ("edgewam/models/aha_wam*.py", "edgewam/models/wam_*.py", "edgewam/models/wan_*.py", "edgewam/models/dit_block.py",
          "edgewam/models/chunks.py", "edgewam/models/flow_*.py", "edgewam/models/masks.py", "edgewam/models/ovcr.py",
          "edgewam/models/planner_stage.py", "edgewam/models/program_parts.py", "edgewam/models/rope.py",
          "edgewam/models/stage_*.py", "edgewam/flow/*.py")  # fmt: skip
_COMMON = ("benchmarks/gpu/gpu_clock.py", "edgewam/profiles/measure.py")


@dataclass(frozen=True)
class Job:
    """One measurement: `module.run`, at most `limit_s` seconds.

    params set its size on the GPU, smoke the few that make it a matter of seconds on a processor.  `expected_s` is the time
    it should take; the budget must still hold it for the job to start.  data: what file it takes; frames it can do without.
    process: jobs after one another that name the same one share it, so that what the first builds (weights, compiled stages)
    serves all; without a name a job has a process of its own.  on_processor: it also makes sense at full size without a GPU.
    needs: a library without which the job is left out, at no cost.
    """

    name: str
    about: str
    module: str
    expected_s: int
    limit_s: int
    sources: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    data: Literal["none", "frames", "latents"] = "none"
    process: str = ""
    on_processor: bool = False
    needs: Literal["", "tensorrt", "kernels"] = ""

    def lacks(self, device: str) -> str:
        """Why the machine cannot run it on "cuda" or, in small, on "cpu"; "" where it can."""
        return _LACKS[self.needs](device)

    def small(self) -> Job:
        """The same code path at a size for a processor: what CI runs, so that no GPU minute is lost to a typo."""
        return replace(self, name=f"{self.name}_smoke", params={**self.params, **self.smoke}, data="none")

    def with_data(self, path: Path) -> Job:
        """The job on a carried data file; the file's digest is part of the key.  Jobs that take none stay as they are."""
        if self.data == "none":
            return self
        if not path.is_file():
            raise EdgewamError(
                f"There is no data file '{path}'. Make it with benchmarks.gpu.pack_dataset (latents) or .packed_frames"
            )
        return replace(self, params={**self.params, "data": str(path), "data_sha256": file_digest(path)})

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form, as it is handed to the process that runs it."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Job:
        """Inverse of `to_json`."""
        return Job(**{**data, "sources": tuple(data["sources"])})

    def key(self) -> str:
        """Digest of the job's source files and parameters.

        Raises:
            EdgewamError: a source pattern that matches no file.
        """
        params = {name: value for name, value in self.params.items() if name != "data"}  # the digest stands for the file
        digest = hashlib.sha256(json.dumps([self.module, params], sort_keys=True).encode())
        for pattern in (*_COMMON, f"{self.module.replace('.', '/')}.py", *self.sources):
            paths = sorted(ROOT.glob(pattern))
            if not paths:
                raise EdgewamError(
                    f"Job '{self.name}' depends on '{pattern}', which matches no file. Correct benchmarks/gpu/jobs.py."
                )
            for path in paths:
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]


_LACKS: dict[str, Callable[[str], str]] = {"": lambda device: "", "tensorrt": lacks_tensorrt, "kernels": lacks_kernels}
_FULL = {"size": "full", "dtype": "bfloat16", "seed": 0, "compiler": "inductor", "layer_groups": 3}
_TOY = {"size": "golden", "compiler": "eager", "layer_groups": 3}
_ENGINES = (
    "benchmarks/gpu/policy.py", "benchmarks/gpu/compilers.py",
    "benchmarks/gpu/program_timing.py", "benchmarks/gpu/floors.py", "benchmarks/gpu/rates.py",
    "benchmarks/gpu/random_policy.py", "benchmarks/gpu/upstream.py", "edgewam/core/program.py", "edgewam/core/stage.py",
    "edgewam/compile/rewrit*.py", "edgewam/compile/layer_groups.py", "edgewam/runtime/*.py", "edgewam/runtime/backends/eager.py",
    "edgewam/runtime/backends/inductor.py", *_MODEL,
)  # fmt: skip
_KERNELS = (
    "edgewam/kernels/*.py", "edgewam/kernels/ops/*.py", "edgewam/kernels/sources/*.py", "edgewam/kernels/cuda/*.cu",
    "edgewam/compile/fused/*.py", "edgewam/compile/rewrit*.py", "edgewam/runtime/backends/fused.py", *_MODEL,
)  # fmt: skip
# widths and a dtype that the interpreter runs; it is slow, so only the smallest stage goes through it
_TINY = {
    **_TOY, "size": "tiny", "dtype": "float32", "compiler": "none", "layer_groups": 1,
    "plain": ["denoise", "router", "planner_0_2"],
}  # fmt: skip
_LOAD = {**_FULL, "hz": 50, "idle_chunks": 500, "chunks": 2000, "saturated_chunks": 1000}
_TOY_LOAD = {**_TOY, "hz": 5, "idle_chunks": 3, "chunks": 6, "saturated_chunks": 3}

JOBS = (
    Job(
        "kernel_checks",
        "every fused kernel at full size against its reference: products in float64, all weight formats",
        "benchmarks.gpu.kernel_checks",
        90,
        180,
        (*_KERNELS, "benchmarks/gpu/kernel_recipes.py", "benchmarks/gpu/kernel_formats.py", "benchmarks/gpu/fused_engines.py"),
        {"size": "full", "dtype": "bfloat16", "formats": {
            "denoise": ["bf16", "fp8", "int4_weights"], "router": ["bf16"], "planner": ["bf16"], "state": ["bf16"]}},
        {"size": "tiny", "dtype": "float32", "formats": {"state": ["bf16"], "denoise": ["bf16", "int4_weights"]}},
        process="fused",
        needs="kernels",
    ),
    Job(
        "kernel_bandwidth",
        "bandwidth of every fused kernel over layers of distinct weights; the products of a step and the whole step, with gates",
        "benchmarks.gpu.kernel_bandwidth",
        75,
        240,
        (*_KERNELS, "benchmarks/gpu/kernel_*.py", "benchmarks/gpu/fused_engines.py", "benchmarks/gpu/precision_rates.py",
         "benchmarks/gpu/rates.py"),
        {"size": "full", "dtype": "bfloat16", "n": 50, "warmup": 5, "tune_s": 45, "order": [
            ["denoise", "bf16"], ["router", "bf16"], ["denoise", "fp8"], ["denoise", "fp8_weights"], ["denoise", "int4_weights"],
            ["denoise", "int8"], ["router", "fp8"], ["planner", "bf16"], ["state", "bf16"]]},
        {"size": "tiny", "dtype": "float32", "n": 1, "warmup": 0, "tune_s": 0, "order": [
            ["state", "int4_weights"], ["router", "bf16"], ["denoise", "bf16"]]},
        process="fused",
        needs="kernels",
    ),
    Job(
        "fused_steps",
        "L_chunk at 2, 10, 4, 1 steps and L_prefill through the fused kernels, five weight formats; gates, Inductor, release",
        "benchmarks.gpu.fused_steps",
        190,
        300,
        (*_KERNELS, "benchmarks/gpu/kernel_*.py", "benchmarks/gpu/fused_policy.py", "benchmarks/gpu/fused_engines.py", *_ENGINES),
        {**_FULL, "steps": [2, 10, 4, 1], "formats": ["bf16", "fp8", "fp8_weights", "int4_weights", "int8"], "n": 200,
         "refreshes": 50, "warmup": 10, "n_eager": 5, "eager_steps": 10, "inductor_steps": [2, 10], "tune_s": 90},
        {**_TINY, "steps": [1], "formats": ["bf16", "fp8"], "n": 1, "refreshes": 1, "warmup": 0, "n_eager": 1, "eager_steps": 1,
         "inductor_steps": [1], "tune_s": 0},
        process="fused",
        needs="kernels",
    ),
    Job(
        "fused_under_load",
        "`under_load` through the fused kernels, bf16 and fp8: gates p99 <= 1.3 times idle, refreshes within 40 ms",
        "benchmarks.gpu.fused_under_load",
        65,
        200,
        (*_KERNELS, "benchmarks/gpu/kernel_*.py", "benchmarks/gpu/fused_policy.py", "benchmarks/gpu/fused_engines.py",
         "benchmarks/gpu/under_load.py", *_ENGINES),
        {**_FULL, "formats": ["bf16", "fp8"], "hz": 50, "idle_chunks": 250, "chunks": 1000, "saturated_chunks": 300,
         "tune_s": 90},
        {**_TINY, "formats": ["bf16"], "hz": 5, "idle_chunks": 1, "chunks": 2, "saturated_chunks": 1, "tune_s": 0},
        process="fused",
        needs="kernels",
    ),
    Job(
        "fused_small",
        "excess error of the shipped student through the fused kernels, on frames: bf16, fp8, fp8 weights",
        "benchmarks.gpu.fused_small",
        60,
        150,
        (*_KERNELS, "benchmarks/gpu/kernel_*.py", "benchmarks/gpu/fused_engines.py", "benchmarks/gpu/packed_frames.py",
         "benchmarks/gpu/vae_parity.py", "edgewam/assets/small/student/manifest.json", "edgewam/compile/*.py",
         "edgewam/recipes/deploy.py", "edgewam/runtime/*.py", "edgewam/runtime/policies/aha_wam*.py", *_MODEL),
        {"base": "bf16", "formats": ["bf16", "fp8", "fp8_weights"], "frames": 24, "pairs": 2,
         "calibration": 6, "n": 20, "rewrites": True, "stages": ["planner", "router", "state", "denoise"]},
        {"base": "float32", "formats": ["bf16", "fp8"], "frames": 1, "pairs": 1, "calibration": 1, "n": 1, "rewrites": False,
         "stages": ["state"]},
        data="frames",
        process="fused",
        needs="kernels",
    ),
    Job(
        "vae_profile",
        "where the image encoder's time goes at full size: its convolutions alone, what lies between them, longest kernels",
        "benchmarks.gpu.vae_profile",
        35,
        120,
        ("benchmarks/gpu/compilers.py", "benchmarks/gpu/random_policy.py", "benchmarks/gpu/rates.py",
         "edgewam/runtime/backends/inductor.py", "edgewam/models/wan_vae*.py"),
        {"size": "full", "dtype": "bfloat16", "seed": 0, "compiler": "inductor", "n": 100, "warmup": 5},
        {"size": "tiny", "dtype": "float32", "compiler": "none", "n": 2, "warmup": 1},
        process="fused",
    ),
    Job(
        "ladder",
        "Table 8 for this card, full size: released eager, + graph, + memory/context, + prefill compile, + hot path, + VAE",
        "benchmarks.gpu.ladder",
        200,
        470,
        ("benchmarks/gpu/hoisted.py", "benchmarks/gpu/released_graph.py", *_ENGINES),
        {**_FULL, "steps": [10, 2], "n_eager": 20, "refreshes": 20, "n": 100, "denoise_gflop": 77.8},
        {**_TOY, "steps": [2], "n_eager": 2, "refreshes": 2, "n": 2, "denoise_gflop": None},
        process="full",
    ),
    Job(
        "steps",
        "Table 11 for this card: 10, 4, 2, 1 steps of the best rung, L_prefill, and the gates 4x and 3x their floors",
        "benchmarks.gpu.steps",
        20,
        240,
        _ENGINES,
        {**_FULL, "steps": [2, 10, 4, 1], "n": 300, "refreshes": 100, "warmup": 10},
        {**_TOY, "steps": [2, 1], "n": 2, "refreshes": 2, "warmup": 1},
        process="full",
    ),
    Job(
        "capture_checks",
        "captured programs: replay equals single calls, no allocation, no wait on the host",
        "benchmarks.gpu.capture_checks",
        12,
        240,
        _ENGINES,
        {**_FULL, "n": 50},
        {**_TOY, "n": 2},
        process="full",
    ),
    Job(
        "prefill_modes",
        "Table 9 for this card: refresh eager, compiled, one graph, graphs in groups; each alone and beside a chunk",
        "benchmarks.gpu.prefill_modes",
        35,
        240,
        _ENGINES,
        {**_FULL, "n": 50, "warmup": 5},
        {**_TOY, "n": 2, "warmup": 1},
        process="full",
    ),
    Job(
        "under_load",
        "L_chunk at 2 steps, 50 chunks a second: alone, with a refresh every second chunk, and saturated; 2000 chunks",
        "benchmarks.gpu.under_load",
        80,
        300,
        _ENGINES,
        _LOAD,
        _TOY_LOAD,
        process="full",
    ),
    Job(
        "tensorrt_small",
        "the shipped student as TensorRT bundles, bf16 and fp8: formats, graphs, deviation from eager, L_chunk and L_prefill",
        "benchmarks.gpu.tensorrt_small",
        70,
        300,
        ("benchmarks/gpu/tensorrt_target.py", "edgewam/assets/small/student/manifest.json", "edgewam/core/*.py",
         "edgewam/compile/*.py", "edgewam/compile/backends/tensorrt.py", "edgewam/quantize/*.py", "edgewam/recipes/deploy.py",
         "edgewam/recipes/quantization.py", "edgewam/runtime/*.py", "edgewam/runtime/backends/tensorrt.py",
         "edgewam/runtime/policies/aha_wam*.py", *_MODEL),
        {"precisions": ["bf16", "fp8"], "layer_groups": 2, "n": 300, "warmup": 30},
        {"precisions": ["fp8"], "n": 2, "warmup": 1},
        needs="tensorrt",
    ),
    Job(
        "vae_parity",
        "Table 10: the image encoder in bf16 and fp16, compiled, against float32 on 1000 frames",
        "benchmarks.gpu.vae_parity",
        45,
        480,
        ("benchmarks/gpu/packed_frames.py", "benchmarks/gpu/compilers.py",
         "edgewam/runtime/backends/inductor.py", "edgewam/assets/small/vae/model.safetensors",
         "edgewam/models/wan_vae*.py"),
        {"frames": 1000, "precisions": ["bfloat16", "float16"], "compilers": ["inductor"], "n": 100},
        {"frames": 3, "precisions": ["bfloat16"], "compilers": ["eager"], "n": 2},
        data="frames",
        on_processor=True,
    ),
    Job(
        "copy_bandwidth",
        "device-to-device copies, 64 MB to 8 GB",
        "benchmarks.gpu.copy_bandwidth",
        10,
        60,
        (),
        {"sizes_mb": [64, 256, 1024, 4096, 8192], "n": 20, "warmup": 3},
        {"sizes_mb": [1, 2], "n": 3, "warmup": 1},
    ),
    Job(
        "matmul_rate",
        "bf16 and fp8 products on random data: a large square, and the shapes of the chunk path",
        "benchmarks.gpu.matmul_rate",
        20,
        90,
        (),
        {"square": 8192, "n": 30, "warmup": 5, "rows": [16, 120, 480], "weights": [[1024, 3072], [3072, 1024], [1024, 4096],
         [4096, 1024], [3072, 6144], [4096, 4096]], "working_set_mb": 512},
        {"square": 64, "n": 3, "warmup": 1, "rows": [16], "weights": [[32, 64]], "working_set_mb": 1},
    ),
    Job(
        "graph_nodes",
        "latency of dependent nodes in a CUDA graph, and of eager launches",
        "benchmarks.gpu.graph_nodes",
        10,
        60,
        (),
        {"chains": [500, 4000], "elements": [1, 16384], "n": 50, "warmup": 5},
        {"chains": [5, 20], "elements": [4], "n": 3, "warmup": 1},
    ),
    Job(
        "precision_rates",
        "the matrix products of one denoise step as a chain in one graph, bf16 and fp8",
        "benchmarks.gpu.precision_rates",
        15,
        90,
        ("benchmarks/gpu/rates.py",),
        {"rows": 16, "layers": 30, "shapes": [[1024, 9216], [3072, 1024], [1024, 3072], [3072, 1024], [1024, 4096], [4096, 1024]],
         "n": 100, "warmup": 5},
        {"rows": 16, "layers": 2, "shapes": [[32, 96], [32, 32]], "n": 2, "warmup": 1},
    ),
    Job(
        "train_small",
        "training of the policy `small` on a carried data file: steps per second",
        "benchmarks.gpu.train_small",
        60,
        180,
        ("benchmarks/gpu/packed.py", "edgewam/training/*.py", "edgewam/data/windows.py", *_MODEL),
        {"runs": [[32, 200], [256, 100]], "warmup": 20},
        {"runs": [[2, 3]], "warmup": 1, "synthetic": {"episodes": 1, "length": 60, "cell": [48, 4, 6]},
         "model": {"num_layers": 1, "image_height": 64, "image_width": 96}},
        data="latents",
    ),
    Job(
        "train_full",
        "one optimiser step at full size, batch 1: training and distillation; ms, peak memory, utilisation of the matrix rate",
        "benchmarks.gpu.train_full",
        60,
        240,
        ("benchmarks/gpu/random_policy.py", "benchmarks/gpu/rates.py", "edgewam/training/parallel.py",
         "edgewam/training/example_windows.py", *_MODEL),
        {"size": "full", "dtype": "bfloat16", "seed": 0, "batch": 1, "n": 10, "warmup": 3, "float32_too": True},
        {"size": "golden", "dtype": "float32", "n": 1, "warmup": 1, "float32_too": False},
    ),
    Job(
        "under_load_full",
        "`under_load` with the 10 000 chunks of the timing contract: 200 s of load",
        "benchmarks.gpu.under_load",
        400,
        480,
        _ENGINES,
        {**_LOAD, "chunks": 10000},
        _TOY_LOAD,
        process="full",
    ),
)  # fmt: skip


def find_jobs(names: list[str]) -> list[Job]:
    """Jobs by name, in their order of importance; all of them without names.

    Raises:
        EdgewamError: an unknown name; the message lists the known ones.
    """
    known = {job.name: job for job in JOBS}
    if unknown := [name for name in names if name not in known]:
        raise EdgewamError(f"Unknown job '{unknown[0]}'. Available: {', '.join(known)}.")
    return [job for job in JOBS if not names or job.name in names]

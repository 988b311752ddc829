"""Package versions that are known to misbehave: where, what happens, who says so, and the command that mends it.

A new finding is one more row.  A row matches when its package is installed in such a version and everything else that it
names (another package, a kind of GPU) is here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edgewam.profiles.versions import installed, satisfies


@dataclass(frozen=True)
class KnownBad:
    """versions: specifier of `package`, "" = all.  beside: (package, specifier) that must be installed too.
    without: packages of which one is missing.  sm: compute capabilities such as "sm_120"; empty = anywhere.
    """

    package: str
    versions: str
    what: str
    mend: str
    source: str
    beside: tuple[str, str] | None = None
    without: tuple[str, ...] = ()
    sm: tuple[str, ...] = ()

    def matches(self, find: Callable[[str], str | None], sm: str | None) -> bool:
        """Whether the row speaks of what `find(package) -> version` and the GPU's `sm` say is here."""
        version = find(self.package)
        if version is None or not satisfies(version, self.versions) or (self.sm and sm not in self.sm):
            return False
        if self.without and all(find(package) for package in self.without):
            return False
        if self.beside is None:
            return True
        other = find(self.beside[0])
        return other is not None and satisfies(other, self.beside[1])

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)


_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")

TABLE: tuple[KnownBad, ...] = (
    *(
        KnownBad(
            name, ">=10.12,<10.14", "FP8 engines run up to 78 % slower", f"pip install '{name}>=10.16'",
            "StreamDiffusion PR #12 (facts/performance.md 5, row 15)", sm=("sm_120",),
        )
        for name in _TENSORRT
    ),
    *(
        KnownBad(
            name, ">=10.13,<10.14", "FP8 and FP4 builder flags are accepted and float32 engines are built without a word",
            f"pip install '{name}>=10.16'", "NVIDIA/TensorRT #4590, seen with 10.13.3.9", sm=("sm_110",),
        )
        for name in _TENSORRT
    ),
    KnownBad(
        "tensorrt-rtx", "", "the library refuses to build for this GPU; it serves sm_75, 80, 86, 89, 120 and 121",
        "pip install --extra-index-url https://pypi.nvidia.com 'edgewam[tensorrt]'", "facts/platform.md 2, run with 1.7.1.116",
        sm=("sm_87", "sm_90", "sm_100", "sm_110"),
    ),
    KnownBad(
        "tensorrt-rtx", "<1.6", "sm_121 is not known to it", "pip install 'edgewam[rtx]'", "facts/platform.md 2", sm=("sm_121",)
    ),
    KnownBad(
        "torch-tensorrt-rtx", "", "it pins tensorrt-rtx below 1.6 and so downgrades it; it also needs a CUDA build of torch",
        "pip uninstall -y torch-tensorrt-rtx && pip install 'edgewam[rtx]'", "facts/platform.md 3, run with 2.13.0",
        beside=("tensorrt-rtx", "<1.6"),
    ),
    KnownBad(
        "triton", "<3.7", "its interpreter fails under this NumPy, so kernels cannot be tested on the processor",
        "pip install 'triton>=3.8,<3.10'", "facts/platform.md 6, run with 3.6.0 and numpy 2.4.6", beside=("numpy", ">=2.4"),
    ),
    KnownBad(
        "triton", "<3.7.1", "its assembler does not know sm_110a", "pip install 'triton>=3.8,<3.10'", "facts/platform.md 6",
        sm=("sm_110",),
    ),
    KnownBad(
        "onnxruntime-gpu", "", "it and onnxruntime install into the same folder and overwrite each other",
        "pip uninstall -y onnxruntime-gpu && pip install --force-reinstall --no-deps 'onnxruntime>=1.24'",
        "facts/platform.md 9: the extra nvidia-modelopt[onnx] pulls it in", beside=("onnxruntime", ""),
    ),
    KnownBad(
        "openvino", "==2026.4.1", "float32 products of few rows are wrong by 2e-2 and differ from call to call: no reference",
        "pip uninstall -y openvino", "facts/platform.md 5, run at dim 1024, 16 rows",
    ),
    KnownBad(
        "nvidia-modelopt", "==0.47.*", "it needs two packages that it does not declare", "pip install requests huggingface_hub",
        "facts/platform.md 4, run with 0.47.0", without=("requests", "huggingface_hub"),
    ),
    KnownBad(
        "mujoco", ">=3.9", "the ALOHA models are for MuJoCo 3.8; gym-aloha itself excludes 3.9 and later",
        "pip install mujoco==3.8.1", "facts/robot.md 1.1", beside=("gym-aloha", ""),
    ),
    KnownBad(
        "lerobot", "<=0.6.2", "its gRPC policy server and client unpickle what the network sends (CVE-2026-25874)",
        "pip uninstall -y lerobot", "facts/robot.md 8; huggingface/lerobot #3047",
    ),
)  # fmt: skip


def known_bad(sm: str | None = None, find: Callable[[str], str | None] = installed) -> list[tuple[KnownBad, str]]:
    """Rows that match here, each with the installed version.  sm: of the GPU, None without one or where it is not known."""
    return [(row, find(row.package) or "") for row in TABLE if row.matches(find, sm)]

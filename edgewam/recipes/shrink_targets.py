"""What `edgewam shrink` can make: one record per target.  A new target is a new line here and, where it needs one, a backend."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from edgewam.core.errors import EdgewamError, MissingExtraError, PluginError


@dataclass(frozen=True)
class Target:
    """backend: compiles and runs the stages.  plan: named precision plan of `quantize`, None to stay in float32."""

    name: str
    backend: str
    plan: str | None
    description: str

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return asdict(self)


TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "onnxruntime", None, "ONNX Runtime on the processor, float32"),
        Target("cpu-int8", "onnxruntime", "auto", "ONNX Runtime on the processor, INT8 where harmless, and faster or smaller"),
        Target("torch", "eager", None, "PyTorch as it is, float32: to check a policy where ONNX Runtime is missing"),
    )
}
_QUANTIZERS = ("modelopt", "requests", "huggingface_hub")  # modelopt needs the others and declares neither


def target_named(name: str) -> Target:
    """A target that works on this machine.

    Raises:
        EdgewamError: no such target; the message lists the known ones.
        PluginError: its backend does not work here, with what to install.
        MissingExtraError: what quantises is not installed.
    """
    if name not in TARGETS:
        known = "; ".join(f"{target.name} ({target.description})" for target in TARGETS.values())
        raise EdgewamError(f"Unknown target '{name}'. Known: {known}.")
    target = TARGETS[name]
    if reason := _refusal(target.backend):
        raise PluginError(f"Target '{name}' cannot be made here: {reason}.")
    missing = [package for package in _QUANTIZERS if importlib.util.find_spec(package) is None]
    if target.plan is not None and missing:
        raise MissingExtraError(
            f"Target '{name}' quantises, which needs the package '{missing[0]}'. Install it with: pip install 'edgewam[quant]'"
        )
    return target


def _refusal(backend: str) -> str:
    """Why a backend cannot run or cannot build here; "" when it can do both."""
    from edgewam.core import plugins
    from edgewam.core.stage import Cost, Stage
    from edgewam.core.tensor_spec import TensorSpec

    support = plugins.load("backend_run", backend).supports()
    if support.ok:
        spec = (TensorSpec("x", (1,)),)
        stage = Stage("copy", spec, (TensorSpec("y", (1,)),), Cost(0, 0, 0, 0), lambda value: (value,))
        support = plugins.load("backend_build", backend).supports(stage)
    return "" if support.ok else support.reason

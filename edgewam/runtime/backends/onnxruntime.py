"""ONNX Runtime on the CPU: the embedded default.  This half loads and runs a stage and needs neither torch nor onnx."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError, require
from edgewam.core.stage import Stage
from edgewam.runtime.engine import EngineOptions, Support, check_binding
from edgewam.runtime.memory import Array, BoundCall, HostMemory, Memory


def supports() -> Support:
    """Whether onnxruntime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Support(False, "the package 'onnxruntime' is not installed; install it with: pip install 'edgewam[onnx]'")
    return Support(True)


def memory(options: EngineOptions) -> Memory:
    """NumPy arrays: the CPU provider reads and writes them in place."""
    return HostMemory()


def load(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> OnnxRuntimeEngine:
    """Open `record["file"]` in `directory`.

    Raises:
        ArtifactError: the file is not a graph that ONNX Runtime can open, or has other inputs or outputs than the stage.
    """
    ort = require("onnxruntime", extra="onnx")
    settings = session_options(options)
    path = Path(directory) / record["file"]
    try:
        session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own pybind types, without a common base
        raise ArtifactError(f"ONNX Runtime cannot open '{path}': {error}. Compile the bundle again.") from error
    for kind, specs, found in (("input", stage.inputs, session.get_inputs()), ("output", stage.outputs, session.get_outputs())):
        if {spec.name for spec in specs} != {node.name for node in found}:
            raise ArtifactError(
                f"'{path}' has {kind}s {[node.name for node in found]}, but stage '{stage.name}' declares "
                f"{[spec.name for spec in specs]}. Compile the bundle again."
            )
    return OnnxRuntimeEngine(stage, session)


def session_options(options: EngineOptions) -> Any:
    """ONNX Runtime's settings for our engines."""
    ort = require("onnxruntime", extra="onnx")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    # several stages share two cores: the workers of one must not spin while another runs
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    # it turns the float32 tensors between integer convolutions, which turn their 8-bit ones themselves at a quarter of the bytes
    settings.add_session_config_entry("optimization.disable_specified_optimizers", "NhwcTransformer")
    # without this, weight-only int8 graphs silently get int8 activations
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if _sums_saturate():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return settings


def _sums_saturate() -> bool:
    """Whether sums of two uint8 x int8 products may overflow 16 bits here: x86 without VNNI, as far as Linux tells.

    ONNX Runtime then multiplies uint8 x uint8, which is exact and a little slower.
    """
    try:
        with open("/proc/cpuinfo") as file:
            return "vnni" not in file.read()
    except OSError:
        return True


class OnnxRuntimeEngine:
    """One ONNX Runtime session; every bound call has its own IOBinding over host memory."""

    def __init__(self, stage: Stage, session: Any) -> None:
        self.stage = stage
        self.session = session

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundCall:
        """See `Engine.bind`."""
        check_binding(self.stage, inputs, outputs)
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        run, kept = self.session.run_with_iobinding, (dict(inputs), dict(outputs))

        def call(kept: object = kept) -> None:  # the binding holds addresses only, so the call keeps the arrays alive
            run(binding)

        return call

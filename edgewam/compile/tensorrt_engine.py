"""ONNX file to TensorRT engine file, in a process of its own: memory returns, and a crash is an error and not a death.

`build_engine` is the function of the child; it needs no torch.  What it knows of the engine's layers comes back as plain JSON.
"""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path
from typing import Any

from edgewam.compile.tensorrt_layers import from_inspector, from_log, memory_bytes
from edgewam.core.errors import EdgewamError
from edgewam.profiles.probe import Probe, run_probes
from edgewam.runtime.tensorrt_api import TensorRt, load

FUNCTION = "edgewam.compile.tensorrt_engine.build_engine"
LIMIT_S = 3600.0  # the largest stage took minutes on two cores; a builder that hangs must end some day


def build_in_child(graph: Path, engine: Path, family: str, sm: str, stage: str) -> dict[str, Any]:
    """`build_engine` in a child process, with the seconds and the peak memory that it took.

    Raises:
        EdgewamError: what the library could not take, or how the child died; names the stage.
    """
    arguments = {"graph": str(graph), "engine": str(engine), "family": family, "sm": sm, "stage": stage}
    answer = run_probes([Probe("build", FUNCTION, arguments)], LIMIT_S)["build"]
    if not answer.ok:
        reason = answer.reason if stage in answer.reason else f"Building the engine of stage '{stage}' failed: {answer.reason}"
        raise EdgewamError(reason)
    built: dict[str, Any] = answer.value
    return built


def build_engine(graph: str, engine: str, family: str, sm: str, stage: str) -> dict[str, Any]:
    """Parse `graph`, build for `sm`, write `engine`; returns facts as plain JSON.

    Raises:
        EdgewamError: the library cannot take a node (named, with its reason), or cannot build for this device.
    """
    api = load(family)
    api.log.level = "VERBOSE"
    began = time.monotonic()
    builder = api.builder()
    network = api.network(builder)
    parser = api.parser(network)
    if not parser.parse_from_file(graph):
        raise EdgewamError(_parser_reason(api, parser, stage))
    config = _config(api, builder, sm, stage)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = " ".join((api.log.errors() or ["it gave no reason"])[0].split())
        raise EdgewamError(f"{api.library} {api.version} cannot build stage '{stage}' for {sm}: {reason}")
    with open(engine, "wb") as file:
        file.write(plan)
    facts = _layers_of(api, plan)
    seconds = time.monotonic() - began
    return {
        "library": api.library,
        "version": api.version,
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "engine_bytes": Path(engine).stat().st_size,
        "inputs": [_tensor(api, network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(api, network.get_output(i)) for i in range(network.num_outputs)],
        **facts,
    }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far; where Linux does not say it, its parent's up to its birth counts too."""
    try:
        text = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _config(api: TensorRt, builder: Any, sm: str, stage: str) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = api.module.ProfilingVerbosity.DETAILED  # the read-back needs names and types of all layers
    config.clear_flag(api.module.BuilderFlag.TF32)  # what a stage computes in float32 it computes so on purpose
    if api.family == "full":
        return config  # it builds for the device it runs on
    capability = getattr(api.module.ComputeCapability, sm.upper().replace("_", ""), None)
    config.num_compute_capabilities = 1
    if capability is None or not config.set_compute_capability(capability, 0):
        raise EdgewamError(
            f"{api.library} {api.version} does not build for {sm} (stage '{stage}'). Update it, or build with full TensorRT."
        )
    return config


def _layers_of(api: TensorRt, plan: Any) -> dict[str, Any]:
    """Layers and memory: from the builder's log, which needs no GPU, or from the engine itself where it can be opened."""
    if api.family == "rtx":
        messages = [message for _, message in api.log.rows]
        return {"layers": from_log(messages), **memory_bytes(messages)}
    engine = api.runtime().deserialize_cuda_engine(plan)
    if engine is None:
        raise EdgewamError(f"{api.library} cannot open the engine that it built: {(api.log.errors() or ['no reason given'])[0]}")
    information = engine.create_engine_inspector().get_engine_information(api.module.LayerInformationFormat.JSON)
    weights = engine.get_engine_stat(api.module.EngineStat.TOTAL_WEIGHTS_SIZE)
    return {"layers": from_inspector(information), "weight_bytes": weights, "activation_bytes": engine.device_memory_size_v2}


def _tensor(api: TensorRt, tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": api.dtype_name(tensor.dtype), "shape": list(tensor.shape)}


def _parser_reason(api: TensorRt, parser: Any, stage: str) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    named = next((e for e in errors if e.node_name()), None)
    if named is None:
        text = errors[0].desc() if errors else "it gave no reason"
        return f"{api.library} {api.version} cannot read the graph of stage '{stage}': {' '.join(text.split())}"
    # the text alone may be "false", the condition that failed; the code says of what kind the failure is
    return (
        f"{api.library} {api.version} cannot take node '{named.node_name()}' ({named.node_operator()}) of stage '{stage}': "
        f"{named.code().name}: {' '.join(named.desc().split())}. Write that part of the stage otherwise, or compile it for "
        "another backend."
    )

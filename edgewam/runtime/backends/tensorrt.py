"""TensorRT engines on an NVIDIA GPU: this half opens and runs them with NumPy, cuda-bindings and the library, without torch.

One code for TensorRT for RTX and full TensorRT.  An engine belongs to one kind of card and one exact version of the library;
`tensorrt_record` refuses every other before the library sees the file.  Building is `compile.backends.tensorrt`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewam.core.errors import ArtifactError, ContractError, EdgewamError
from edgewam.core.stage import Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime import tensorrt_api
from edgewam.runtime.cuda_api import checked, gpu_support, load_cudart, read_device
from edgewam.runtime.cuda_memory import CudaMemory, DeviceArray
from edgewam.runtime.engine import EngineOptions, Support, check_binding
from edgewam.runtime.memory import BoundCall
from edgewam.runtime.tensorrt_api import TensorRt
from edgewam.runtime.tensorrt_record import check_library, family_of, rebuild

ALIGNMENT = 256  # bytes, of every address that `IExecutionContext.set_tensor_address` takes (NvInferRuntime.h)


def supports() -> Support:
    """Whether one of the two libraries is here and a GPU answers; which one an engine needs is in its record."""
    if not any(tensorrt_api.is_installed(family) for family in tensorrt_api.LIBRARIES):
        ways = " ".join(f"{family}: {how}." for family, (_, how) in tensorrt_api.LIBRARIES.items())
        return Support(False, f"neither TensorRT for RTX nor full TensorRT can be imported. {ways.removesuffix('.')}")
    return gpu_support()


class TensorRTMemory(CudaMemory):
    """Memory of a GPU whose facts name the library that serves it."""

    def device_facts(self) -> dict[str, str]:
        """See `Memory.device_facts`; MissingExtraError where the library is not installed."""
        api = tensorrt_api.load(tensorrt_api.family_for(self.device.sm))
        return {**super().device_facts(), "runtime": f"{api.library} {api.version}"}


def memory(options: EngineOptions) -> TensorRTMemory:
    """Buffers on `options.device`; "cpu", the default, means the first GPU, because these engines run nowhere else."""
    return TensorRTMemory(device_index(options))


def device_index(options: EngineOptions) -> int:
    """0 of "cpu" and "cuda", n of "cuda:<n>".

    Raises:
        ContractError: anything else.
    """
    name, _, number = options.device.partition(":")
    if name not in ("cpu", "cuda") or not (number.isdecimal() if number else options.device == name):
        raise ContractError(f"Unknown device '{options.device}'. Use cuda or cuda:<n>.")
    return int(number or 0)


def load(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> TensorRTEngine:
    """Open `record["file"]` in `directory` on `options.device`.

    Raises:
        ArtifactError: a missing, truncated or foreign file, one for another card or library version, or an engine with other
            inputs or outputs than the stage; says how to build the right one.
        MissingExtraError: the library that built it is not installed.
    """
    path = Path(directory) / record["file"]
    if not path.is_file() or not path.stat().st_size:
        raise ArtifactError(f"'{path}' is missing or empty. Copy the bundle again or compile it again.")
    api = tensorrt_api.load(family_of(record, path))
    cudart, index = load_cudart(), device_index(options)
    checked(cudart, cudart.cudaSetDevice(index), f"selecting GPU {index}")
    device = read_device(cudart, index)
    check_library(record, path, api.version, device)
    api.log.clear()
    runtime = api.runtime()
    # mapped, not read: a planner's engine is gigabytes, and a Jetson's GPU shares this memory
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data) if runtime is not None else None
    if engine is None:
        raise ArtifactError(
            f"{api.library} {api.version} cannot open '{path}': {_said(api)}. If the file is damaged, copy the bundle again; "
            f"otherwise build it again: {rebuild(device)}."
        )
    _check_tensors(api, engine, stage, path)
    return TensorRTEngine(stage, api, runtime, engine)


class TensorRTEngine:
    """One deserialised engine.  Every bound call has an execution context of its own, with its own addresses."""

    def __init__(self, stage: Stage, api: TensorRt, runtime: Any, engine: Any) -> None:
        self.stage, self.engine = stage, engine
        self._api, self._runtime = api, runtime  # the engine needs its runtime as long as it lives
        self._kernels: Any = None  # what TensorRT for RTX compiled for the first context

    def bind(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> BoundCall:
        """See `Engine.bind`.

        A buffer whose address TensorRT would not take (a row in the middle of a narrow table) is copied to or from one that it
        takes, as part of the call.

        Raises:
            ContractError: buffers that are not of one `CudaMemory`.
            EdgewamError: no room for another execution context.
        """
        check_binding(self.stage, inputs, outputs)
        place = _memory_of(self.stage, [*inputs.values(), *outputs.values()])
        self._api.log.clear()
        context = self._context()
        if context is None:
            raise EdgewamError(
                f"{self._api.library} has no room for stage '{self.stage.name}': {_said(self._api)}. Free memory on the GPU "
                "('nvidia-smi' lists who holds it), or compile with a smaller plan."
            )
        before: list[BoundCall] = []
        after: list[BoundCall] = []
        kept: list[DeviceArray] = []

        def address(spec: TensorSpec, buffer: DeviceArray | None, copies: list[BoundCall], is_input: bool) -> None:
            used = buffer
            if used is None or used.pointer % ALIGNMENT:  # an output nobody asked for still needs a place
                used = place.allocate(spec)
                if buffer is not None:
                    copies.append(place.copy(used, buffer) if is_input else place.copy(buffer, used))
            kept.append(used)
            if not context.set_tensor_address(spec.name, used.pointer):
                raise EdgewamError(f"{self._api.library} refuses the memory of '{spec.name}' of stage '{self.stage.name}'.")

        for spec in self.stage.inputs:
            address(spec, inputs[spec.name], before, is_input=True)
        for spec in self.stage.outputs:
            address(spec, outputs.get(spec.name), after, is_input=False)
        return self._call(place, context, before, after, kept)

    def _context(self) -> Any:
        if self._api.family == "full":
            return self.engine.create_execution_context()
        # its kernels are compiled when a context is made; a loop has one per step, and they share what the first compiled
        runtime_config = self.engine.create_runtime_config()
        if self._kernels is None:
            self._kernels = runtime_config.create_runtime_cache()
        runtime_config.set_runtime_cache(self._kernels)
        return self.engine.create_execution_context(runtime_config)

    def _call(
        self, place: CudaMemory, context: Any, before: list[BoundCall], after: list[BoundCall], kept: list[DeviceArray]
    ) -> BoundCall:
        execute = context.execute_async_v3

        def call(kept: object = kept) -> None:  # the context holds addresses only
            for copy in before:
                copy()
            if not execute(int(place.current())):
                raise EdgewamError(f"{self._api.library} could not start stage '{self.stage.name}': {_said(self._api)}.")
            for copy in after:
                copy()

        return call


def _memory_of(stage: Stage, buffers: list[Any]) -> CudaMemory:
    places = {id(getattr(buffer, "memory", None)): getattr(buffer, "memory", None) for buffer in buffers}
    place = next(iter(places.values()), None)
    if len(places) != 1 or not isinstance(place, CudaMemory):
        raise ContractError(
            f"Stage '{stage.name}' runs on the GPU: bind it to buffers of one memory that `memory(options)` gives."
        )
    return place


def _check_tensors(api: TensorRt, engine: Any, stage: Stage, path: Path) -> None:
    """Names, shapes, dtypes and places of the engine's tensors must be those of the stage."""
    modes, on_device = api.module.TensorIOMode, api.module.TensorLocation.DEVICE
    found: dict[Any, dict[str, TensorSpec]] = {modes.INPUT: {}, modes.OUTPUT: {}}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape, dtype = tuple(engine.get_tensor_shape(name)), api.dtype_name(engine.get_tensor_dtype(name))
        if min(shape, default=0) < 0 or engine.get_tensor_location(name) != on_device:
            raise ArtifactError(f"'{path}' has the tensor '{name}' of a shape known only at run time. Compile the bundle again.")
        found[engine.get_tensor_mode(name)][name] = TensorSpec(name, shape, dtype)
    for kind, specs, have in (("inputs", stage.inputs, found[modes.INPUT]), ("outputs", stage.outputs, found[modes.OUTPUT])):
        if have != {spec.name: spec for spec in specs}:
            raise ArtifactError(
                f"'{path}' has the {kind} {_listed(have.values())}, but stage '{stage.name}' declares {_listed(specs)}. "
                "Compile the bundle again."
            )


def _listed(specs: Any) -> str:
    return ", ".join(f"{spec.name} {spec}" for spec in specs) or "none"


def _said(api: TensorRt) -> str:
    return "; ".join(api.log.errors()) or "it gives no reason"

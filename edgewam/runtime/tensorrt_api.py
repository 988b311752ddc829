"""One adapter over the Python API that TensorRT 10.16 and later and TensorRT for RTX share; both halves of `tensorrt` use it.

Networks are strongly typed: precision is in the ONNX and nowhere else, so that no name is touched that TensorRT 11 removed
(facts/platform.md 1).  Nothing is imported before `load`, and nothing here needs torch or a GPU.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from edgewam.core.errors import ContractError, MissingExtraError

# family -> (module, how to get it)
LIBRARIES = {
    "rtx": ("tensorrt_rtx", "Install it with: pip install 'edgewam[rtx]'"),
    "full": (
        "tensorrt",
        "It is not on PyPI: its wheels come from NVIDIA's own package index, on the machine that will run the engines: "
        "pip install --extra-index-url https://pypi.nvidia.com 'tensorrt-cu13>=10.16,<12'. A Jetson has it with JetPack",
    ),
}
# what TensorRT for RTX 1.7 lists; it refused 87, 90, 100, 103 and 110 (facts/platform.md 2)
RTX_SMS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
# dtype of a TensorSpec -> name in `DataType`
DTYPES = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "float8_e4m3": "FP8",
    "int64": "INT64", "int32": "INT32", "int8": "INT8", "uint8": "UINT8", "bool": "BOOL",
}  # fmt: skip
ERRORS = ("INTERNAL_ERROR", "ERROR")
SEVERITIES = (*ERRORS, "WARNING", "INFO", "VERBOSE")
# every failed build or load on a machine without a driver logs this beside the real reason
_NOISE = "catchCudaError"


class Log:
    """What the library said: rows of (severity, message), the oldest first; rows below `level` are not kept."""

    def __init__(self) -> None:
        self.level = "WARNING"
        self.rows: list[tuple[str, str]] = []

    def add(self, severity: str, message: str) -> None:
        """Keep a row, unless it is less important than `level`."""
        if SEVERITIES.index(severity) <= SEVERITIES.index(self.level):
            self.rows.append((severity, message))

    def clear(self) -> None:
        """Forget all rows, before the next build or load."""
        self.rows.clear()

    def errors(self) -> list[str]:
        """Messages of errors; what only says that there is no driver comes last."""
        found = [message.strip() for severity, message in self.rows if severity in ERRORS]
        return sorted(found, key=lambda message: _NOISE in message)


@dataclass(frozen=True)
class TensorRt:
    """A loaded library.  module: `tensorrt_rtx` or `tensorrt`.  logger: the only one that this process gives it."""

    family: str
    module: Any
    log: Log
    logger: Any

    @property
    def library(self) -> str:
        """Name of the module."""
        return LIBRARIES[self.family][0]

    @property
    def version(self) -> str:
        """Exact version; engines open in no other."""
        return str(self.module.__version__)

    def dtype(self, name: str) -> Any:
        """The library's DataType of a TensorSpec dtype."""
        if name not in DTYPES:
            raise ContractError(f"TensorRT has no tensors of dtype '{name}'. Available: {', '.join(DTYPES)}.")
        return getattr(self.module.DataType, DTYPES[name])

    def dtype_name(self, value: Any) -> str:
        """The TensorSpec dtype of a DataType; ContractError for one that stages do not have."""
        for name in DTYPES:
            if self.dtype(name) == value:
                return name
        raise ContractError(f"TensorRT gave a tensor of type {value}, which no stage has. Available: {', '.join(DTYPES)}.")

    def builder(self) -> Any:
        """A new Builder; the process logger is the first one that any object got, so it is given to all."""
        return self.module.Builder(self.logger)

    def network(self, builder: Any) -> Any:
        """An empty strongly typed network with an explicit batch, which 11.x no longer has a flag for."""
        flags = self.module.NetworkDefinitionCreationFlag
        explicit = getattr(flags, "EXPLICIT_BATCH", None)
        wanted = 1 << int(flags.STRONGLY_TYPED) | (0 if explicit is None else 1 << int(explicit))
        return builder.create_network(wanted)

    def parser(self, network: Any) -> Any:
        """An ONNX parser that fills `network`."""
        return self.module.OnnxParser(network, self.logger)

    def runtime(self) -> Any:
        """A new Runtime, which needs a driver to open engines."""
        return self.module.Runtime(self.logger)


def family_for(sm: str) -> str:
    """The family whose engines a compute capability runs."""
    return "rtx" if sm in RTX_SMS else "full"


def is_installed(family: str) -> bool:
    """Whether `load` works here."""
    try:
        load(family)
    except MissingExtraError:
        return False
    return True


@functools.cache
def load(family: str) -> TensorRt:
    """Import the library of a target family, "rtx" or "full", once per process: it ignores every logger but the first.

    Raises:
        ContractError: another family.
        MissingExtraError: not installed, or only in part; says how to get it.
    """
    if family not in LIBRARIES:
        raise ContractError(f"Unknown TensorRT family '{family}'. Available: {', '.join(LIBRARIES)}.")
    name, how = LIBRARIES[family]
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # the bindings alone, without the library, are an ImportError too
        raise MissingExtraError(f"This step needs the package '{name}', which cannot be imported: {error}. {how}.") from error
    log = Log()
    return TensorRt(family, module, log, _logger(module, log))


def _logger(module: Any, log: Log) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

    return Logger()

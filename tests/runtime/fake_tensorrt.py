"""A TensorRT whose engines compute with NumPy on the memory of `fake_cuda`, with the names and habits of the real library.

An engine file is one of `FUNCTIONS` with its declared tensors.  Like the real one it takes aligned addresses only, wants one for
every tensor, does in its first run what no graph can hold, and answers a failure with None or False and a line in the log.
"""

from __future__ import annotations

import json
from enum import IntEnum
from types import ModuleType

import numpy as np

from edgewam.runtime import bfloat16
from tests.runtime.fake_cuda import cudaError_t

MAGIC = b"FAKE"
VERSION = "1.7.1.116"
FUNCTIONS = {
    "step": lambda x, rate: (x * rate + 1, 2 * x),
    "mix": lambda image, index, mask: (np.where(mask, image.astype(np.float32), index[0]),),
    "half": lambda x: (x * np.float32(1.0078125),),
}


class DataType(IntEnum):
    """Numbers as in the real library."""

    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


class TensorIOMode(IntEnum):
    """Direction of a tensor."""

    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(IntEnum):
    """Where a tensor's address points to."""

    DEVICE, HOST = range(2)


NUMPY = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


class Severity(IntEnum):
    """Of a log line."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """Base of a logger."""

    def __init__(self):
        pass


def engine_file(function, inputs, outputs, host=()):
    """Bytes of an engine.  inputs, outputs: (name, shape, DataType's name).  host: names that want a host address."""
    text = json.dumps({"function": function, "inputs": inputs, "outputs": outputs, "host": list(host)}).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text


def module_over(cuda):
    """The module, on a fake CUDA."""

    class Runtime:
        def __init__(self, logger):
            assert isinstance(logger, ILogger)
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            data = bytes(serialized_engine)
            length = int.from_bytes(data[4:12], "little")
            if data[:4] != MAGIC or len(data) != 12 + length:
                self.logger.log(
                    Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag mismatch)"
                )
                return None
            return Engine(json.loads(data[12:]), self.logger)

    class Engine:
        def __init__(self, facts, logger):
            self.facts, self.logger = facts, logger
            self.rows = [(*row, mode) for mode, kind in ((1, "inputs"), (2, "outputs")) for row in facts[kind]]
            self.contexts, self.num_compilations = [], 0

        @property
        def num_io_tensors(self):
            return len(self.rows)

        def get_tensor_name(self, index):
            return self.rows[index][0]

        def get_tensor_shape(self, name):
            return self.row(name)[1]

        def get_tensor_dtype(self, name):
            return DataType[self.row(name)[2]]

        def get_tensor_mode(self, name):
            return TensorIOMode(self.row(name)[3])

        def get_tensor_location(self, name):
            return TensorLocation(name in self.facts["host"])

        def create_runtime_config(self):
            return RuntimeConfig()

        def create_execution_context(self, runtime_config=None):
            kernels = runtime_config.cache if runtime_config else set()
            self.num_compilations += "kernels" not in kernels
            kernels.add("kernels")
            if cuda.room < 0:
                self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory")
                return None
            self.contexts.append(Context(self))
            return self.contexts[-1]

        def row(self, name):
            return next(row for row in self.rows if row[0] == name)

    class RuntimeConfig:
        def __init__(self):
            self.cache = set()

        def create_runtime_cache(self):
            return set()

        def set_runtime_cache(self, cache):
            self.cache = cache
            return True

    class Context:
        def __init__(self, engine):
            self.engine, self.addresses, self.is_warm = engine, {}, False

        def set_tensor_address(self, name, memory):
            assert isinstance(memory, int)
            if memory % 256 or name not in [row[0] for row in self.engine.rows]:
                self.engine.logger.log(Severity.ERROR, "Error Code 3: API Usage Error (condition: isAligned)")
                return False
            self.addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            assert isinstance(stream_handle, int)
            rows, log = self.engine.rows, self.engine.logger.log
            if set(self.addresses) != {row[0] for row in rows}:
                log(Severity.ERROR, "Error Code 3: API Usage Error (a tensor has no address)")
                return False
            if not self.is_warm and cuda._capturing():
                cuda._refuse()
                log(Severity.ERROR, "Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
                return False
            self.is_warm = True
            return cuda.issue("enqueue", stream_handle, self.compute)[0] == cudaError_t.cudaSuccess

        def array(self, name, shape, dtype):
            size = np.dtype(NUMPY[dtype]).itemsize * int(np.prod(shape))
            return np.frombuffer(cuda.bytes_at(self.addresses[name], size), NUMPY[dtype]).reshape(shape)

        def compute(self):
            facts = self.engine.facts
            outputs = [(self.array(*row), row[2]) for row in facts["outputs"]]
            inputs = [self.array(*row) for row in facts["inputs"]]
            values = [
                bfloat16.from_bits(a) if row[2] == "BF16" else a.copy() for a, row in zip(inputs, facts["inputs"], strict=True)
            ]
            for array, _ in outputs:  # early, before all inputs were read for the last time
                array.fill(True)
            for (array, dtype), result in zip(outputs, FUNCTIONS[facts["function"]](*values), strict=True):
                array[...] = bfloat16.to_bits(result) if dtype == "BF16" else result

    module = ModuleType("tensorrt_rtx")
    module.__version__ = VERSION
    module.ILogger, module.Runtime = ILogger, Runtime
    module.DataType, module.TensorIOMode, module.TensorLocation = DataType, TensorIOMode, TensorLocation
    return module

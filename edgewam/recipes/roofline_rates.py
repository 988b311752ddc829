"""What this processor reaches now: memory copies, float32 products and int8 products, the best of many tries.

Products are timed on one thread and multiplied: threads that wait for each other on a shared machine measure its neighbours.
The floor of a figure that is measured here stands on these (DESIGN section 7); `benchmarks.cpu_rates` prints them for
`profiles/devices/cpu.toml`.  For processors only: a GPU is measured by `make gpu`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgewam.core.errors import EdgewamError, require

if TYPE_CHECKING:
    from edgewam.profiles.device import Device

COPY_BYTES = 256 * 10**6  # of one thread; larger than any last-level cache of a robot's computer
SIZE = 1024  # rows, columns and depth of the products: 4 MB a matrix, large enough for the full rate
TRY_S = 1.0  # each rate is the best of what fits
_LIMIT_S = 60.0


def rates_here(threads: int) -> dict[str, float]:
    """{"copy_gb_s", "fp32", "int8"}: GB/s read and written, and 10^12 operations a second; int8 is left out without ONNX Runtime.

    Measured in child processes, where the libraries compute with one thread each.

    Raises:
        EdgewamError: a measurement failed, with its reason.
    """
    from edgewam.profiles.probe import Probe, run_probes

    environment = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    found = {}
    for name in ("copy_gb_s", "fp32", "int8"):  # one after the other: together they would share what they measure
        probe = Probe(name, f"{__name__}.{name}_rate", {"threads": threads}, environment)
        answer = run_probes([probe], _LIMIT_S)[name]
        if answer.ok:
            found[name] = float(answer.value)
        elif name != "int8":
            raise EdgewamError(
                f"Cannot measure the rate '{name}' of this processor: {answer.reason}. Name a device with --device."
            )
    return found


def processor_here(threads: int) -> Device:
    """The generic processor with the rates and the last-level cache of this one."""
    from dataclasses import replace

    from edgewam.profiles.device import Quantity, load_device
    from edgewam.profiles.machine import read_machine

    rates = rates_here(threads)
    cpu = load_device("cpu").with_rates(
        f"this machine, {threads} threads", rates["copy_gb_s"], {name: rates[name] for name in ("fp32", "int8") if name in rates}
    )
    cache = cache_bytes()
    size = Quantity(cache / 1e6, "read from /sys") if cache else None
    return replace(cpu, title=f"{read_machine().cpu} ({threads} threads)", cache_mb=size)


def cache_bytes(root: str = "/sys/devices/system/cpu/cpu0/cache") -> int | None:
    """Size of the last-level cache; None where the system does not say."""
    sizes = {}
    for index in Path(root).glob("index*"):
        try:
            sizes[int((index / "level").read_text())] = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
    last = sizes.get(max(sizes, default=0), "")
    return int(last[:-1]) * {"K": 2**10, "M": 2**20}[last[-1]] if last[-1:] in ("K", "M") else None


def copy_gb_s_rate(threads: int) -> float:
    """Bytes read plus bytes written, 10^9 a second, of copies in as many threads."""
    pairs = [(np.ones(COPY_BYTES // 8), np.zeros(COPY_BYTES // 8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)))
    return 2 * COPY_BYTES * threads / seconds / 1e9


def fp32_rate(threads: int) -> float:
    """10^12 operations a second of NumPy's float32 product, per thread times the threads."""
    a = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    out = np.empty_like(a)
    return threads * 2 * SIZE**3 / _best(lambda: np.matmul(a, a, out=out)) / 1e12


def int8_rate(threads: int) -> float:
    """10^12 operations a second of ONNX Runtime's integer product, uint8 times int8, per thread times the threads."""
    onnx, ort = require("onnx", extra="onnx"), require("onnxruntime", extra="onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.integers(-127, 128, (SIZE, SIZE), np.int8), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "product",
        [helper.make_tensor_value_info("a", kind.UINT8, [SIZE, SIZE])],
        [helper.make_tensor_value_info("y", kind.INT32, [SIZE, SIZE])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"a": rng.integers(0, 256, (SIZE, SIZE), np.uint8)}
    return threads * 2 * SIZE**3 / _best(lambda: session.run(None, given)) / 1e12


def _best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of many calls: a rate is what the machine can do, not what its neighbours leave."""
    function()
    best, end = float("inf"), time.perf_counter() + TRY_S
    while (began := time.perf_counter()) < end:
        function()
        best = min(best, time.perf_counter() - began)
    return best

"""What this processor copies and multiplies, as a table for `edgewam/profiles/devices/cpu.toml`.

    python3 -m benchmarks.cpu_rates [THREADS]

Nothing is written: look at it twice, on a quiet machine, before it goes into the file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from edgewam.profiles.machine import read_machine
from edgewam.recipes.roofline_rates import COPY_BYTES, SIZE, cache_bytes, rates_here


def as_toml(rates: Mapping[str, float], label: str, threads: int, where: str) -> str:
    """A `[measured.<label>]` table; `where` ends the source of each number."""
    bandwidth = f"NumPy copies of {COPY_BYTES // 10**6} MB, bytes read and written, {threads} threads, {where}"
    lines = [f"[measured.{label}]", f'bandwidth_gb_s = {{ value = {rates["copy_gb_s"]:.3g}, source = "{bandwidth}" }}']
    if (cache := cache_bytes()) is not None:
        lines.append(f'cache_mb = {{ value = {cache / 1e6:.3g}, source = "last level, read from /sys" }}')
    lines += ["", f"[measured.{label}.peak_tflops]"]
    for name, how in (("fp32", f"NumPy product {SIZE}^3"), ("int8", f"ONNX Runtime MatMulInteger {SIZE}^3")):
        if name in rates:
            lines.append(f'{name} = {{ value = {rates[name]:.3g}, source = "{how}, one thread times {threads}, {where}" }}')
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    cpu = read_machine().cpu
    where = f"{cpu}, {time.strftime('%Y-%m-%d')}, best of a second"
    print(as_toml(rates_here(threads), "-".join(cpu.lower().split()), threads, where))


if __name__ == "__main__":
    main()

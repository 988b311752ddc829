"""The INT8 engine against the float32 engine of the same student: chunk, programs and every stage, in one process.

    python3 -m benchmarks.int8 [--bundle INT8] [--float BUNDLE] [--threads 2] [--check]

Both sides are timed in turns, block by block.  Beside the times: bytes of the weights, and for each stage the share of its
float32 time that lies in layers which stayed float32, or is no layer at all: that is why a stage does not win more.
One table, one JSON under benchmarks/results/<device>/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, now_utc, slug
from benchmarks.success import bundle_of
from edgewam.cli._shipped import shipped
from edgewam.core.artifacts import Manifest, read_manifest, versions, write_json
from edgewam.core.errors import EdgewamError
from edgewam.profiles.machine import read_machine
from edgewam.profiles.report import table
from edgewam.recipes.report_latency import measure_latency
from edgewam.runtime.bundle import Bundle

MIN_SMALLER = 3.5  # of all weights that the engine multiplies with, what stayed float32 included
MAX_EXCESS_ERROR, MAX_SECONDS = 0.10, 120.0


def weight_bytes(bundle: Bundle) -> int:
    """Bytes that the engine multiplies with, as its stages declare them."""
    return sum(stage.cost.weight_bytes for stage in bundle.stages.values())


def layer_shares(layers: Sequence[Mapping[str, Any]], stage: str, float_ms: float) -> dict[str, float]:
    """Of a stage's float32 time: share in integer layers, in layers that stayed float32, and in what is no layer."""
    own = [row for row in layers if row["stage"] == stage]
    time_in = {kept: sum(row["float32_ms"] for row in own if (row["format"] == "none") is kept) for kept in (False, True)}
    # layers were timed one at a time, so that their sum may exceed the stage by a little
    total = max(float_ms, sum(time_in.values()))
    return {"integer": time_in[False] / total, "float32": time_in[True] / total, "no_layer": 1 - sum(time_in.values()) / total}


def measure(int8: Bundle, single: Bundle, quantized: Manifest, n: int) -> dict[str, Any]:
    """Everything the table shows, as plain JSON."""
    timed = measure_latency({"engine": int8, "eager": single}, n)  # the partner's name is the report's
    # times of layers mean something beside those of stages only where both were taken with as many threads
    comparable = quantized.measured["threads"] == int8.options.threads
    layers = quantized.measured["layers"] if comparable else None
    stages = []
    for program in timed["programs"]:
        for row in program["rows"]:
            ours, theirs = row["engine"]["p50_ms"], row["eager"]["p50_ms"]
            stages.append(
                {"program": program["name"], "stage": row["stage"], "calls": row["calls"], "int8_ms": ours, "float32_ms": theirs,
                 "speedup": theirs / ours, "share_of_time": layer_shares(layers, row["stage"], theirs) if layers else None}
            )  # fmt: skip
    figures = {
        name: {"int8": row["engine"], "float32": row["eager"], "speedup": row["speedup"]}
        for name, row in timed["figures"].items()
    }
    size = quantized.measured["bytes"]
    return {
        "figures": figures,
        "stages": stages,
        "weights": {
            "float32_engine_bytes": weight_bytes(single), "int8_engine_bytes": weight_bytes(int8),
            "whole_ratio": weight_bytes(single) / weight_bytes(int8), "quantised_ratio": size["float32"] / size["packed"], **size,
        },
        "excess_error": {name: quantized.measured[f"excess_error_{name}"] for name in ("median", "p99")},
        "quantise_seconds": quantized.measured["seconds"],
        "contract": timed["contract"],
        "contract_text": timed["contract_text"],
    }  # fmt: skip


def gates(found: Mapping[str, Any]) -> dict[str, bool]:
    """What the INT8 engine must hold."""
    chunk = found["figures"]["L_chunk"]
    return {
        "chunk p50 below float32": chunk["int8"]["p50_ms"] < chunk["float32"]["p50_ms"],
        f"weights {MIN_SMALLER}x smaller": found["weights"]["whole_ratio"] >= MIN_SMALLER,
        f"excess error median <= {MAX_EXCESS_ERROR:g}": found["excess_error"]["median"] <= MAX_EXCESS_ERROR,
        f"quantised within {MAX_SECONDS:g} s": found["quantise_seconds"] <= MAX_SECONDS,
    }


def text(found: Mapping[str, Any], judged: Mapping[str, bool]) -> str:
    """Tables and gates."""
    rows = [["figure", "INT8 p50 ms", "p99", "float32 p50 ms", "p99", "n", "times as fast"]]
    for name, row in found["figures"].items():
        times = [f"{row[side][key]:.3f}" for side in ("int8", "float32") for key in ("p50_ms", "p99_ms")]
        rows.append([name, *times, str(row["int8"]["n"]), f"{row['speedup']:.2f}"])
    stages = [["program", "stage", "calls", "INT8 ms", "float32 ms", "times as fast", "in integer", "in float32", "no layer"]]
    for row in found["stages"]:
        share = row["share_of_time"]
        shares = [f"{100 * share[key]:.0f} %" if share else "-" for key in ("integer", "float32", "no_layer")]
        times = [f"{row[key]:.3f}" for key in ("int8_ms", "float32_ms")]
        stages.append([row["program"], row["stage"], str(row["calls"]), *times, f"{row['speedup']:.2f}", *shares])
    size = found["weights"]
    lines = [
        f"weights in use: {size['float32_engine_bytes'] / 1e6:.2f} MB -> {size['int8_engine_bytes'] / 1e6:.2f} MB "
        f"({size['whole_ratio']:.2f}x smaller); of the {size['layers']} quantised layers {size['float32'] / 1e6:.2f} -> "
        f"{size['packed'] / 1e6:.2f} MB ({size['quantised_ratio']:.2f}x)",
        f"excess error ratio: median {found['excess_error']['median']:.3f}, p99 {found['excess_error']['p99']:.3f}; "
        f"quantised in {found['quantise_seconds']:.0f} s",
        *(f"{name}: {'PASS' if passed else 'FAIL'}" for name, passed in judged.items()),
    ]
    return "\n".join([found["contract_text"], table(rows), table(stages), *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when --check and a gate fails, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.int8", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="INT8 bundle (default: compiled from the shipped artifact)")
    parser.add_argument("--float", type=Path, dest="single", help="float32 bundle of the same student (default: the shipped one)")
    parser.add_argument("--quantized", type=Path, help="what the INT8 bundle was compiled from (default: the shipped one)")
    parser.add_argument("--work", type=Path, default=Path("outputs/success"), help="where a bundle is compiled")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=300, help="timed calls per figure")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: benchmarks/results/<device>)")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a gate fails")
    a = parser.parse_args(argv)
    try:
        int8 = Bundle.open(a.bundle or bundle_of("quantized", 2, a.work), threads=a.threads)
        single = Bundle.open(a.single or shipped("bundle"), threads=a.threads)
        quantized = read_manifest(a.quantized or shipped("quantized"), kind="quantized")
        parents = int8.manifest.parents if int8.manifest else {}
        if quantized.digest != parents.get("quantized"):
            raise EdgewamError(f"'{int8.path}' was not compiled from '{quantized.digest[:12]}'. Give its --quantized directory.")
        if not single.manifest or set(single.manifest.parents.values()) - set(parents.values()):
            raise EdgewamError(
                f"'{single.path}' holds another policy than '{int8.path}'. Give the --float bundle of its student."
            )
        found = measure(int8, single, quantized, a.n)
    except EdgewamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    judged = gates(found)
    print(text(found, judged))
    cpu = read_machine().cpu
    digests = {"bundle_int8": int8.digest, "bundle": single.digest, "quantized": quantized.digest}
    out = (a.out or RESULTS / slug(cpu)) / "int8.json"
    write_json(out, {"when_utc": now_utc(), "cpu": cpu, "versions": versions(), "digests": digests, **found, "gates": judged})
    print(f"Written to {out}")
    return 1 if a.check and not all(judged.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

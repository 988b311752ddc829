"""A small, complete data set of the report, with figures that are easy to find again."""

from __future__ import annotations

from typing import Any

TIMING = {"n": 5, "p50_ms": 4.0, "p95_ms": 5.0, "p99_ms": 6.25, "max_ms": 7.0, "mean_ms": 4.5}
EAGER = {**TIMING, "p50_ms": 12.0}
RATE = {"successes": 9, "n": 10, "rate": 0.9, "wilson": {"low": 0.5958, "high": 0.9821}}


def report_data() -> dict[str, Any]:
    """Fresh each time: a test may change it."""
    row = {"stage": "denoise", "calls": 2, "engine": TIMING, "eager": EAGER, "floor_ms": 1.0, "speedup": 3.0, "above_floor": 4.0}
    program = {
        "name": "act",
        "rows": [row],
        **{key: row[key] for key in ("engine", "eager", "floor_ms", "speedup", "above_floor")},
    }
    deviation = {"stage": "denoise", "output": "x", "relative": 2e-7, "max_abs": 1e-6, "cosine": 1.0, "num_bad": 0}
    reference = {
        "reference": "student",
        "gate1": {"tolerance": 1e-4, "passed": True, "worst": 2e-7, "rows": [deviation]},
        "gate2": {"passed": True, "median": 3e-6, "p99": 8e-6, "limits": {"median": 0.01, "p99": 0.05}},
        "chunk": [{"index": i, "median": 1e-7 * (i + 1), "p99": 1e-6, "spread": 0.02} for i in range(4)],
    }
    quantiles = {"n": 100, "p50": 0.25, "p99": 0.5, "max": 1.25}
    control = {
        "control_hz": 50.0, "chunk_hz": 6.25, "ticks": 100, "missed": 1, "late": 0, "held": 2, "rejected": 0, "seconds": 2.0,
        "num_strict_successes": 1, "num_episodes": 2, "violations": 0, "is_complete": True,
        "source": "this run, 0123", "command": "x",
        "lateness_ms": quantiles, "engine_ms": quantiles, "observation_to_command_ms": quantiles,
        "histograms": {"lateness_ms": {"edges_ms": [0.0, 0.1, 0.2, 0.4, 1.0], "counts": [0, 60, 40, 0]}},
    }  # fmt: skip
    success = {
        "policy": "this bundle", "task": "transfer_cube", "prompt": "pass it", "source": "this run, abc", "is_shipped": False,
        "command": "edgewam evaluate b --seeds 10", "strict": RATE, "success": RATE, "median_strict_time_s": None,
        "seam_jerk": 0.03, "inner_jerk": 0.01,
    }  # fmt: skip
    pixel = "data:image/webp;base64,UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA=="
    return {
        "format": 1,
        "bundle": {
            "name": "small", "path": "b", "digest": "ab" * 32, "family": "aha_wam", "backend": "onnxruntime",
            "precision": "fp32", "num_action_steps": 2, "size_bytes": 10_860_000,
        },
        "film": {
            "seed": 3, "prompt": "pass the <red> cube", "ticks": 200, "seconds": 4.0, "strict_success": True, "pictures": 100,
            "width": 1, "height": 1, "film_bytes": 26, "film": pixel, "still": pixel,
        },
        "road": [
            {"role": "dataset", "digest": "cd" * 32, "origin": "missing", "facts": []},
            {"role": "bundle", "digest": "ab" * 32, "origin": "here", "path": "b", "size_bytes": 10_860_000,
             "facts": [{"label": "training", "value": 5.0, "form": "minutes"}]},
        ],
        "latency": {
            "programs": [program],
            "figures": {"L_chunk": {"engine": TIMING, "eager": EAGER, "speedup": 3.0, "above_floor": None}},
            "floor": "Floor: measured", "contract": {}, "contract_text": "a machine | n 5", "eager_reason": "",
        },
        "parity": {"references": [reference], "num_frames": 4, "frames_from": "an episode"},
        "success": {"rows": [success], "comparisons": [], "headline": 0},
        "control": control,
        "commands": [{"what": "This page", "command": "edgewam report b"}],
        "notes": [],
        "made": {"when_utc": "2026-11-21T00:00:00Z", "versions": {"edgewam": "0.1.0"}, "seconds": 1.5,
                 "machine": {"cpu": "a cpu", "num_cpus": 2, "system": "Linux"}},
    }  # fmt: skip

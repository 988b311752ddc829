"""The latency that a GPU bundle had where it was made, with its timing contract: what a robot engineer compares his own with.

Bundles of the processor have none: a build machine's clock says nothing about the robot's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from edgewam.core import plugins
from edgewam.core.artifacts import Manifest
from edgewam.profiles.measure import measure
from edgewam.runtime.bundle import KIND, Bundle
from edgewam.runtime.measure import contract_of
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.selftest import GoldenCall, capture_programs

_N, _WARMUP = 100, 20  # of each figure; `edgewam profile` measures longer


def capture_and_time(bundle: Bundle, pipeline: Pipeline, calls: Iterable[GoldenCall], config: dict[str, Any]) -> dict[str, Any]:
    """Capture every program, time what the policy calls, and return both as plain JSON for the manifest.

    Args:
        bundle: of the policy; its pipeline and manifest are replaced.
        pipeline: over the engines, in the device's memory.
        calls: golden calls, the inputs of capture.
        config: of the manifest, for the contract's precision.
    """
    graphs = capture_programs(pipeline, calls, "this bundle")
    figures: dict[str, Any] = {}
    if bundle.policy is not None:
        opened = replace(bundle, pipeline=pipeline, manifest=Manifest(KIND, config))
        policy = plugins.load("policy", bundle.policy)
        for name, call in policy.timed_calls(opened).items():
            timing = measure(call, _N, _WARMUP)
            contract = contract_of(opened, name, policy.FIGURE_PROGRAMS.get(name), _N, _WARMUP)
            figures[name] = {**timing.to_json(), "contract": contract.to_json()}
    return {"graphs": graphs, "timing": figures}

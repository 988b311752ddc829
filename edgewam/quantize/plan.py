"""Precision plans: which layer of which stage gets which format.  Rules are tried in order, the first that matches decides.

A plan is plain JSON (`plan.json`).  A rule that names what does not exist is refused with the nearest names: a typing error
must not leave a layer in another precision than its author believes.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from edgewam.core import plugins
from edgewam.core.errors import ContractError
from edgewam.quantize.formats import FORMATS, GROUPS, NONE
from edgewam.quantize.layers import Layer, LayerName

VERSION = 1


@dataclass(frozen=True)
class Rule:
    """Shell-style patterns of a stage's and a layer's name, the format of what matches both, and why."""

    stage: str
    layer: str
    format: str
    reason: str = ""


@dataclass(frozen=True)
class PrecisionPlan:
    """Rules for a backend.  What no rule matches stays as it is.

    backend: the one that will run it; formats that it would turn back into floats are refused.
    alpha: how much of the activations' outliers SmoothQuant moves into the weights, 0 (none) to 1 (all).
    percentile: of the magnitudes that calibration sees, 50 to 100; what lies beyond saturates.
    per_step: static layers of a stage in the sampler's loop get one activation scale per step (`quantize.steps`).
    group: so many inputs of a layer share a scale in formats of 4 bits, 64 or 128.
    """

    name: str
    backend: str
    rules: tuple[Rule, ...]
    # half, the published default; on `small` 0.3 and 0.7 gave a fifth more error than 0.5
    alpha: float = 0.5
    # robot activations have few outliers, and those matter: on `small` 99.9 gave 1.4 times the error of 99.999
    percentile: float = 99.999
    per_step: bool = False
    group: int = GROUPS[0]

    def __post_init__(self) -> None:
        """Refuse what no layer could be quantised with."""
        if not (0 <= self.alpha <= 1 and 50 <= self.percentile <= 100):
            raise ContractError(
                f"Plan '{self.name}' needs alpha in 0..1 and percentile in 50..100, got {self.alpha} and {self.percentile}."
            )
        if self.group not in GROUPS:
            raise ContractError(f"Plan '{self.name}' needs group to be one of {', '.join(map(str, GROUPS))}, got {self.group}.")
        for number, rule in enumerate(self.rules):
            if rule.format not in (NONE, *FORMATS):
                raise ContractError(
                    f"Rule {number} of plan '{self.name}' has the unknown format '{rule.format}'."
                    f"{_nearest(rule.format, (NONE, *FORMATS))}"
                )

    def resolve(self, layers: Mapping[LayerName, Layer]) -> dict[LayerName, Rule]:
        """The rule of every layer that one matches.

        Raises:
            ContractError: a rule that matches nothing, or a format that a layer cannot have; says what exists.
        """
        for number, each in enumerate(self.rules):
            self._check(number, each, layers)
        chosen: dict[LayerName, Rule] = {}
        for (stage, path), layer in layers.items():
            rule = next((r for r in self.rules if fnmatchcase(stage, r.stage) and fnmatchcase(path, r.layer)), None)
            if rule is None:
                continue
            if rule.format != NONE and isinstance(layer, nn.Conv2d) and not FORMATS[rule.format].convolutions:
                able = ", ".join(name for name, kind in FORMATS.items() if kind.convolutions)
                raise ContractError(
                    f"Plan '{self.name}' gives the convolution {stage}.{path} the format {rule.format}, which exists for linear "
                    f"layers only. Give it {able} or {NONE}, with a rule before this one."
                )
            if rule.format != NONE and FORMATS[rule.format].bits < 8 and layer.in_features % self.group:
                raise ContractError(
                    f"Plan '{self.name}' gives the layer {stage}.{path} the format {rule.format}, whose groups of {self.group} "
                    f"do not divide its {layer.in_features} inputs. Give it fp8_weights or {NONE}, with a rule before this one."
                )
            chosen[stage, path] = rule
        return chosen

    @property
    def compile_options(self) -> str:
        """What to add to `edgewam compile` so that the plan's backend builds it; nothing for the backend that it takes anyway."""
        if self.backend == "onnxruntime":
            return ""
        # an engine is for one device, and TensorRT has 8-bit layers between half types
        return f" --backend {self.backend}" + (" --target NAME --precision bf16" if self.backend == "tensorrt" else "")

    def require_backend(self, build: Any, backend: str | None = None) -> None:
        """Raise ContractError when a backend would undo this plan.

        Args:
            build: the build half of a backend; its FORMATS are those it computes in, STEP_SCALES says whether it takes scales
                per step.
            backend: its name where it is asked to compile the quantised policy; by default the plan's own, to quantise for.
        """
        name = backend or self.backend
        available = tuple(getattr(build, "FORMATS", ()))
        for number, rule in enumerate(self.rules):
            if rule.format not in (NONE, *available):
                raise ContractError(
                    f"Rule {number} of plan '{self.name}' asks for {rule.format}, which the backend '{name}' would turn back "
                    f"into float32. It computes in: {', '.join(available) or 'float32 only'}. {self._instead(backend, available)}"
                )
        if self.per_step and not getattr(build, "STEP_SCALES", False):
            raise ContractError(
                f"Plan '{self.name}' has one activation scale per step, which the backend '{name}' does not take. Set "
                "per_step to false in the plan and quantise with that, or use int8_dynamic where it exists: that measures the "
                f"range in every call. {self._instead(backend, ())}".rstrip()
            )

    def _instead(self, backend: str | None, available: tuple[str, ...]) -> str:
        """What to do about a refusal by `backend` at compiling, or by the plan's own (None) at quantising."""
        if backend not in (None, self.backend):
            text = f"Compile it for the backend of the plan: edgewam compile POLICY BUNDLE{self.compile_options}"
            if plans := [plan for plan in ("int8", "fp8") if plan in available]:
                text += f"; or quantise for this one: edgewam quantize --plan {plans[0]} --backend {backend}"
            return text + "."
        wanted = {rule.format for rule in self.rules} - {NONE}
        found = {}
        for name in plugins.names("backend_build"):
            build = plugins.load("backend_build", name)
            formats = tuple(getattr(build, "FORMATS", ()))
            if formats and (getattr(build, "STEP_SCALES", False) or not self.per_step):
                found[name] = formats
        # those that take every rule; else all that compute in anything but floats
        able = {name: formats for name, formats in found.items() if wanted <= set(formats)} or found
        listed = "; ".join(f"{name} ({', '.join(formats)})" for name, formats in able.items())
        return f"Quantise for one of these, with --backend or the plan file's field 'backend': {listed}."

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        data = asdict(self)
        return {"version": VERSION, **data, "rules": [asdict(rule) for rule in self.rules]}

    @staticmethod
    def from_json(data: Any, source: str = "the plan") -> PrecisionPlan:
        """Inverse of `to_json`.

        Raises:
            ContractError: another version, unknown or missing fields, values out of range.
        """
        if not isinstance(data, dict) or data.get("version") != VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise ContractError(f"{source} has version {found}; this edgewam reads precision plans of version {VERSION}.")
        known = {f.name for f in fields(PrecisionPlan)}
        if unknown := set(data) - known - {"version"}:
            raise ContractError(f"{source} has the unknown field '{min(unknown)}'.{_nearest(min(unknown), known)}")
        try:
            rules = tuple(Rule(**rule) for rule in data["rules"])
            return PrecisionPlan(**{name: data[name] for name in known - {"rules"} if name in data}, rules=rules)
        except (TypeError, KeyError) as error:
            raise ContractError(f"{source} is no precision plan: {error}. A rule has stage, layer, format and reason.") from error

    @staticmethod
    def read(path: Path) -> PrecisionPlan:
        """Read a plan file.

        Raises:
            ContractError: it is missing, no JSON, or no plan.
        """
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ContractError(f"Cannot read the precision plan '{path}': {error}.") from error
        return PrecisionPlan.from_json(data, f"'{path}'")

    def _check(self, number: int, rule: Rule, layers: Mapping[LayerName, Layer]) -> None:
        stages = list(dict.fromkeys(stage for stage, _ in layers))
        matching = [stage for stage in stages if fnmatchcase(stage, rule.stage)]
        if not matching:
            raise ContractError(
                f"Rule {number} of plan '{self.name}' names the stage '{rule.stage}', and no stage with layers is called that."
                f"{_nearest(rule.stage, stages)}"
            )
        paths = [path for stage, path in layers if stage in matching]
        if not any(fnmatchcase(path, rule.layer) for path in paths):
            raise ContractError(
                f"Rule {number} of plan '{self.name}' names the layer '{rule.layer}', and no layer of {', '.join(matching)} is "
                f"called that.{_nearest(rule.layer, paths)}"
            )


def _nearest(name: str, available: Any) -> str:
    available = list(dict.fromkeys(available))
    near = difflib.get_close_matches(name, available, n=3, cutoff=0.4)
    shown = ", ".join(available[:12]) + (", ..." if len(available) > 12 else "")
    return f" Nearest: {', '.join(near)}." if near else f" Available: {shown}."

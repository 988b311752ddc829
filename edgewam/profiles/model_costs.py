"""What a model costs, without the model: per stage its bytes and operations, per program how often it calls each stage.

`models/<name>.json` holds the sizes that no bundle is at hand for (written by `python -m edgewam.recipes.roofline_table`);
a bundle carries the same facts in its manifest.  Neither needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError
from edgewam.core.program import Program
from edgewam.core.stage import Cost, Stage

MODELS = Path(__file__).parent / "models"
PLAIN_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a weight, by the precision of a model that is not quantised
_READ_BACK = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "int8": "int8", "fp4": "fp4"}


@dataclass(frozen=True)
class StageWork:
    """Cost of one call.  Of it, a plan may pack `packable_weights` (a count), which do `packable_flops` of the operations."""

    cost: Cost
    packable_weights: int
    packable_flops: int


@dataclass(frozen=True)
class ModelCosts:
    """Costs of every stage in `precision`.

    programs: program -> stage -> (calls outside of the loop, calls per row of the loop).  steps: rows of each program's loop,
    0 without one.  read_back: formats of the products of a stage, seen in its engine; stages without such a record are absent.
    """

    title: str
    precision: str
    stages: Mapping[str, StageWork]
    programs: Mapping[str, Mapping[str, tuple[int, int]]]
    steps: Mapping[str, int]
    read_back: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def calls(self, program: str, steps: int | None = None) -> dict[str, int]:
        """Calls of each stage in one run, with the loop as declared or of `steps` rows."""
        rows = self.steps[program] if steps is None or not self.steps[program] else steps
        return {stage: once + rows * per_row for stage, (once, per_row) in self.programs[program].items()}

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form; `from_json` is its inverse."""
        return {
            "title": self.title,
            "precision": self.precision,
            "stages": {name: asdict(work) for name, work in self.stages.items()},
            "programs": {name: {stage: list(n) for stage, n in calls.items()} for name, calls in self.programs.items()},
            "steps": dict(self.steps),
            **({"read_back": {name: list(found) for name, found in self.read_back.items()}} if self.read_back else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModelCosts:
        """Inverse of `to_json`."""
        stages = {
            name: StageWork(Cost(**work["cost"]), work["packable_weights"], work["packable_flops"])
            for name, work in data["stages"].items()
        }
        programs = {name: {stage: (n[0], n[1]) for stage, n in calls.items()} for name, calls in data["programs"].items()}
        seen = {name: tuple(found) for name, found in data.get("read_back", {}).items()}
        return ModelCosts(data["title"], data["precision"], stages, programs, data["steps"], seen)


def read_model(name: str) -> ModelCosts:
    """A stored model, such as "aha_wam_full".

    Raises:
        EdgewamError: there is no such file, or another version wrote it.
    """
    path = MODELS / f"{name}.json"
    try:
        return ModelCosts.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgewamError(
            f"Cannot read the costs of '{name}' from '{path}': {error}. Write it with python -m edgewam.recipes.roofline_table."
        ) from error


def of_manifest(config: Mapping[str, Any], title: str) -> ModelCosts:
    """Costs as a bundle's manifest declares them.  It names no layers, so a plan may pack every weight.

    Raises:
        EdgewamError: the manifest lacks stages or programs.
    """
    try:
        declared = [Stage.from_json(entry["stage"]) for entry in config["stages"]]
        programs = [Program.from_json(data) for data in config["programs"]["programs"].values()]
    except (KeyError, TypeError) as error:
        raise EdgewamError(f"{title} does not declare its stages and programs ({error}). Compile it again.") from error
    precision = str(config.get("precision", "fp32"))
    size = PLAIN_BYTES.get(precision, 1)
    stages = {s.name: StageWork(s.cost, s.cost.weight_bytes // size, s.cost.flops) for s in declared}
    return ModelCosts(
        title, precision, stages,
        {program.name: calls_of(program, list(stages)) for program in programs},
        {program.name: program.loop.num_rows if program.loop else 0 for program in programs},
        {entry["stage"]["name"]: _seen(entry["record"]) for entry in config["stages"] if "read_back" in entry.get("record", {})},
    )  # fmt: skip


def _seen(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Formats in an engine's record.  What no layer shows is plain: with a planned one the build would have failed."""
    return tuple(_READ_BACK[name] for name in record["read_back"]["formats"] if name in _READ_BACK)


def calls_of(program: Program, stages: list[str]) -> dict[str, tuple[int, int]]:
    """Stage -> (calls outside of the loop, calls per row), in the order of `stages`, those that are called."""
    found = {}
    for stage in stages:
        per_row = sum(call.stage == stage for call in program.loop.calls) if program.loop else 0
        rows = program.loop.num_rows if program.loop else 0
        if total := program.num_calls(stage):
            found[stage] = (total - rows * per_row, per_row)
    return found

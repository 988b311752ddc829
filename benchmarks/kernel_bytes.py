"""What every fused kernel reads and writes at full size, and what the same work moves unfused: the tables of docs/kernels.md.

    python3 -m benchmarks.kernel_bytes [--check]

Counted on the recipes that the backend makes of the full-size stages on the meta device: no weight is allocated, nothing is
typed in.  --check only compares (exit status 1 when the page differs).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.kernel_checks import label
from benchmarks.gpu.kernel_formats import FORMATS, in_format
from benchmarks.gpu.kernel_recipes import Lowered, lowered_stages, meta_stages, operands
from benchmarks.marks import with_block
from benchmarks.results import ROOT
from edgewam.kernels.bound import split
from edgewam.kernels.call import Call
from edgewam.kernels.choices import key_of
from edgewam.models.aha_wam_config import full

PAGE = ROOT / "docs" / "kernels.md"
STAGES = ("denoise", "router", "state", "planner")
WEIGHTS = ("weight", "weight_scale", "bias", "smooth", "input_scale")
SIZES = {"bf16": "bf16", "8 bits": "fp8_weights", "4 bits": "int4_weights"}  # column -> a format of that size
FLOAT32 = 4  # bytes: of norms, logits and sums, wherever they are written down


@dataclass(frozen=True)
class Kind:
    """Calls of one kind in a stage.  Bytes are those of one call; apart: of what it would write and read again without fusion."""

    stage: str
    name: str
    calls: int
    weights: int
    read: int
    written: int
    apart: Mapping[str, int]

    def row(self) -> list[str]:
        """Of the table."""
        steps = ", ".join(self.apart) or "-"
        numbers = [
            f"{self.weights / 1e6:.2f}",
            *(f"{n / 1e3:.1f}" for n in (self.read, self.written, 2 * sum(self.apart.values()))),
        ]
        return [self.stage, f"`{self.name}`", str(self.calls), *numbers, f"{1 + len(self.apart)}", steps]


def kinds(lowered: Lowered) -> list[Kind]:
    """Every kind of call of a stage, in the order of first use."""
    tensors = lowered.recipe.resolve(lowered.meta())
    found: dict[str, tuple[Call, Mapping[str, Tensor], int]] = {}
    for call in lowered.ops:
        given = operands(call, tensors)
        key = key_of(call, given)
        found[key] = (call, given, found[key][2] + 1 if key in found else 1)
    return [_kind(lowered.stage.name, call, given, count) for call, given, count in found.values()]


def apart(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    """Steps of a call that would be kernels of their own without fusion, each with the bytes of the result that it would hand on.

    A library's product takes bias and plain output as they are; attention is counted as two products and a softmax.
    """
    return _APART[call.op](call, given)


def _linear(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    x, y = given["x"], given["y"]
    product = _size(y)
    steps: dict[str, int] = {}
    if call.attributes.get("norm"):
        steps["norm"] = FLOAT32 * x.numel()
    if "shift" in given:
        steps["modulation"] = FLOAT32 * x.numel()
    if "activations" in call.attributes:
        coded = call.attributes["activations"] in FORMATS
        steps["rounding"] = x.numel() * (1 if coded else 2)
    if given["weight"].element_size() == 1 and "activations" in call.attributes and call.attributes["activations"] not in FORMATS:
        steps["weights to 16 bits"] = 2 * x.shape[-1] * math.prod(given["weight"].shape[:-1])
    if "squares" in given:
        steps["squares"] = product
    if "activation" in call.attributes:
        steps["gelu"] = product
    if call.attributes.get("pairs"):
        steps["halves apart"] = product
    for role, name in (("gate", "gate"), ("delta", "step"), ("residual", "residual"), ("prefix", "prefix")):
        if role in given:
            steps[name] = product
    return steps


def _turned(given: Mapping[str, Tensor], width: int) -> dict[str, int]:
    """Norm, gain and rotation of queries and keys."""
    gained = FLOAT32 * given["gains"].shape[0] * given["qkv"].shape[0] * width
    return {"query and key norms": gained, "gains": gained, "rotation": gained}


def _attended(num_heads: int, rows: int, keys: int, layers: int = 1) -> dict[str, int]:
    """Logits and probabilities."""
    size = FLOAT32 * layers * num_heads * rows * keys
    return {"logits": size, "softmax": size}


def _chunk_attention(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    rows, width = given["y"].shape
    keys = given["routed"].shape[1] + rows
    joined = {"keys and values joined": 2 * keys * width * given["routed"].element_size()}
    return _turned(given, width) | joined | _attended(int(call.attributes["num_heads"]), rows, keys)


def _text_attention(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    rows, keys = given["q"].shape[0], given["kv"].shape[1]
    return {"query norm": _size(given["q"])} | _attended(int(call.attributes["num_heads"]), rows, keys)


def _memory_attention(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    slots, _, tokens, width = given["memory"].shape
    rows = given["y"].shape[0]
    keys = slots * tokens + rows
    joined = {"keys and values joined": 2 * keys * width * given["memory"].element_size()}
    return _turned(given, width) | joined | _attended(int(call.attributes["num_heads"]), rows, keys)


def _context_write(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    gained = FLOAT32 * given["kv"].shape[0] * given["gain"].shape[0]
    return {"key norm": gained, "gains": gained, "rotation": gained}


def _router_attention(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    layers, queries, width = given["asked"].shape
    tokens, heads = given["context"].shape[2], int(call.attributes["num_heads"])
    first = _attended(heads, queries, tokens, layers)
    back = {f"{name} of the way back": size for name, size in _attended(heads, tokens, queries, layers).items()}
    return first | {"what was read": layers * queries * width * given["context"].element_size()} | back


def _state_write(call: Call, given: Mapping[str, Tensor]) -> dict[str, int]:
    return {"key norm": _size(given["raw"]), "gains": _size(given["raw"])}


_APART = {
    "linear": _linear, "chunk_attention": _chunk_attention, "text_attention": _text_attention,
    "memory_attention": _memory_attention, "router_attention": _router_attention, "state_write": _state_write,
    "context_write": _context_write,
}  # fmt: skip


def _kind(stage: str, call: Call, given: Mapping[str, Tensor], count: int) -> Kind:
    reads, writes = split(call, given)
    weights = sum(_size(tensor) for role, tensor in reads.items() if role in WEIGHTS)
    read = sum(_size(tensor) for role, tensor in reads.items() if role not in WEIGHTS)
    return Kind(stage, label(call, given), count, weights, read, sum(map(_size, writes.values())), apart(call, given))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def kernels_table(stages: Mapping[str, Lowered]) -> str:
    """One row per kind of call."""
    head = ["stage", "kernel", "calls", "weights, MB", "read, kB", "written, kB", "saved, kB", "kernels unfused", "fused into it"]
    return _table([head, *(kind.row() for name in stages for kind in kinds(stages[name]))])


def stages_table(stages: Mapping[str, Lowered]) -> str:
    """One row per stage: kernels, and MB of weights in every format."""
    rows = [["stage", "kernels", "of a layer", "programs", "unfused", *(f"{name}, MB" for name in SIZES)]]
    layers = full().num_layers
    for name, lowered in stages.items():
        found = kinds(lowered)
        count = sum(kind.calls for kind in found)
        unfused = sum(kind.calls * (1 + len(kind.apart)) for kind in found)
        of_layer = max((kind.calls for kind in found), default=1) >= layers - 1
        each = str(sum(round(kind.calls / layers) for kind in found)) if of_layer else "-"
        sizes = [f"{sum(map(_size, in_format(lowered, kind).weights.values())) / 1e6:.0f}" for kind in SIZES.values()]
        rows.append([name, str(count), each, str(len(lowered.programs)), str(unfused), *sizes])
    return _table(rows)


def full_size() -> dict[str, Lowered]:
    """The full-size stages as recipes."""
    stages = meta_stages("full", torch.bfloat16)
    found, refused = lowered_stages({name: stages[name] for name in STAGES})
    assert not refused, refused
    return found


def page(text: str, stages: Mapping[str, Lowered]) -> str:
    """The page with both tables anew."""
    return with_block(with_block(text, "stages", stages_table(stages)), "kernels", kernels_table(stages))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.kernel_bytes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args(argv)
    text = PAGE.read_text()
    new = page(text, full_size())
    if chosen.check:
        return int(new != text)
    PAGE.write_text(new)
    print(f"wrote the tables of {PAGE}")
    return 0


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    sys.exit(main())

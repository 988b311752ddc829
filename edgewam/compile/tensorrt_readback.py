"""What an engine really does, read back from its layers and compared with what was planned.

TensorRT obeys Q/DQ or undoes it without a word (weight-only INT8 becomes a half type again), so nothing is believed that
is not seen: a product counts as planned when a layer that holds its node takes codes of the planned format.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewam.compile.tensorrt_onnx import ExportedGraph
from edgewam.core.errors import GateError

_CODES = {"FP8": "fp8", "Int8": "int8", "FP4": "fp4", "FP4E2M1": "fp4"}
_FLOATS = {"BFloat16": "bfloat16", "Half": "float16", "Float": "float32"}  # in the order in which they decide
_NOT_KERNELS = ("signal", "wait", "Constant", "NoOp")  # events between streams, and what is never launched
_PRODUCT_KINDS = ("gemm", "correlation", "MatrixMultiply", "Convolution", "CaskConvolution", "CaskGemmConvolution")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ReadBack:
    """products: name -> format it is multiplied in, "unknown" where no layer shows it.

    kernels: launches of one call.  blocks: how many numbered blocks the stage has (1 if none).
    unfused: softmax nodes of attentions that are no single kernel.
    """

    products: Mapping[str, str]
    gemms: Mapping[str, int]
    kernels: int
    blocks: int
    attentions: int
    unfused: tuple[str, ...]
    weight_bytes: int | None
    activation_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        return {
            "products": dict(self.products),
            "formats": dict(Counter(self.products.values())),
            "gemms": dict(self.gemms),
            "kernels": self.kernels,
            "blocks": self.blocks,
            "kernels_per_block": round(self.kernels / self.blocks, 1),
            "attentions": {"found": self.attentions, "fused": self.attentions - len(self.unfused), "unfused": list(self.unfused)},
            "weight_bytes": self.weight_bytes,
            "activation_bytes": self.activation_bytes,
        }

    def require(self, planned: Mapping[str, str], stage: str, target: str) -> None:
        """Raise GateError for the first product that is not multiplied in its planned format."""
        for name, wanted in planned.items():
            found = self.products.get(name, UNKNOWN)
            # a float product without a layer of its own was merged into another kernel, in the type that the graph says
            if found == wanted or (found == UNKNOWN and wanted in _FLOATS.values()):
                continue
            seen = "cannot be seen in the engine" if found == UNKNOWN else f"is multiplied in {found}"
            raise GateError(
                f"The plan was not honoured: layer '{name}' of stage '{stage}' {seen} on target '{target}', and the plan says "
                f"{wanted}. Give that layer int8 or fp8 with activations (W8A8), or none; the engine was not accepted."
            )


def read_back(built: Mapping[str, Any], graph: ExportedGraph) -> ReadBack:
    """From what `build_engine` returned and what was exported."""
    rows: Sequence[Mapping[str, Any]] = built["layers"]
    by_node: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for node in row["nodes"]:
            by_node.setdefault(node, []).append(row)
    kernels = [row for row in rows if row["kind"] not in _NOT_KERNELS]
    gemms = Counter(_format(row) for row in rows if row["kind"] in _PRODUCT_KINDS)
    blocks = {int(m[1]) for name in graph.products if (m := re.search(r"\.(\d+)\.", f"{name}."))}
    return ReadBack(
        products={name: _product_format(by_node.get(name, ())) for name in graph.products},
        gemms=gemms,
        kernels=len(kernels),
        blocks=max(blocks, default=0) + 1,
        attentions=len(graph.attentions),
        unfused=tuple(name for name in graph.attentions if not any("mha" in row["name"] for row in by_node.get(name, ()))),
        weight_bytes=built["weight_bytes"],
        activation_bytes=built["activation_bytes"],
    )


def _product_format(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format of the product among the layers that hold its node; pointwise layers hold it too, for its scale and bias."""
    chosen = [row for row in rows if row["kind"] in _PRODUCT_KINDS] or [row for row in rows if "Fc" in row["name"]]
    return _format(chosen[0]) if chosen else UNKNOWN


def _format(row: Mapping[str, Any]) -> str:
    """Codes on both sides (full TensorRT does not list weights), else a half type that takes part, else float32.

    The library multiplies equal types only, so one side in a half type says that of both; scalars beside them are float32.
    """
    inputs, constants = row["inputs"], row["constants"]
    codes = [name for name in inputs if name in _CODES]
    if codes:
        return _CODES[codes[0]] if codes[0] in (*codes[1:], *constants) or not constants else UNKNOWN
    if any(name in _CODES for name in constants):
        return UNKNOWN
    return next((name for kind, name in _FLOATS.items() if kind in (*inputs, *constants)), UNKNOWN)

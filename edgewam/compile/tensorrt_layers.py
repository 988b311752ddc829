"""The layers of an engine as plain JSON rows, from either of two sources: the builder's log or the engine inspector.

A row is {name, kind, inputs, constants, outputs, nodes}: datatypes as the library writes them ("FP8", "Int8", "BFloat16",
"Half", "Float"), and the names of the ONNX nodes that went into the layer.  TensorRT for RTX prints its rows as
`Layers:` in the log, without a GPU; full TensorRT gives JSON, where weights are not listed (NVIDIA/TensorRT issue 4397).
"""

from __future__ import annotations

import json
import re
from typing import Any

_ROW = re.compile(
    r"^Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (?:Constants: \[(?P<constants>.*?)\], )?"
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?Metadata: ?(?P<nodes>.*)$"
)
_DATATYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
_NAMES = (  # as JSON of older kind has them, longest first
    ("BF16", "BFloat16"), ("BFloat16", "BFloat16"), ("FP16", "Half"), ("Half", "Half"), ("FP8", "FP8"), ("E4M3", "FP8"),
    ("Int8", "Int8"), ("INT8", "Int8"), ("FP32", "Float"), ("Float", "Float"), ("Bool", "Bool"), ("Int64", "Int64"),
)  # fmt: skip


def from_log(messages: list[str]) -> list[dict[str, Any]]:
    """Rows of the log's `Layers:` message; none when there is no such message."""
    text = next((message for message in messages if message.startswith("Layers:")), "")
    return [
        {
            "name": row["name"],
            "kind": row["kind"],
            "inputs": _DATATYPE.findall(row["inputs"]),
            "constants": _DATATYPE.findall(row["constants"] or ""),
            "outputs": _DATATYPE.findall(row["outputs"]),
            "nodes": _NODE.findall(row["nodes"]),
        }
        for line in text.splitlines()
        if (row := _ROW.match(line))
    ]


def memory_bytes(messages: list[str]) -> dict[str, int | None]:
    """What the log says of the engine's weights and activations."""

    def find(label: str) -> int | None:
        found = [m for message in messages if (m := re.search(rf"{label}: (\d+) bytes", message))]
        return int(found[-1][1]) if found else None

    return {"weight_bytes": find("Total Weights Memory"), "activation_bytes": find("Total Activation Memory")}


def from_inspector(information: str) -> list[dict[str, Any]]:
    """Rows of the engine inspector's JSON; an engine without detailed verbosity has names only, and gives none."""
    rows = []
    for layer in json.loads(information)["Layers"]:
        if not isinstance(layer, dict):
            continue
        rows.append(
            {
                "name": layer["Name"],
                "kind": layer.get("LayerType", ""),
                "inputs": _datatypes(layer.get("Inputs", ())),
                "constants": _datatypes(layer.get("Constants", ())),
                "outputs": _datatypes(layer.get("Outputs", ())),
                "nodes": _NODE.findall(layer.get("Metadata", "")),
            }
        )
    return rows


def _datatypes(tensors: Any) -> list[str]:
    texts = [str(tensor.get("Datatype") or tensor.get("Format/Datatype", "")) for tensor in tensors]
    return [next((name for part, name in _NAMES if part in text), text) for text in texts]

"""Norms, linear layers and GELUs in a row as one call per linear layer: a norm goes in front of it, a GELU behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from edgewam.compile.fused.builder import Builder, NotLowered

Named = tuple[str, nn.Module]  # a layer's path in its stage, and the layer
_GELUS = {"tanh": "gelu", "none": "gelu_exact"}


@dataclass
class _Link:
    path: str
    layer: nn.Module
    norm: Named | None
    activation: str = "none"


def lower_chain(
    builder: Builder, layers: Sequence[Named], x: str, rows: int, y: str, batch: int = 0, pairs: bool = False, **last: str
) -> None:
    """y = all layers of x [rows, in].  What is between them lies in two workspaces that take turns.

    batch: the last layer is so many layers with one input.  pairs and `last`: of the last call of `reference.linear`.

    Raises:
        NotLowered: another kind of layer, or a norm or a GELU without a linear layer beside it.
    """
    links = _links(layers)
    for number, link in enumerate(links):
        is_last = number == len(links) - 1
        layer = builder.layer(link.path, link.layer, batch if is_last else 0)
        target = y if is_last else builder.workspace(f"chain {number % 2} of {rows}x{layer.outs}", (rows, layer.outs))
        norm, affine = _norm(builder, link.norm)
        ending = last if is_last else {}
        builder.linear(
            layer, x, target, norm=norm, activation=link.activation, pairs=pairs and is_last, **affine, **ending
        )  # fmt: skip
        x = target


def _links(layers: Sequence[Named]) -> list[_Link]:
    links: list[_Link] = []
    norm: Named | None = None
    is_open = False  # whether the last layer may still get its activation
    for path, layer in layers:
        if isinstance(layer, nn.Identity):
            continue
        if isinstance(layer, nn.LayerNorm) and norm is None:
            norm, is_open = (path, layer), False
        elif isinstance(layer, nn.GELU) and is_open:
            links[-1].activation, is_open = _GELUS[layer.approximate], False
        elif isinstance(layer, nn.Linear):
            links.append(_Link(path, layer, norm))
            norm, is_open = None, True
        else:
            raise NotLowered(f"its layer '{path}' is a {type(layer).__name__} where the kernels have a linear layer")
    if norm is not None:
        raise NotLowered(f"its norm '{norm[0]}' has no linear layer behind it")
    return links


def _norm(builder: Builder, found: Named | None) -> tuple[float | None, dict[str, str | None]]:
    """The eps of a norm and its weights as operands."""
    if found is None:
        return None, {}
    path, norm = found
    assert isinstance(norm, nn.LayerNorm)
    if not norm.elementwise_affine:
        return norm.eps, {}
    operands = {"scale": builder.weight(f"{path}.weight", norm.weight, wide=True)}
    return norm.eps, {**operands, "shift": builder.weight(f"{path}.bias", norm.bias, wide=True)}

"""What one transformer block becomes, wherever it is: projections from and to the residual stream, text attention, FFN.

The residual stream is one float32 buffer that its last product of a sublayer adds to in place.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edgewam.compile.fused.builder import Builder, NotLowered
from edgewam.compile.rewritten_layers import FoldedCross, LastKeyValue
from edgewam.kernels.reference import EPS
from edgewam.models.stage_layers import CrossAttention, FeedForward, QueryKeyValue


@dataclass
class Stream:
    """The residual stream: the tensor that holds it now, and the one that it is written to."""

    read: str
    write: str


@dataclass(frozen=True)
class Modulation:
    """The rows of one layer, [6, D]: shift, 1 + scale and gate of the attention, then of the FFN.

    clean: what takes their place in rows where `mask` is true.
    """

    row: tuple[str, ...]
    clean: tuple[str, ...] = ()
    mask: str | None = None

    @staticmethod
    def of(builder: Builder, table: str, layer: int, clean: str | None = None, mask: str | None = None) -> Modulation:
        """Of layer `layer` of tables [layers, 6, D]."""

        def rows(name: str) -> tuple[str, ...]:
            return tuple(builder.view(name, layer, entry) for entry in range(6))

        return Modulation(rows(table), rows(clean) if clean else (), mask)

    def before(self, half: int) -> dict[str, str | None]:
        """Operands of the layer in front of a sublayer: 0 attention, 1 FFN."""
        return self._operands(3 * half, ("shift", "scale"))

    def behind(self, half: int) -> dict[str, str | None]:
        """Operands of the layer that ends a sublayer."""
        return self._operands(3 * half + 2, ("gate",))

    def _operands(self, first: int, roles: tuple[str, ...]) -> dict[str, str | None]:
        found: dict[str, str | None] = {role: self.row[first + i] for i, role in enumerate(roles)}
        if self.clean:
            found |= {f"clean_{role}": self.clean[first + i] for i, role in enumerate(roles)} | {"mask": self.mask}
        return found


@dataclass(frozen=True)
class Block:
    """Lowers the sublayers of all layers of a stage: S rows of width D, attention of width A and `num_heads`."""

    builder: Builder
    stream: Stream
    rows: int
    width: int
    num_heads: int

    @property
    def attended(self) -> str:
        """Workspace [S, A] that attentions write."""
        return self.builder.workspace("attended", (self.rows, self.width))

    def project(self, path: str, layer: nn.Module, modulation: Modulation) -> dict[str, str]:
        """Norm, modulation and one product for queries, keys and values; returns the operands qkv, squares and gains."""
        if type(layer) not in (QueryKeyValue, LastKeyValue):
            raise NotLowered(f"its layer '{path}' is a {type(layer).__name__}")
        product = self.builder.layer(f"{path}.project", layer.project)  # type: ignore[arg-type]
        shape = (self.rows, product.outs)
        out = self.builder.workspace(f"qkv of {product.outs}", shape)
        squares = self.builder.squares(f"squares of {product.outs}", shape)
        self.builder.linear(product, self.stream.read, out, norm=EPS, **modulation.before(0), squares=squares)
        gains = layer.gains if isinstance(layer, QueryKeyValue) else layer.gain[None]  # type: ignore[index]
        return {"qkv": out, "squares": squares, "gains": self.builder.weight(f"{path}.gains", gains, wide=True)}  # type: ignore[arg-type]

    def add(self, path: str, layer: nn.Module, x: str, **gate: str | None) -> None:
        """The product that ends a sublayer, added to the stream."""
        self.builder.linear(self.builder.layer(path, layer), x, self.stream.write, **gate, residual=self.stream.read)
        self.stream.read = self.stream.write

    def read_text(self, path: str, layer: nn.Module, kv: str, bias: str) -> None:
        """Cross-attention over ready keys and values [2, keys, A]; the affine norm in front and the gain may be folded."""
        if type(layer) not in (CrossAttention, FoldedCross):
            raise NotLowered(f"its layer '{path}' is a {type(layer).__name__}")
        builder, query = self.builder, self.builder.layer(f"{path}.query", layer.query)  # type: ignore[arg-type]

        def constant(name: str) -> str | None:
            value = getattr(layer, name)
            return None if value is None else builder.weight(f"{path}.{name}", value, wide=True)

        shape = (self.rows, self.width)
        q, squares = builder.workspace("query", shape), builder.squares("squares of query", shape)
        affine = {"scale": constant("norm_weight"), "shift": constant("norm_bias")}
        builder.linear(query, self.stream.read, q, norm=EPS, **affine, squares=squares)
        operands = {"q": q, "squares": squares, "kv": kv, "bias": bias, "gain": constant("gain"), "y": self.attended}
        builder.call("text_attention", {"num_heads": self.num_heads}, **operands)
        self.add(f"{path}.out", layer.out, self.attended)  # type: ignore[arg-type]

    def feed_forward(self, path: str, layer: nn.Module, modulation: Modulation) -> None:
        """Norm, modulation and the FFN."""
        if type(layer) is not FeedForward:
            raise NotLowered(f"its layer '{path}' is a {type(layer).__name__}")
        up = self.builder.layer(f"{path}.up", layer.up)
        hidden = self.builder.workspace("up", (self.rows, up.outs))
        self.builder.linear(up, self.stream.read, hidden, norm=EPS, activation="gelu", **modulation.before(1))
        self.add(f"{path}.down", layer.down, hidden, **modulation.behind(1))

"""Stages as recipes of fused kernels: `lower` takes a stage after its exact rewrites apart into calls of `edgewam.kernels`."""

from edgewam.compile.fused.builder import Lowered, NotLowered, Piece
from edgewam.compile.fused.lowering import lower

__all__ = ["Lowered", "NotLowered", "Piece", "lower"]

"""An op that is no part of edgewam: y = 2 x.  Its variants are the ways in which a kernel can go wrong while it is tuned."""

import os
import time

import torch

from edgewam.kernels.variant import Variant

RIGHT, WRONG, ENDS, RAISES, SLOW = (Variant(1, 1, 1, splits=number) for number in range(1, 6))


def reference(x, **_):
    """x -> y."""
    return {"y": 2 * x.float()}


def support(call, tensors, target):
    """float32 only."""
    return "" if tensors["x"].dtype == torch.float32 else "it doubles float32 only"


def variants(call, tensors, target):
    """Those that the call's attribute names, or the right one."""
    names = str(call.attributes.get("offered", "RIGHT")).split("+")
    return tuple(globals()[name] for name in names)


class Doubling:
    """A launch of torch's own, on purpose right, wrong, gone or slow."""

    def __init__(self, tensors, variant):
        self.tensors, self.variant = tensors, variant

    def bind(self):
        """The function itself: everything is decided when it runs."""
        return self.run

    def run(self):
        tensors, variant = self.tensors, self.variant
        if variant == ENDS:
            os.abort()
        if variant == RAISES:
            raise ValueError("this variant needs more than there is")
        if variant == SLOW:
            time.sleep(0.02)
        torch.mul(tensors["x"], 3 if variant == WRONG else 2, out=tensors["y"])


def launches(call, tensors, variant, target):
    """One."""
    return (Doubling(tensors, variant),)

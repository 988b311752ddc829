"""The option `--device` of the commands that train."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewam.core.errors import EdgewamError, require


def _checked(device: str) -> str:
    """The device, if torch can compute on it here."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise EdgewamError(f"Unknown device '{device}'. Available: cpu, cuda, cuda:<number>.")
    if kind == "cuda":
        torch = require("torch", extra="train")
        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            raise EdgewamError(f"torch finds {count} CUDA devices here, so '{device}' cannot be used. Train with --device cpu.")
    return device


Device = Annotated[str, typer.Option(help="cpu, or cuda.", callback=_checked)]

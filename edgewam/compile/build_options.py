"""What a backend's build half is told besides the stage."""

from __future__ import annotations

from dataclasses import dataclass

from edgewam.core.errors import PluginError


@dataclass(frozen=True)
class BuildOptions:
    """target: name of the device that the engine is for; only backends that build machine code for one have targets.

    device: where backends that run on torch compute here, "cpu" or "cuda".
    """

    target: str | None = None
    device: str = "cpu"

    def refuse_target(self, backend: str) -> None:
        """Raise PluginError when a target was named for a backend whose stages run on any machine."""
        if self.target is not None:
            raise PluginError(
                f"The backend '{backend}' builds for no particular device, so it cannot build for the target '{self.target}'. "
                "Leave --target away, or compile with --backend tensorrt."
            )


ANY_MACHINE = BuildOptions()  # the default: no particular device

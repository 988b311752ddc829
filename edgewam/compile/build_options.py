"""What a backend's build half is told besides the stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgewam.core.errors import PluginError
from edgewam.profiles.device import load_device
from edgewam.runtime.memory import Memory


@dataclass(frozen=True)
class BuildOptions:
    """target: name of the device that the engine is for; only backends that build machine code for one have targets.

    device: where backends that run on torch compute here, "cpu" or "cuda".  reuse: the bundle that is being replaced, for
    backends whose engines take long to build.
    """

    target: str | None = None
    device: str = "cpu"
    reuse: Path | None = None

    def made_for(self, place: Memory | None) -> dict[str, str]:
        """What the bundle's manifest says of its device: facts of the memory it was proved in, else of the target's file.

        Empty for the processor.
        """
        if place is not None:
            return place.device_facts() | ({"target": self.target} if self.target else {})
        assert self.target is not None, "without a target a bundle is proved where it is built"
        device = load_device(self.target)
        return {"target": self.target, "name": device.title, "sm": device.sm}

    def refuse_device(self, backend: str) -> None:
        """Raise PluginError when a device was named for a backend that computes on the processor only."""
        if self.device != "cpu":
            raise PluginError(f"The backend '{backend}' computes on the processor, not on '{self.device}'. Leave --device away.")

    def refuse_target(self, backend: str) -> None:
        """Raise PluginError when a target was named for a backend whose stages run on any machine."""
        if self.target is not None:
            raise PluginError(
                f"The backend '{backend}' builds for no particular device, so it cannot build for the target '{self.target}'. "
                "Leave --target away, or compile with --backend tensorrt."
            )


ANY_MACHINE = BuildOptions()  # the default: no particular device

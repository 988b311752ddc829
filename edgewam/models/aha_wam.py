"""The AHA-WAM family: configuration, construction and loading (DESIGN section 4, "family").

The pieces live in their own files: `aha_wam_config`, `aha_wam_model`, `aha_wam_loss`.
"""

from __future__ import annotations

from edgewam.models.aha_wam_config import AhaWamConfig, full, small
from edgewam.models.aha_wam_model import AhaWam

FAMILY = "AHA-WAM"

__all__ = ["FAMILY", "AhaWam", "AhaWamConfig", "build", "full", "small"]


def build(config: AhaWamConfig) -> AhaWam:
    """A freshly initialised network, float32."""
    return AhaWam(config)

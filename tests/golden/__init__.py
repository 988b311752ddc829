"""Reference arrays made by the released AHA-WAM code (see aha_wam/README.md) and where tests find them."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent


def golden_dir() -> Path:
    """Folder of the AHA-WAM arrays; EDGEWAM_GOLDEN puts other arrays of the same layout to the same tests."""
    return Path(os.environ.get("EDGEWAM_GOLDEN", GOLDEN / "aha_wam"))

"""Reference arrays made by the released AHA-WAM code (see aha_wam/README.md) and where tests find them."""

import os
from pathlib import Path

GOLDEN = Path(__file__).parent


def golden_dir() -> Path:
    """Folder of the AHA-WAM arrays; EDGEWAM_GOLDEN, absolute or from the working directory, puts others to the same tests.

    Raises:
        FileNotFoundError: a folder without the configuration file, so that no test runs on other sizes than it seems to.
    """
    folder = Path(os.environ.get("EDGEWAM_GOLDEN") or GOLDEN / "aha_wam").resolve()
    if not (folder / "config_ahawam.json").is_file():
        raise FileNotFoundError(f"EDGEWAM_GOLDEN: '{folder}' has no config_ahawam.json. Give the folder that holds the arrays.")
    return folder

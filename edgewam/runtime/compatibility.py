"""Whether a bundle that was made for a GPU may run on this one: its architecture, exact runtime versions, and a driver not older.

An engine of another card or version may load and compute something else (facts/performance.md 5, rows 4, 9 and 14), so nothing
is tried: it is refused with the command that makes it again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgewam.core.errors import ArtifactError


def require_device(made_for: Mapping[str, str], here: Mapping[str, str], bundle: str, rebuild: str) -> None:
    """Compare what a bundle was made for with this device.

    Args:
        made_for: `sm`, `runtime` and `driver` (the least) as the bundle's manifest has them; "" where anything will do, and
            empty for a bundle of the processor.
        here: `device_facts` of the memory that it is opened in.
        bundle: its path, for the message.
        rebuild: the command that makes it for this device.

    Raises:
        ArtifactError: another kind of device, architecture or version, or an older driver.
    """
    if not made_for:
        return
    if not here:
        raise ArtifactError(
            f"'{bundle}' was made for {_name(made_for)} and is opened on the processor. Run it on such a GPU, or make one for "
            f"the processor: {rebuild}"
        )
    for what in ("sm", "runtime"):
        wanted, found = made_for.get(what, ""), here.get(what, "")
        if wanted and wanted != found:
            raise ArtifactError(
                f"'{bundle}' was made for {_name(made_for)} with {what} '{wanted}', and this is {_name(here)} with '{found}'. "
                f"Make it again for this device: {rebuild}"
            )
    least, driver = made_for.get("driver", ""), here.get("driver", "")
    if _numbers(least) > _numbers(driver):
        raise ArtifactError(
            f"'{bundle}' was made with driver {least} and needs at least that; here is {driver or 'none'}. "
            f"Update the driver, or make the bundle again: {rebuild}"
        )


def _name(facts: Mapping[str, str]) -> str:
    return facts.get("name") or facts.get("sm") or "a GPU"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))

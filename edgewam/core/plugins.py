"""The only registry: a plugin's name is its module name, or a dotted path for packages outside edgewam (DESIGN section 4).

No decorators and no central list: `names` looks at the files, `load` imports one module when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

from edgewam.core.errors import PluginError

# kind -> package, and the attribute every plugin module of that kind must offer (helpers beside them do not)
KINDS = {
    "family": ("edgewam.models", "FAMILY"),
    "backend_build": ("edgewam.compile.backends", "build"),
    "backend_run": ("edgewam.runtime.backends", "load"),
    "kernel": ("edgewam.kernels.ops", "support"),
    "policy": ("edgewam.runtime.policies", "open_policy"),
    "distiller": ("edgewam.distill", "distill"),
    "robot": ("edgewam.robot_bridge.robots", "SPEC"),
    "task": ("edgewam.robot_bridge.robots.aloha_tasks", "TASK"),
    "door": ("edgewam.robot_bridge.doors", "serve"),
}


def names(kind: str) -> list[str]:
    """Names of the plugins of a kind, without importing any of them."""
    package, attribute = KINDS[kind]
    paths = importlib.import_module(package).__path__
    found = []
    for info in pkgutil.iter_modules(paths):
        spec = importlib.util.find_spec(f"{package}.{info.name}")
        source = spec.loader.get_source(spec.name) if spec and hasattr(spec.loader, "get_source") else ""  # type: ignore[union-attr]
        if any(line.startswith((f"{attribute} =", f"{attribute}:", f"def {attribute}(")) for line in (source or "").splitlines()):
            found.append(info.name)
    return sorted(found)


def load(kind: str, name: str) -> ModuleType:
    """Import one plugin: a bare name from edgewam, or a dotted module path from any installed package.

    Raises:
        PluginError: unknown name (lists what is available) or a module without the kind's entry point.
    """
    package, attribute = KINDS[kind]
    what = kind.split("_")[0]
    if "." not in name:
        if name not in names(kind):
            raise PluginError(f"Unknown {what} '{name}'. Available: {', '.join(names(kind)) or 'none'}.")
        name = f"{package}.{name}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise PluginError(
            f"Cannot import {what} '{name}'. Install the package that holds it, or use one of: {', '.join(names(kind))}."
        ) from error
    if not hasattr(module, attribute):
        raise PluginError(
            f"Module '{name}' is no {what}: it has no '{attribute}'. See CONTRIBUTING.md for what a {what} provides."
        )
    return module

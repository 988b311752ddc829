"""The errors a user may see, and `require` for optional packages.  Every message says what to do next."""

from __future__ import annotations

import importlib
from types import ModuleType


class EdgewamError(Exception):
    """Base of every error that is the user's to act on; the CLI prints it without a traceback and exits 1."""


class ArtifactError(EdgewamError):
    """An artifact directory or file is missing, truncated, foreign or does not match its digest."""


class ContractError(EdgewamError):
    """Shapes, dtypes or names do not fit a stage, a program or a record."""


class PluginError(EdgewamError):
    """No plugin of that name, or it cannot work on this machine."""


class MissingExtraError(EdgewamError):
    """An optional package is not installed."""


class GateError(EdgewamError):
    """A parity, safety or self-test gate failed; the artifact must not be used."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module at the point of use.

    Raises:
        MissingExtraError: with the pip command that installs the extra that holds it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there but broken: its own error says more than ours would
        raise MissingExtraError(
            f"This step needs the package '{module}', which is not installed. Install it with: pip install 'edgewam[{extra}]'"
        ) from error

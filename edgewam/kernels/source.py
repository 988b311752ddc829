"""Triton sources, loaded as compiled or as interpreted kernels; one process can hold both forms of the same file.

`triton.jit` makes one or the other by the knob `runtime.interpret` at the moment it decorates.  Two more things stand in the way
of both forms in one process.  The functions of `triton.language` itself (tl.sum, tl.zeros, tl.cdiv) were decorated when Triton
was imported, as compiled ones, which an interpreted kernel cannot call: while a kernel is interpreted, interpreted forms take
their place.  And the interpreter exchanges names of `triton.language` and leaves some exchanged, after which nothing can be
compiled, Inductor's kernels neither: whatever it changed is put back when the kernel has ended.

Rules for a source file: `import triton` and `import triton.language as tl` at the top; no import of another source (helpers with
@triton.jit stand in the same file); module constants that kernels read are `tl.constexpr`; functions and not methods of tensors
(`tl.sum(x)`); no `def` inside a kernel.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from edgewam.core.errors import PluginError, require

_PACKAGE = "edgewam.kernels.sources"
_LOCK = threading.RLock()  # the interpreter has one grid position for the whole process


@functools.cache
def source(name: str, interpreted: bool) -> ModuleType:
    """The kernels of a file under `sources`, or (a dotted name) of another package's module.

    Launch them as `source(name, interpreted).kernel[grid](...)`, in either form.

    Raises:
        PluginError: no such file, or compiled kernels are wanted in a process that runs with TRITON_INTERPRET=1.
        MissingExtraError: Triton is not installed.
    """
    triton = require("triton", extra="kernels")
    full = name if "." in name else f"{_PACKAGE}.{name}"
    spec = importlib.util.find_spec(full)
    if spec is None or spec.origin is None:
        raise PluginError(f"There is no Triton source '{name}'. Look into the package {full.rpartition('.')[0]}.")
    if not interpreted:
        if not isinstance(triton.language.sum, triton.runtime.jit.JITFunction):
            raise PluginError(
                "This process was started with TRITON_INTERPRET=1, so it cannot compile kernels. Unset it; --device cpu "
                "interprets kernels without it."
            )
        return _executed(full, spec.origin)
    with interpreting():
        return _launchable(_executed(f"{full}.interpreted", spec.origin))


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Let Triton decorate and run interpreted functions; afterwards Triton is as it was."""
    triton = require("triton", extra="kernels")
    with _LOCK, triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        kept = [(place, dict(vars(place))) for place in _places()]
        try:
            for place, names in kept:
                for name, value in names.items():
                    if isinstance(value, triton.runtime.jit.JITFunction):
                        interpreted = _interpreted(value.fn)
                        setattr(place, name, _method(interpreted) if isinstance(place, type) else interpreted)
            yield
        finally:
            for place, names in kept:
                _put_back(place, names)


class _Launcher:
    """An interpreted kernel that is launched like a compiled one: kernel[grid](...)."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            with interpreting():
                self.kernel[grid](*args, **options)

        return launch


def _executed(name: str, path: str) -> ModuleType:
    """A file as a module of its own, which is registered nowhere."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _launchable(module: ModuleType) -> ModuleType:
    """What is seen of the module: its kernels with a launch that prepares Triton.  Inside they call each other as they are."""
    from triton.runtime.interpreter import InterpretedFunction

    outside = ModuleType(module.__name__, module.__doc__)
    for name, value in vars(module).items():
        if not name.startswith("__"):
            setattr(outside, name, _Launcher(value) if isinstance(value, InterpretedFunction) else value)
    return outside


def _places() -> list[Any]:
    """Modules and classes of `triton.language` whose names the interpreter may exchange."""
    modules = [module for name, module in sys.modules.items() if f"{name}.".startswith("triton.language.") and module is not None]
    core = sys.modules["triton.language.core"]
    return modules + [value for value in vars(core).values() if isinstance(value, type) and value.__module__ == core.__name__]


@functools.cache
def _interpreted(function: Callable[..., Any]) -> Any:
    """The interpreted form of a Python function; kept, since the interpreter recognises Triton's own sums by identity."""
    from triton.runtime.interpreter import InterpretedFunction

    return InterpretedFunction(function)


def _method(function: Any) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return call


def _put_back(place: Any, names: dict[str, Any]) -> None:
    """Undo what was exchanged.  Names that were added to modules stay: functions that the interpreter rewrote read them."""
    now = dict(vars(place))
    for name, value in names.items():
        if now.get(name) is not value:
            setattr(place, name, value)
    if isinstance(place, type):
        for name in now.keys() - names.keys():
            delattr(place, name)

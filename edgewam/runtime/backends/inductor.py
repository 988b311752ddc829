"""Stages compiled by `torch.compile`: exported programs whose kernels Inductor fuses on the machine that runs them.

C++ on a CPU, Triton on a GPU.  It makes kernels only: the pipeline captures the CUDA graph, so Inductor's own graphs are off.
Compilation belongs to `bind`, never to a run; compiled kernels are kept in the user's cache for the next process.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewam.core.errors import EdgewamError, PluginError, require
from edgewam.core.stage import Stage
from edgewam.runtime.backends import eager
from edgewam.runtime.engine import EngineOptions, Support
from edgewam.runtime.memory import BoundCall, Buffer

memory = eager.memory
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Tuning:
    """How long Inductor may search; the results are the same up to the order of sums.

    max_autotune: time several kernels for every matrix product and convolution.  coordinate_descent: then vary the launch
    parameters of each kernel one by one.  Both take minutes on a large stage, once per machine.
    """

    max_autotune: bool = False
    coordinate_descent: bool = False


def supports() -> Support:
    """Whether torch is installed with a compiler for a device of this machine."""
    if not (support := eager.supports()).ok:
        return support
    torch = require("torch", extra="train")
    reasons = [_missing(device) for device in (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])]
    return Support(True) if "" in reasons else Support(False, "; ".join(reasons))


def load(stage: Stage, directory: Path, record: Mapping[str, Any], options: EngineOptions) -> InductorEngine:
    """Open `record["file"]`; it is compiled when it is bound.

    Raises:
        ArtifactError: the file is no exported program of this torch version.
        PluginError: there is no compiler for `options.device`.
    """
    return InductorEngine(stage, compiled(eager.load_module(directory, record, options), options.device))


def compiled(function: Callable[..., Any], device: str = "cpu", tuning: Tuning | None = None) -> Callable[..., Any]:
    """`function(*tensors)` for inference on fixed shapes, compiled when it is called for the first time.

    The whole function becomes one graph without a way back into Python, so whatever a CUDA graph later records is all of it.

    Args:
        function: a module or function whose tensors all lie on `device`.
        device: "cpu", "cuda" or "cuda:<n>".
        tuning: how long to search for faster kernels.

    Raises:
        PluginError: there is no compiler for this device.
    """
    if reason := _missing(device):
        raise PluginError(f"Backend 'inductor' cannot compile for {device}: {reason}.")
    torch = require("torch", extra="train")
    tuning = tuning or Tuning()
    options: dict[str, Any] = {
        "triton.cudagraphs": False,
        "max_autotune": tuning.max_autotune,
        "coordinate_descent_tuning": tuning.coordinate_descent,
    }
    if device == "cpu":
        options["cpp.threads"] = torch.get_num_threads()  # part of the kernels, and so of the cache's key
    _use_own_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, about its own old parts
        importlib.import_module("torch._inductor.compile_fx")
    fast = torch.compile(function, fullgraph=True, dynamic=False, options=options)

    def run(*tensors: Any) -> Any:
        with torch.inference_mode():  # here too: the compiled code holds for one mode, and another would compile again
            return fast(*tensors)

    return run


class InductorEngine(eager.TorchEngine):
    """A compiled function; the first `bind` takes seconds to minutes where the cache has nothing."""

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """See `Engine.bind`.  The function runs once here, on what the inputs hold, so that nothing is left to compile.

        Raises:
            EdgewamError: Inductor cannot compile this stage.
        """
        torch = require("torch", extra="train")
        call = super().bind(inputs, outputs)
        try:
            self.function(*(torch.as_tensor(inputs[spec.name]) for spec in self.stage.inputs))  # writes to no output
        except Exception as error:  # Dynamo, Inductor, Triton and the C++ compiler have no common base
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise EdgewamError(
                f"Inductor of torch {torch.__version__} cannot compile stage '{self.stage.name}': {type(error).__name__}: "
                f"{' '.join(lines[:3])}. TORCH_LOGS=+inductor tells more. Or compile the bundle with --backend eager, which "
                "runs the same program as it is."
            ) from error
        return call


def _missing(device: str) -> str:
    """What Inductor lacks to compile for a device; "" when it has everything."""
    if device == "cpu":
        compilers = [os.environ.get("CXX", "g++")]
    else:
        if importlib.util.find_spec("triton") is None:
            return "the package 'triton' is not installed; install torch's CUDA build, which brings it"
        compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]  # Triton builds its launchers with it
    if not any(map(shutil.which, compilers)):
        return f"there is no compiler {' or '.join(compilers)}; install one (apt-get install g++), or name yours in CC and CXX"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"'{headers}' has no Python.h; install Python's headers (apt-get install python3-dev)"
    return ""


def _use_own_cache() -> None:
    """Keep compiled kernels in the user's cache, unless TORCHINDUCTOR_CACHE_DIR names another place.

    torch's default is in the temporary folder, which a restart empties; torch itself writes it into the variable when it is
    imported, so that value counts as none.
    """
    places = importlib.import_module("torch._inductor.runtime.cache_dir_utils")
    if os.environ.get(_CACHE) in (None, os.path.abspath(places.default_cache_dir())):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        os.environ[_CACHE] = str(Path(base) / "edgewam" / "inductor")

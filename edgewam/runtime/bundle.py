"""A bundle: the directory that goes to the robot, opened into a checked pipeline.

`manifest.json` (stages, programs, host settings, digests), `stages/` (one file per stage), `constants.safetensors`,
`prompts.safetensors` (embeddings by prompt) and `golden.safetensors`.  `compile.compile` writes it, `Bundle.open` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewam.core import plugins
from edgewam.core.artifacts import Manifest, read_manifest
from edgewam.core.errors import ArtifactError, EdgewamError, PluginError
from edgewam.core.program import Programs
from edgewam.core.stage import Stage
from edgewam.profiles.device import fitting_device
from edgewam.runtime.compatibility import require_device
from edgewam.runtime.engine import Engine, EngineOptions
from edgewam.runtime.memory import Array
from edgewam.runtime.pipeline import Pipeline
from edgewam.runtime.prompts import KIND, PROMPTS, load_prompts
from edgewam.runtime.prompts import save_prompts as save_prompts
from edgewam.runtime.selftest import capture_programs, load_golden, self_test
from edgewam.runtime.tensors import load_tensors

STAGES, CONSTANTS, GOLDEN = "stages", "constants.safetensors", "golden.safetensors"
_FIELDS = ("family", "backend", "policy", "host", "stages", "programs", "golden")


@dataclass(frozen=True)
class Bundle:
    """An opened policy.

    host: what the family's host code needs (`host_config` of the family).  prompts: prompt -> inputs of the program
    `prompt`, ready to run.
    policy: name of the policy plugin that drives the programs; None when there is none.
    """

    family: str
    backend: str
    policy: str | None
    host: Mapping[str, Any]
    stages: Mapping[str, Stage]
    engines: Mapping[str, Engine]
    pipeline: Pipeline
    prompts: Mapping[str, Mapping[str, Array]]
    options: EngineOptions = field(default_factory=EngineOptions)
    path: Path | None = None
    manifest: Manifest | None = None

    @staticmethod
    def open(path: Path | str, threads: int = 2, spinning: bool = True, verify: bool = True, device: str | None = None) -> Bundle:
        """Load a bundle and let it test itself.  `verify=False` skips the digests (never the golden vectors).

        device: "cpu", "cuda" or "cuda:<n>"; by default what the bundle was made for.  On a GPU every program becomes a graph,
        and `plan` can run beside `act`; where that fails, a warning says why and the program runs call by call.

        Raises:
            ArtifactError: missing, truncated, changed or unreadable files; made for another device or version.
            PluginError: an unknown backend, or one that cannot run on this machine.
            GateError: the engines do not reproduce the golden vectors.
        """
        path = Path(path)
        manifest = read_manifest(path, kind=KIND, verify=verify)
        config = manifest.config
        if missing := [name for name in _FIELDS if name not in config]:
            raise ArtifactError(f"The bundle '{path}' lacks {', '.join(missing)}: another version wrote it. Compile it again.")
        made_for = config.get("device", {})
        options = EngineOptions(threads, spinning, device or ("cuda" if made_for else "cpu"))
        backend = plugins.load("backend_run", config["backend"])
        support = backend.supports()
        if not support.ok:
            raise PluginError(f"Backend '{config['backend']}' of '{path}' cannot run here: {support.reason}.")
        memory = backend.memory(options)
        here = memory.device_facts()
        require_device(made_for, here, str(path), _rebuild(config, here))
        stages = {entry["stage"]["name"]: Stage.from_json(entry["stage"]) for entry in config["stages"]}
        engines = {
            entry["stage"]["name"]: backend.load(stages[entry["stage"]["name"]], path / STAGES, entry["record"], options)
            for entry in config["stages"]
        }
        programs = Programs.from_json(config["programs"], load_tensors(path / CONSTANTS))
        pipeline = Pipeline(programs, stages, engines, memory, overlap=memory.has_graphs)
        golden = load_golden(path / GOLDEN, config["golden"])
        self_test(pipeline, golden)
        if memory.has_graphs:
            capture_programs(pipeline, golden, str(path))
        return Bundle(
            config["family"], config["backend"], config["policy"], config["host"], stages, engines, pipeline,
            load_prompts(path / PROMPTS), options, path, manifest,
        )  # fmt: skip

    @property
    def digest(self) -> str:
        """The artifact's digest; empty for a bundle that was never written."""
        return self.manifest.digest if self.manifest else ""

    def prompt(self, name: str) -> Mapping[str, Array]:
        """Inputs of the program `prompt` for an instruction.

        Raises:
            EdgewamError: unknown prompt, with the known ones and the command that adds one.
        """
        if name not in self.prompts:
            known = ", ".join(f"'{prompt}'" for prompt in self.prompts) or "none"
            where = self.path or "BUNDLE"
            raise EdgewamError(
                f"This bundle has no embedding of the prompt '{name}'. It has: {known}. "
                f'Add it with: edgewam prompt add {where} "{name}"'
            )
        return self.prompts[name]

    def open_policy(self) -> Any:
        """The policy that drives these programs (`runtime/policies/<name>.py`).

        Raises:
            ArtifactError: the bundle names no policy.
        """
        if self.policy is None:
            raise ArtifactError(f"The bundle of family '{self.family}' names no policy, so its programs can only be run by name.")
        return plugins.load("policy", self.policy).open_policy(self)


def _rebuild(config: Mapping[str, Any], here: Mapping[str, str]) -> str:
    """The command that makes a bundle again as it was, for the device that is here."""
    words = ["edgewam compile POLICY BUNDLE --backend", config["backend"]]
    if "target" in config.get("device", {}):
        device = fitting_device(here.get("name", ""), here.get("sm", "")) if here else None
        words += ["--target", device.name if device else config["device"]["target"]]
    elif "device" in config:
        words += ["--device", "cuda"]
    base = {"bf16", "fp16"} & set(str(config.get("precision", "")).split("+"))
    words += ["--precision", *base] if base else []
    words += ["--steps", str(config["num_action_steps"])] if "num_action_steps" in config else []
    words += ["--layer-groups", str(config["layer_groups"])] if "layer_groups" in config else []
    return " ".join(words)

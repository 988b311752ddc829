"""The named instructions of a bundle: per prompt, the ready inputs of its program `prompt`.

The text encoder never goes to the robot; whoever has it adds prompts with `store_prompts`, which writes the bundle anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgewam.core.artifacts import keep_files, read_manifest, write_artifact
from edgewam.core.errors import ContractError
from edgewam.core.program import Programs
from edgewam.runtime.memory import Array
from edgewam.runtime.tensors import load_tensors, save_tensors

KIND = "bundle"
PROMPTS = "prompts.safetensors"


def save_prompts(path: Path, prompts: Mapping[str, Mapping[str, Array]]) -> None:
    """Write prompts; a tensor is named `<input>/<prompt>`, because prompts may hold any character and inputs no slash."""
    save_tensors(path, {f"{name}/{prompt}": array for prompt, inputs in prompts.items() for name, array in inputs.items()})


def load_prompts(path: Path) -> dict[str, dict[str, Array]]:
    """Inverse of `save_prompts`."""
    prompts: dict[str, dict[str, Array]] = {}
    for key, array in load_tensors(path).items():
        name, _, prompt = key.partition("/")
        prompts.setdefault(prompt, {})[name] = array
    return prompts


def prompt_names(bundle: Path | str) -> list[str]:
    """The instructions that a bundle knows, sorted.

    Raises:
        ArtifactError: no bundle, or a damaged one.
    """
    read_manifest(bundle, kind=KIND)
    return sorted(load_prompts(Path(bundle) / PROMPTS))


def store_prompts(bundle: Path | str, prompts: Mapping[str, Mapping[str, Array]]) -> None:
    """Add prompts to a bundle, or replace them; the bundle is written anew beside the old one and swapped in.

    Raises:
        ArtifactError: no bundle, or a damaged one.
        ContractError: inputs that the bundle's program `prompt` does not take.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle, kind=KIND)
    programs = Programs.from_json({**manifest.config["programs"], "constants": []}, {})
    specs = {spec.name: spec for spec in programs.programs["prompt"].inputs}
    for inputs in prompts.values():
        if inputs.keys() != specs.keys():
            raise ContractError(f"The program 'prompt' of '{bundle}' takes {sorted(specs)}, got {sorted(inputs)}.")
        for name, spec in specs.items():
            spec.check(inputs[name])
    measured = dict(manifest.measured)
    with write_artifact(bundle, KIND, config=manifest.config, parents=manifest.parents, measured=measured) as directory:
        keep_files(bundle, directory, manifest.files.keys() - {PROMPTS})
        save_prompts(directory / PROMPTS, load_prompts(bundle / PROMPTS) | {name: dict(i) for name, i in prompts.items()})

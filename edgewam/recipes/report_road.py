"""The road behind a bundle: its ancestors by digest, each with its size and what its manifest says was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewam.core.artifacts import MANIFEST, Manifest, read_manifest
from edgewam.core.errors import ArtifactError

# what of `measured` is worth a line: key -> (label, form of profiles/html/values.py)
_FACTS = {
    "num_episodes": ("episodes", "count"),
    "minutes": ("training", "minutes"),
    "steps": ("steps", "count"),
    "pixel_mse_image": ("pixel MSE", "small"),
    "action_rms": ("action error (std)", "small"),
}
_ORDER = ("dataset", "reproduce", "vae", "teacher", "policy", "student", "quantized", "bundle")


@dataclass(frozen=True)
class Found:
    """An artifact on this disk."""

    path: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """Of all files that the manifest lists."""
        return sum((self.path / name).stat().st_size for name in self.manifest.files)


def find_artifacts(folders: Iterable[Path]) -> dict[str, Found]:
    """Artifacts that are one of the folders, or lie directly in one, by digest.  Folders that are not there hold none."""
    found: dict[str, Found] = {}
    for folder in folders:
        inside = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
        for path in inside:
            if (path / MANIFEST).is_file():
                try:
                    manifest = read_manifest(path, verify=False)
                except ArtifactError:
                    continue  # not one of ours: only what a digest asks for must be whole
                found.setdefault(manifest.digest, Found(path, manifest))
    return found


def ancestors(start: Manifest, found: Mapping[str, Found]) -> dict[str, str]:
    """Role -> digest of everything that a bundle came from, as far as the manifests at hand tell; nearest first."""
    roles: dict[str, str] = {}
    todo = [start]
    while todo:
        manifest = todo.pop(0)
        for role, digest in manifest.parents.items():
            if role == "init_from" or digest in roles.values():
                continue
            roles.setdefault(role, digest)
            if digest in found:
                todo.append(found[digest].manifest)
    return roles


def road(bundle: Path, found: Mapping[str, Found], shipped: Path) -> list[dict[str, Any]]:
    """One entry per step, in the order of the road.  `origin`: shipped, here, or missing (only its digest is known)."""
    manifest = read_manifest(bundle, verify=False)
    roles = {**ancestors(manifest, found), "bundle": manifest.digest}
    place = {**found, manifest.digest: Found(bundle, manifest)}
    names = sorted(roles, key=lambda role: (_ORDER.index(role) if role in _ORDER else len(_ORDER) - 2, role))
    return [_entry(role, roles[role], place.get(roles[role]), shipped) for role in names]


def _entry(role: str, digest: str, found: Found | None, shipped: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": role, "digest": digest, "origin": "missing", "facts": []}
    if found is None:
        return entry
    is_shipped = found.path.resolve().is_relative_to(shipped.resolve())
    entry |= {"origin": "shipped" if is_shipped else "here", "path": str(found.path), "size_bytes": found.size_bytes}
    measured, config = found.manifest.measured, found.manifest.config
    for key, (label, form) in _FACTS.items():
        value = measured.get(key, config.get(key) if key == "num_episodes" else None)
        if isinstance(value, int | float):
            entry["facts"].append({"label": label, "value": value, "form": form})
    entry["facts"] += _distance(measured) + _compiled(found.manifest)
    return entry


def _distance(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a student: RMS distance of 2 steps to the teacher's 16 in units of the std, before and after distillation."""
    rms = measured.get("rms", {})
    labels = {
        "undistilled_2_to_16_normalised": "to 16 steps, before",
        "student_2_to_16_normalised": "to 16 steps, after",
    }
    return [{"label": label, "value": rms[key], "form": "small"} for key, label in labels.items() if key in rms]


def _compiled(manifest: Manifest) -> list[dict[str, Any]]:
    """Of a bundle: weights as declared, and the worst program against the eager reference when it was compiled."""
    if manifest.kind != "bundle":
        return []
    weights = sum(entry["stage"]["cost"]["weight_bytes"] for entry in manifest.config["stages"])
    facts = [{"label": "weights in use", "value": weights, "form": "bytes"}]
    if programs := manifest.measured.get("programs"):
        worst = max(deviation["relative"] for deviation in programs.values())
        facts.append({"label": "against eager", "value": worst, "form": "tiny"})
    return facts

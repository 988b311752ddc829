"""`edgewam inspect`: what an artifact, a dataset or a released checkpoint is, from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._shipped import or_shipped


def command(
    path: Annotated[
        Path | None, typer.Argument(help="Artifact directory or .pt checkpoint; by default the shipped bundle.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain an artifact: kind, digests, parents, sizes, what was measured. Every file is checked against its digest."""
    path = or_shipped(path, "bundle")
    facts = _checkpoint(path) if path.is_file() else _artifact(path)
    emit(facts, as_json)


def _artifact(path: Path) -> dict[str, Any]:
    from edgewam.core.artifacts import read_manifest

    manifest = read_manifest(path)
    size = sum((path / name).stat().st_size for name in manifest.files)
    say(f"{path}: {manifest.kind}, digest {manifest.digest[:12]}, {size / 1e6:.2f} MB, {len(manifest.files)} files, all verified")
    for role, digest in manifest.parents.items():
        say(f"  made from {role} {digest[:12]}")
    say(f"  made with {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}")
    say(f"  made on {manifest.hardware.get('cpu')} x{manifest.hardware.get('num_cpus')}")
    if manifest.kind == "bundle":
        _bundle(manifest.config)
    for name, value in manifest.measured.items():
        if isinstance(value, int | float | str):
            say(f"  measured {name}: {value:.6g}" if isinstance(value, float) else f"  measured {name}: {value}")
    return {"path": str(path), "kind": manifest.kind, "digest": manifest.digest, "size_bytes": size} | {
        name: dict(getattr(manifest, name)) for name in ("parents", "config", "measured", "files", "versions", "hardware")
    }


def _bundle(config: dict[str, Any] | Any) -> None:
    rows = []
    for entry in config["stages"]:
        stage = entry["stage"]
        shapes = ", ".join(f"{spec['name']} {spec['dtype']}{spec['shape']}" for spec in stage["inputs"])
        rows.append([stage["name"], stage["cost"]["weight_bytes"] / 1e6, stage["cost"]["flops"] / 1e6, shapes])
    say(f"  family {config['family']}, backend {config['backend']}, {config.get('num_action_steps', '?')} action steps")
    table("stages", ["stage", "weights MB", "MFLOP", "inputs"], rows)
    if device := config.get("device"):
        facts = ", ".join(f"{name} {device[name]}" for name in ("sm", "runtime", "driver") if device.get(name))
        say(f"  for {device.get('name', 'a GPU')}: {facts}")
    engines = [
        (entry["stage"]["name"], entry["record"]["read_back"]) for entry in config["stages"] if "read_back" in entry["record"]
    ]
    if engines:
        rows = [
            [name, found["kernels"], ", ".join(f"{count} {kind}" for kind, count in found["gemms"].items()),
             f"{found['attentions']['fused']} of {found['attentions']['found']}", found["weight_bytes"] / 1e6]
            for name, found in engines
        ]  # fmt: skip
        table("engines as they were read back", ["stage", "kernels", "matrix products", "attentions fused", "weights MB"], rows)


def _checkpoint(path: Path) -> dict[str, Any]:
    from edgewam.models.checkpoints import read_release

    release = read_release(path)
    groups: dict[str, dict[str, int]] = {}
    for name, tensor in release.tensors.items():
        parts = name.split(".")
        group = ".".join(parts[:3] if parts[1] == "mixtures" else parts[:2] if parts[0] == "mot" else parts[:1])
        count = groups.setdefault(group, {"tensors": 0, "values": 0})
        count["tensors"] += 1
        count["values"] += tensor.numel()
    extra = {name: value for name, value in release.extra.items() if name != "optimizer"}
    say(f"{path}: released checkpoint, " + ", ".join(f"{name} {value}" for name, value in extra.items()))
    table("parameters", ["group", "tensors", "values"], [[name, c["tensors"], c["values"]] for name, c in groups.items()])
    return {"path": str(path), "kind": "released checkpoint", "extra": extra, "groups": groups}

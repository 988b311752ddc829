"""`edgewam inspect`: what an artifact, a dataset or a released checkpoint is, from its own files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say, table
from edgewam.cli._shipped import or_shipped


def command(
    path: Annotated[
        Path | None, typer.Argument(help="Artifact directory, weight file or folder of weights; by default the shipped bundle.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain an artifact: kind, digests, parents, sizes, what was measured. Every file is checked against its digest."""
    path = or_shipped(path, "bundle")
    from edgewam.core.artifacts import MANIFEST

    weights = path.is_file() or (path.is_dir() and not (path / MANIFEST).exists() and _holds_weights(path))
    emit(_checkpoint(path) if weights else _artifact(path), as_json)


def _holds_weights(folder: Path) -> bool:
    """Whether a directory that is no artifact is a folder of weights, such as LeRobot's or Hugging Face's."""
    endings = (".safetensors", ".safetensors.index.json", ".pt", ".pth", ".bin")
    return any(file.name.endswith(endings) for file in folder.iterdir())


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
    weights = _weights(path)
    for name, value in manifest.measured.items():
        if isinstance(value, int | float | str):
            say(f"  measured {name}: {value:.6g}" if isinstance(value, float) else f"  measured {name}: {value}")
    return (
        {"path": str(path), "kind": manifest.kind, "digest": manifest.digest, "size_bytes": size}
        | {name: dict(getattr(manifest, name)) for name in ("parents", "config", "measured", "files", "versions", "hardware")}
        | ({"weights": weights} if weights else {})
    )


def _weights(path: Path) -> dict[str, Any]:
    """Family, sizes and what came with a released file, where the artifact holds a network."""
    import json

    file = path / "model.json"
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text())
    say(f"  family {found['family']}, {found['storage']}")
    for name, value in found.get("upstream", {}).get("extra", {}).items():
        say(f"  released with {name} {value}")
    return found


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
    _kernels(config["stages"])


def _kernels(stages: list[dict[str, Any]]) -> None:
    """What a bundle of fused kernels launches, and a line for each thing that stays in PyTorch."""
    records = {entry["stage"]["name"]: entry["record"] for entry in stages}
    rows = [
        [name, ", ".join(f"{count} {op}" for op, count in record["kernels"].items()), record["choices"]["card"]]
        for name, record in records.items()
        if "kernels" in record
    ]
    if rows:
        table("fused kernels", ["stage", "calls", "tuned on"], rows)
    for name, record in records.items():
        left = [("all of it", record["why"])] if "why" in record else []
        left += [(piece["file"], piece["why"]) for piece in record.get("pieces", ())]
        missing = Counter((op, why) for _, op, why in record.get("unsupported", ()))
        left += [(f"{count} calls of {op}", why) for (op, why), count in missing.items()]
        for what, why in left:
            say(f"  {name}: PyTorch runs {what}: {why.rstrip('.')}")


def _checkpoint(path: Path) -> dict[str, Any]:
    from edgewam.recipes.inspection import inspect_weights

    facts = inspect_weights(path)
    folder = f", LeRobot policy '{facts['policy_folder']}'" if facts["policy_folder"] else ""
    say(f"{path}: {facts['family']} ({facts['format']}{folder}), {facts['values']:,} values, {facts['bytes'] / 1e9:.3f} GB")
    if facts["sizes"]:
        say("  sizes: " + ", ".join(f"{name} {size}" for name, size in facts["sizes"].items()))
    for name, value in facts["extra"].items():
        say(f"  {name}: {value}")
    if facts["optimizer"]:
        say(f"  optimizer: {facts['optimizer']['tensors']} tensors, {facts['optimizer']['bytes'] / 1e9:.3f} GB")
    rows = [
        [name, group["tensors"], group["values"], ", ".join(f"{count} {dtype}" for dtype, count in group["dtypes"].items())]
        for name, group in facts["groups"].items()
    ]
    table("parameters", ["group", "tensors", "values", "dtypes"], rows)
    for sentence in facts["renamed"]:
        say(f"  renamed: {sentence}")
    for sentence in facts["unexpected"][:20]:
        say(f"  unexpected: {sentence}")
    if facts["num_unexpected"] > 20:
        say(f"  unexpected: and {facts['num_unexpected'] - 20} more (--json shows them)")
    if not facts["num_unexpected"]:
        say("  nothing unexpected")
    return facts

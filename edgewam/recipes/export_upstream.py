"""An artifact's weights as upstream's torch file: groups, plain values, order and dtypes as they came, streamed.

What `convert` kept in `model.json` goes back; a policy that was trained here gets the values that upstream reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewam.core import plugins
from edgewam.core.errors import ContractError

# The order in which upstream writes a policy's file.
_LAYOUT = (
    "mot", "step", "torch_dtype", "proprio_encoder", "action_obs_visual_proj", "chunk_obs_query_encoder", "ode_metadata",
)  # fmt: skip


def export_upstream(artifact: Path, out: Path) -> dict[str, Any]:
    """Write an artifact's weights as upstream's torch file: groups, plain values, order and dtypes as they came.

    Raises:
        ArtifactError: no artifact with weights, or a damaged one.
    """
    from edgewam.core.artifacts import read_manifest
    from edgewam.models import checkpoints
    from edgewam.models.checkpoints.plain import from_plain_json

    if out.is_dir():
        raise ContractError(f"'{out}' is a directory. Give the file to write, such as '{out / 'checkpoint.pt'}'.")
    if out.resolve().is_relative_to(artifact.resolve()):
        raise ContractError(f"'{out}' lies in the artifact '{artifact}', which it would damage. Give a file elsewhere.")
    manifest = read_manifest(artifact)
    stored, tensors = checkpoints.read(artifact), checkpoints.entries_of(artifact)
    upstream = checkpoints.upstream_of(artifact)
    extra = from_plain_json(upstream["extra"]) if upstream else _usual_extra(stored)
    flat = stored.family not in plugins.names("family")
    wrapper = upstream.get("wrapper")
    if flat and wrapper:
        tensors = {f"{wrapper}.{name}": tensor for name, tensor in tensors.items()}
    checkpoints.write_upstream(tensors, out, extra, upstream.get("layout") or _LAYOUT, whole=flat and not wrapper)
    return {"artifact": str(artifact), "kind": manifest.kind, "out": str(out), "size_bytes": out.stat().st_size, "extra": extra}


def _usual_extra(stored: Any) -> dict[str, Any]:
    """Plain values of a policy that was trained here: upstream reads the dtype and, of a student, its teacher's grid."""
    if stored.family not in plugins.names("family"):
        return {}
    dtype = next(iter(stored.tensors.values())).dtype
    ode = stored.metadata.get("ode_metadata")
    return {"step": 0, "torch_dtype": str(dtype), **({"ode_metadata": ode} if ode else {})}

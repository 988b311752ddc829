"""Released files in and out: any weight file to an artifact in shards, and an artifact back to upstream's torch file.

Tensors are streamed from file to file; only small repaired ones are ever in memory.  What a file lacks (VAE, statistics,
instructions) is named by option, and without VAE and statistics a policy becomes bare weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core.errors import ArtifactError, ContractError

if TYPE_CHECKING:
    from edgewam.models.checkpoints.identify import Checkpoint
    from edgewam.models.checkpoints.prepare import Prepared

POLICIES = ("aha_wam", "fast_wam")
DTYPES: Mapping[str, str | None] = {"keep": None, "bf16": "bfloat16", "float32": "float32"}
Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to make of a released file.  `given` are sizes that the user states; see `convert_options`."""

    source: Path
    out: Path
    vae: Path | None = None
    stats: Path | None = None
    text: str | Path | None = None
    prompts: Sequence[str] = ()
    tokenizer: Path | None = None
    config: Path | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    max_offset: int = 0  # ticks by which chunks were shifted in training
    composition: str | None = None
    dtype: str = "keep"
    strict: bool = True
    shard_bytes: int = 4 * 10**9


def convert(plan: Conversion, report: Report | None = None) -> dict[str, Any]:
    """Write the artifact and say what was made, repaired and skipped.

    Raises:
        ArtifactError: the file is damaged, foreign, or does not fit its kind; VAE or statistics do not belong to it.
        ContractError: options that contradict each other or the file.
    """
    from edgewam.models.checkpoints import identify
    from edgewam.models.checkpoints.prepare import prepared

    if plan.dtype not in DTYPES:
        raise ContractError(f"Unknown dtype '{plan.dtype}'. Available: {', '.join(DTYPES)}.")
    if plan.out.resolve() == plan.source.resolve():
        raise ContractError(f"'{plan.out}' is the checkpoint itself. Give another directory to write.")
    found = identify(plan.source)
    configured = _configured(found, plan)
    ready = prepared(
        found, dtype=DTYPES[plan.dtype], strict=plan.strict,
        num_queries=configured.get("num_queries") if found.kind == "aha_wam" else None,
    )  # fmt: skip
    _refuse_senseless(found.kind, plan)
    if found.kind in POLICIES:
        kind, said = _policy(plan, found, ready, configured, report)
    else:
        kind, said = _weights(plan, found, ready, report)
    return {
        "source": str(plan.source), "out": str(plan.out), "family": found.kind, "kind": kind,
        "repaired": list(ready.repaired), "skipped": list(ready.skipped), "notes": said,
    }  # fmt: skip


def _configured(found: Checkpoint, plan: Conversion) -> dict[str, Any]:
    from edgewam.recipes.convert_options import sizes_from, sizes_in

    configured = sizes_from(found.file.config) if found.file.config else {}
    return {**configured, **(sizes_in(plan.config) if plan.config else {})}


def _refuse_senseless(kind: str, plan: Conversion) -> None:
    """Options that would be ignored."""
    for_policies = {"--vae": plan.vae, "--stats": plan.stats, "--text": plan.text, "--prompt": plan.prompts}
    if kind not in POLICIES and (useless := [name for name, value in for_policies.items() if value]):
        raise ContractError(f"'{plan.source}' is of kind {kind}, which takes no {', '.join(useless)}. Leave that out.")
    if kind != "umt5" and plan.tokenizer:
        raise ContractError(f"'{plan.source}' is of kind {kind}; --tokenizer belongs to a text encoder. Leave that out.")
    if bool(plan.vae) != bool(plan.stats):
        missing = "--stats dataset_stats.json" if plan.vae else "--vae VAE"
        raise ContractError(f"A policy needs its VAE and its statistics. Add {missing}, or leave both out for bare weights.")
    if (plan.text or plan.prompts) and not plan.vae:
        raise ContractError("Instructions belong to a policy. Add --vae VAE and --stats dataset_stats.json.")
    if plan.prompts and not plan.text:
        raise ContractError("Only a text encoder can embed --prompt. Add --text with an encoder artifact or a cache directory.")


def _recipe(plan: Conversion, found: Checkpoint, ready: Prepared) -> dict[str, Any]:
    return {
        "converted_from": plan.source.name, "format": found.file.format, "family": found.kind, "dtype": plan.dtype,
        "strict": plan.strict, "repaired": list(ready.repaired), "skipped": list(ready.skipped),
    }  # fmt: skip


def _upstream(found: Checkpoint, dtype: str) -> tuple[dict[str, Any], list[str]]:
    """What the file held besides tensors and how it was nested, as JSON; and what of it could not be kept."""
    from edgewam.models.checkpoints.identify import WRAPPERS
    from edgewam.models.checkpoints.plain import to_plain_json

    extra, lost = {}, []
    for name, value in found.file.extra.items():
        try:
            extra[name] = to_plain_json(value)
        except TypeError as error:
            lost.append(f"'{name}' was not kept: {error}")
    if DTYPES[dtype] and "torch_dtype" in extra:
        extra["torch_dtype"] = f"torch.{DTYPES[dtype]}"
    wrapper = next((name for name in WRAPPERS if name in found.file.layout), None)
    layout = [name for name in found.file.layout if found.kind in POLICIES or name in extra or name == wrapper]
    return {"layout": layout, "wrapper": wrapper, "extra": extra}, lost


def _policy(
    plan: Conversion, found: Checkpoint, ready: Prepared, configured: Mapping[str, Any], report: Report | None
) -> tuple[str, list[str]]:
    from edgewam.core import plugins
    from edgewam.core.artifacts import write_artifact
    from edgewam.models import checkpoints
    from edgewam.models.text_sources import SMALL
    from edgewam.recipes.convert_options import config_of
    from edgewam.training.imported_policy import Import, write_imported

    family = plugins.load("family", found.kind)
    config = config_of(family, {name: source.shape for name, source in ready.tensors.items()}, configured, plan.given)
    upstream, said = _upstream(found, plan.dtype)
    made = Import(found.kind, config, ready.tensors, upstream, found.file.extra.get("ode_metadata"))
    recipe = _recipe(plan, found, ready)
    if plan.vae is None or plan.stats is None:
        with write_artifact(plan.out, "weights", config=recipe) as directory:
            checkpoints.write_model(
                directory, ready.tensors, family=found.kind, config=config.to_json(), upstream=upstream,
                metadata={"ode_metadata": made.ode_metadata} if made.ode_metadata else {}, limit=plan.shard_bytes, report=report,
            )  # fmt: skip
        return "weights", [*said, "bare weights: add --vae and --stats to make a policy that trains, distils and shrinks"]
    prompts = _embedded(plan, config)
    if not prompts:
        said.append(f'it knows no instruction yet; add one with: edgewam prompt add {plan.out} "..." --text TEXT')
    if toggled := (found.file.config or {}).get("toggle_action_dimensions"):
        said.append(f"LeRobot turns actions {toggled} into -sign(2a - 1) after de-normalising; nothing here does")
    write_imported(
        plan.out, made, vae=plan.vae, stats=plan.stats, layout=_layout(config, configured, plan.max_offset),
        text_encoder=SMALL if str(plan.text) == SMALL else "umt5",
        composition=plan.composition or _composition(found), prompts=prompts, recipe=recipe,
        limit=plan.shard_bytes, report=report,
    )  # fmt: skip
    return made.kind, said


def _composition(found: Checkpoint) -> str:
    """LeRobot puts its cameras side by side; released policies have three."""
    features = (found.file.config or {}).get("input_features") or {}
    cameras = sum(name.startswith("observation.images.") for name in features)
    return {0: "three_cameras", 1: "single", 2: "side_by_side"}.get(cameras, "three_cameras")


def _embedded(plan: Conversion, config: Any) -> dict[str, Any]:
    from edgewam.models.text_sources import open_text

    if not plan.prompts or plan.text is None:
        return {}
    encoder = open_text(plan.text, config)
    return {prompt: encoder.encode(prompt) for prompt in dict.fromkeys(plan.prompts)}


def _layout(config: Any, configured: Mapping[str, Any], max_offset: int) -> Any:
    """Windows as released: the shortest clip of whole latents around horizon and offset, history one clip apart."""
    from edgewam.data.windows import FRAMES_PER_LATENT, WindowLayout

    stride = getattr(config, "rope_stride", None) or configured.get("rope_stride", 4)  # 4: Fast-WAM as released
    latents = -(-(config.horizon + max_offset) // (stride * FRAMES_PER_LATENT))
    spacing = latents * FRAMES_PER_LATENT * stride
    return WindowLayout(
        chunk=config.chunk_size, horizon=config.horizon, stride=stride, max_offset=max_offset,
        num_video_frames=1 + latents * FRAMES_PER_LATENT, num_history=config.memory_slots, history_spacings=(spacing,),
    )  # fmt: skip


def _weights(plan: Conversion, found: Checkpoint, ready: Prepared, report: Report | None) -> tuple[str, list[str]]:
    """A VAE, a text encoder, or one transformer alone."""
    from edgewam.core.artifacts import write_artifact
    from edgewam.models import checkpoints

    assert found.match is not None
    recipe = _recipe(plan, found, ready)
    if found.kind == "umt5":
        return _text_encoder(plan, found.match.sizes, ready, recipe, report)
    kind = "vae" if found.kind == "wan_vae" else "weights"
    config = _vae_config(found) if kind == "vae" else dict(found.match.sizes)
    upstream, said = _upstream(found, plan.dtype)
    with write_artifact(plan.out, kind, config=recipe) as directory:
        checkpoints.write_model(
            directory, ready.tensors, family=found.kind, config=config, upstream=upstream, limit=plan.shard_bytes, report=report
        )
    return kind, said


def _text_encoder(
    plan: Conversion, sizes: Mapping[str, int], ready: Prepared, recipe: Mapping[str, Any], report: Report | None
) -> tuple[str, list[str]]:
    from edgewam.models.checkpoints.shards import write_shards
    from edgewam.models.umt5 import Umt5Config
    from edgewam.models.umt5_encoder import KIND, save_text_encoder

    if plan.tokenizer is None:
        raise ContractError(
            f"'{plan.source}' is a text encoder, which embeds nothing without its tokeniser. "
            "Add --tokenizer with the folder google/umt5-xxl of the same download."
        )
    save_text_encoder(
        plan.out, Umt5Config(**sizes), plan.tokenizer,
        lambda directory: write_shards(directory, ready.tensors, plan.shard_bytes, report),
        storage=ready.tensors["token_embedding.weight"].dtype, made_from=recipe,
    )  # fmt: skip
    return KIND, []


def _vae_config(found: Checkpoint) -> dict[str, Any]:
    from dataclasses import asdict

    from edgewam.models.wan_vae import WAN22_LATENT_MEAN, WanVaeConfig

    assert found.match is not None
    sizes = found.match.sizes
    if sizes["z_dim"] != len(WAN22_LATENT_MEAN):
        raise ArtifactError(
            f"'{found.file.path}' has {sizes['z_dim']} latent channels; the constants that normalise latents are known for "
            f"{len(WAN22_LATENT_MEAN)} only, those of the Wan2.2 VAE. Convert that one."
        )
    stage = "encoder.downsamples.3.downsamples."
    blocks = sum(name.startswith(stage) and name.endswith(".residual.2.weight") for name in found.tensors)
    return asdict(WanVaeConfig(dim=sizes["dim"], dec_dim=sizes["dec_dim"], z_dim=sizes["z_dim"], num_res_blocks=blocks))


def export_upstream(artifact: Path, out: Path) -> dict[str, Any]:
    """Write an artifact's weights as upstream's torch file: groups, plain values, order and dtypes as they came.

    Raises:
        ArtifactError: no artifact with weights, or a damaged one.
    """
    from edgewam.core.artifacts import read_manifest
    from edgewam.models import checkpoints
    from edgewam.models.checkpoints.plain import from_plain_json

    manifest = read_manifest(artifact)
    stored, tensors = checkpoints.read(artifact), checkpoints.entries_of(artifact)
    upstream = checkpoints.upstream_of(artifact)
    extra = from_plain_json(upstream["extra"]) if upstream else _usual_extra(stored)
    flat = stored.family not in POLICIES
    wrapper = upstream.get("wrapper")
    if flat and wrapper:
        tensors = {f"{wrapper}.{name}": tensor for name, tensor in tensors.items()}
    checkpoints.write_upstream(tensors, out, extra, upstream.get("layout", _LAYOUT), whole=flat and not wrapper)
    return {"artifact": str(artifact), "kind": manifest.kind, "out": str(out), "size_bytes": out.stat().st_size, "extra": extra}


_LAYOUT = (
    "mot", "step", "torch_dtype", "proprio_encoder", "action_obs_visual_proj", "chunk_obs_query_encoder", "ode_metadata",
)  # fmt: skip


def _usual_extra(stored: Any) -> dict[str, Any]:
    """Plain values of a policy that was trained here: upstream reads the dtype and, of a student, its teacher's grid."""
    if stored.family not in POLICIES:
        return {}
    dtype = next(iter(stored.tensors.values())).dtype
    ode = stored.metadata.get("ode_metadata")
    return {"step": 0, "torch_dtype": str(dtype), **({"ode_metadata": ode} if ode else {})}

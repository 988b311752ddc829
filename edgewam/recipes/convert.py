"""Released files in and out: any weight file to an artifact in shards, and an artifact back to upstream's torch file.

Tensors are streamed from file to file; only small repaired ones are ever in memory.  What a file lacks (VAE, statistics,
instructions) is named by option, and without VAE and statistics a policy becomes bare weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgewam.core.errors import ArtifactError, ContractError

if TYPE_CHECKING:
    from edgewam.data.stats import DatasetStats
    from edgewam.models.checkpoints.identify import Checkpoint
    from edgewam.models.checkpoints.prepare import Prepared

DTYPES: Mapping[str, str | None] = {"keep": None, "bf16": "bfloat16", "float32": "float32"}
Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to make of a released file.  `given` are sizes that the user states; see `convert_options`."""

    source: Path
    out: Path
    vae: Path | None = None
    stats: Path | None = None
    normalization: Literal["z-score", "min/max"] | None = None  # by default what the statistics say
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
    from edgewam.core import plugins
    from edgewam.core.artifacts import refuse_to_replace
    from edgewam.models.checkpoints import identify
    from edgewam.models.checkpoints.prepare import prepared
    from edgewam.recipes.convert_options import refuse_senseless, refuse_to_overwrite

    if plan.dtype not in DTYPES:
        raise ContractError(f"Unknown dtype '{plan.dtype}'. Available: {', '.join(DTYPES)}.")
    refuse_to_overwrite(plan)
    found = identify(plan.source)
    configured = _configured(found, plan)
    ready = prepared(
        found, dtype=DTYPES[plan.dtype], strict=plan.strict,
        num_queries=configured.get("num_queries"),
    )  # fmt: skip
    is_policy = found.kind in plugins.names("family")
    refuse_senseless(found.kind, is_policy, plan)
    refuse_to_replace(plan.out, _kind(found))
    if is_policy:
        kind, said = _policy(plan, found, ready, configured, report)
    else:
        kind, said = _weights(plan, found, ready, report)
    return {
        "source": str(plan.source), "out": str(plan.out), "family": found.kind, "kind": kind,
        "repaired": list(ready.repaired), "skipped": list(ready.skipped), "notes": said,
    }  # fmt: skip


def _kind(found: Checkpoint) -> str:
    """Of the artifact that will be written; a policy's is one of three that may replace each other."""
    return {"wan_vae": "vae", "umt5": "text_encoder"}.get(found.kind, "weights")


def _configured(found: Checkpoint, plan: Conversion) -> dict[str, Any]:
    from edgewam.recipes.convert_options import sizes_from, sizes_in

    configured = sizes_from(found.file.config, plan.source / "config.json") if found.file.config else {}
    return {**configured, **(sizes_in(plan.config) if plan.config else {})}


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
    groups = {name.split(".", 1)[0] for name in found.tensors}
    layout = [name for name in found.file.layout if name in groups or name in extra or name == wrapper]
    return {"layout": layout, "wrapper": wrapper, "extra": extra}, lost


def _policy(
    plan: Conversion, found: Checkpoint, ready: Prepared, configured: Mapping[str, Any], report: Report | None
) -> tuple[str, list[str]]:
    from edgewam.core import plugins
    from edgewam.core.artifacts import write_artifact
    from edgewam.models import checkpoints
    from edgewam.models.text_sources import SMALL
    from edgewam.recipes.convert_lerobot import lerobot_notes, lerobot_steps, refuse_other_template
    from edgewam.recipes.convert_options import config_of
    from edgewam.training.imported_policy import Import, write_imported

    family = plugins.load("family", found.kind)
    config = config_of(family, {name: source.shape for name, source in ready.tensors.items()}, configured, plan.given)
    upstream, said = _upstream(found, plan.dtype)
    ode = found.file.extra.get("ode_metadata")
    if ode is not None and not isinstance(ode, dict):
        raise ArtifactError(f"'{plan.source}': 'ode_metadata' is {ode!r}, but a student's names its teacher and its grid.")
    made = Import(
        found.kind, config, ready.tensors, upstream, ode, sampler_tables=_tables(found),
        num_action_steps=lerobot_steps(found.file.config),
    )  # fmt: skip
    recipe = _recipe(plan, found, ready)
    stats, stats_name = _stats(plan) if plan.vae else (None, "")
    if plan.vae is None:
        with write_artifact(plan.out, "weights", config=recipe) as directory:
            checkpoints.write_model(
                directory, ready.tensors, family=found.kind, config=config.to_json(), upstream=upstream,
                metadata={"ode_metadata": made.ode_metadata} if made.ode_metadata else {}, limit=plan.shard_bytes, report=report,
            )  # fmt: skip
        said += _assumed(config, {**configured, **plan.given})
        return "weights", [*said, "bare weights: add --vae and --stats to make a policy that trains, distils and shrinks"]
    if stats is None:
        raise ContractError("A policy needs its VAE and its statistics. Add --stats dataset_stats.json.")
    refuse_other_template(found.file.config)
    composition = _composition(plan, found, config)
    prompts = _embedded(plan, config)
    if not prompts:
        said.append(f'it knows no instruction yet; add one with: edgewam prompt add {plan.out} "..." --text TEXT')
    said += [*_assumed(config, {**configured, **plan.given}), *lerobot_notes(found.file.config)]
    if made.sampler_tables == "float32":
        said.append("it was trained in float32, so its sampler's tables are not rounded to bf16")
    if config.num_chunks > 1 and not plan.max_offset:
        said.append("training without action offsets was assumed, as released: chunks start on the grid of their refresh")
    if plan.stats and plan.normalization is None and stats.action.limits is None:
        said.append("statistics are used by z-score; weights that were trained on LIBERO need --normalization min/max")
    write_imported(
        plan.out, made, vae=plan.vae, stats=stats, stats_name=stats_name, layout=_layout(config, configured, plan.max_offset),
        text_encoder=SMALL if str(plan.text) == SMALL else "umt5",
        composition=composition, prompts=prompts, recipe={**recipe, "notes": said},
        limit=plan.shard_bytes, report=report,
    )  # fmt: skip
    return made.kind, said


def _tables(found: Checkpoint) -> Literal["float32", "bf16"]:
    """Upstream rounds timesteps and deltas to the dtype that its networks have, in training and when they act."""
    told = found.file.extra.get("torch_dtype") or (found.file.config or {}).get("torch_dtype") or ""
    return "float32" if str(told).removeprefix("torch.") == "float32" else "bf16"


def _assumed(config: Any, known: Mapping[str, Any]) -> list[str]:
    """The sizes that neither shapes nor the user told."""
    names = (
        "head_dim", "image_height", "image_width", "horizon", "chunk_size", "text_len", "rope_stride", "memory_slots",
    )  # fmt: skip
    fields = config.to_json()
    assumed = [f"{name} {fields[name]}" for name in names if name in fields and name not in known]
    return [f"released values were assumed: {', '.join(assumed)}"] if assumed else []


def _stats(plan: Conversion) -> tuple[DatasetStats | None, str]:
    """Statistics and where they are from: the file that was given, or LeRobot's preprocessor beside the weights."""
    from edgewam.data.stats import read_stats
    from edgewam.recipes.convert_lerobot import PREPROCESSOR, lerobot_normalization, lerobot_stats

    if plan.stats is not None:
        return read_stats(plan.stats, plan.normalization or lerobot_normalization(plan.source)), str(plan.stats)
    return lerobot_stats(plan.source) if plan.source.is_dir() else None, str(plan.source / PREPROCESSOR)


def _composition(plan: Conversion, found: Checkpoint, config: Any) -> str:
    """By name; it must fit the canvas."""
    from edgewam.core.observation import composition_named
    from edgewam.recipes.convert_lerobot import lerobot_composition

    name = plan.composition or lerobot_composition(found.file.config) or "three_cameras"
    try:
        composition_named(name).places(config.image_height, config.image_width)
    except ContractError as error:
        raise ContractError(f"{error} Name how its cameras make one image with --composition, or give --image-size.") from None
    return name


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
        num_video_frames=1 + latents * FRAMES_PER_LATENT, num_history=config.memory_slots,
        history_spacings=(spacing,) if config.memory_slots else (),
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

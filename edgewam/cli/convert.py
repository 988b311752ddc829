"""`edgewam convert`: a released weight file becomes an artifact in shards, or an artifact upstream's torch file again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewam.cli._output import Json, emit, progress, say
from edgewam.core.errors import ContractError


def command(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Weight file (.pt, .pth, .safetensors, an index of shards) or folder; or an artifact.")
    ],
    out: Annotated[Path, typer.Argument(help="Artifact directory to write; with --format upstream the file.")],
    to: Annotated[
        str, typer.Option("--format", help="artifact, or upstream: write an artifact back as a torch file.")
    ] = "artifact",
    vae: Annotated[Path | None, typer.Option(help="Of a policy: the converted VAE artifact.")] = None,
    stats: Annotated[Path | None, typer.Option(help="Of a policy: its dataset_stats.json.")] = None,
    normalization: Annotated[
        str | None, typer.Option(help="How the statistics are used: z-score or min/max; by default what they say.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Where prompts are embedded: a text_encoder artifact or a cache.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="An instruction to store with the policy; repeatable.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Of a text encoder: the folder google/umt5-xxl.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON: upstream's configuration, or sizes by name.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Width of an attention head; shapes do not tell it.", min=2)] = None,
    image_size: Annotated[str | None, typer.Option(help="Canvas in pixels, HEIGHTxWIDTH; by default the released one.")] = None,
    horizon: Annotated[int | None, typer.Option(help="Actions of one prediction; by default the released number.", min=1)] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Actions of one chunk (AHA-WAM).", min=1)] = None,
    text_len: Annotated[int | None, typer.Option(help="Rows of a text embedding.", min=1)] = None,
    max_offset: Annotated[int, typer.Option(help="Control steps that chunks were shifted by in training, at most.", min=0)] = 0,
    composition: Annotated[
        str | None, typer.Option(help="How cameras make one image: three_cameras, side_by_side, single.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="keep, bf16 or float32.")] = "keep",
    strict: Annotated[
        bool, typer.Option("--strict/--lenient", help="Refuse tensors that do not belong there, or leave them out and say so.")
    ] = True,
    shard_gb: Annotated[float, typer.Option(help="Largest shard in GB.", min=1e-6, max=1e6)] = 4.0,
    as_json: Json = False,
) -> None:
    """Convert a released checkpoint, VAE or text encoder; memory stays small whatever its size."""
    from edgewam.recipes import convert_options
    from edgewam.recipes.convert import Conversion, convert
    from edgewam.recipes.export_upstream import export_upstream

    if to == "upstream":
        _refuse_others(context)
        said = export_upstream(source, out)
        say(f"{out}: upstream's file of {source}, {said['size_bytes'] / 1e9:.3f} GB")
        return emit(said, as_json)
    if to != "artifact":
        raise ContractError(f"Unknown format '{to}'. Available: artifact, upstream.")
    if normalization not in (None, "z-score", "min/max"):
        raise ContractError(f"Unknown normalization '{normalization}'. Available: z-score, min/max.")
    given: dict[str, Any] = {"head_dim": head_dim, "horizon": horizon, "chunk_size": chunk_size, "text_len": text_len}
    given = {name: value for name, value in given.items() if value is not None}
    plan = Conversion(
        source=source, out=out, vae=vae, stats=stats, normalization=normalization, text=text, prompts=tuple(prompt or ()),
        tokenizer=tokenizer, config=config,
        given=given | (convert_options.image_size(image_size) if image_size else {}), max_offset=max_offset,
        composition=composition, dtype=dtype, strict=strict, shard_bytes=int(shard_gb * 1e9),
    )  # fmt: skip
    with progress("writing MB") as update:
        result = convert(plan, lambda done, total: update(done / 1e6, total / 1e6))
    say(f"{out}: {result['kind']} of family {result['family']}")
    for what in ("repaired", "skipped", "notes"):
        for sentence in result[what]:
            say(f"  {what.rstrip('s')}: {sentence}")
    emit(result, as_json)


def _refuse_others(context: typer.Context) -> None:
    """Options that writing a file back would ignore."""
    given = [name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if others := [name for name in given if name not in ("source", "out", "to", "as_json")]:
        names = ", ".join("--" + name.replace("_", "-") for name in others)
        raise ContractError(f"--format upstream writes an artifact back as it is; {names} would be ignored. Leave that out.")

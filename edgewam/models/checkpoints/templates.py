"""The keys and shapes of every kind of file that is known, as expressions of sizes: from one header come the sizes and
whatever does not fit them.  No torch, so that `inspect` answers at once.

Names and shapes are those of the released files (shared manifests; X-WAM's manifest for the text encoder).  Side by side
with the networks themselves they are proved equal in tests/models.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from edgewam.models.checkpoints.entries import FLOATS, Entry

Side = int | str | tuple[int, str]  # a number, a size by name, or (factor, size)
Shapes = dict[str, tuple[Side, ...]]


def _linear(name: str, out: Side, into: Side) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: Side) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def _block(width: str, ffn: str) -> Shapes:
    shapes: Shapes = {"modulation": (1, 6, width)}
    for kind in ("self_attn", "cross_attn"):
        for part in "qkv":
            shapes |= _linear(f"{kind}.{part}", "attention_dim", width)
        shapes |= _linear(f"{kind}.o", width, "attention_dim")
        shapes |= {f"{kind}.norm_q.weight": ("attention_dim",), f"{kind}.norm_k.weight": ("attention_dim",)}
    return shapes | _norm("norm3", width) | _linear("ffn.0", ffn, width) | _linear("ffn.2", width, ffn)


def _trunk(width: str, ffn: str, layers: int) -> Shapes:
    """What both experts share: embeddings of text and time, and the blocks."""
    shapes = _linear("text_embedding.0", width, "text_dim") | _linear("text_embedding.2", width, width)
    shapes |= _linear("time_embedding.0", width, "freq_dim") | _linear("time_embedding.2", width, width)
    shapes |= _linear("time_projection.1", (6, width), width)
    for layer in range(layers):
        shapes |= _under(f"blocks.{layer}.", _block(width, ffn))
    return shapes


def video_dit(names: Iterable[str], prefix: str = "") -> Shapes:
    """The planner's transformer alone: legacy `dit` files and the published Wan2.2-TI2V-5B."""
    shapes: Shapes = {"patch_embedding.weight": ("video_dim", "latent_dim", 1, 2, 2), "patch_embedding.bias": ("video_dim",)}
    shapes |= _trunk("video_dim", "video_ffn_dim", _count(names, prefix))
    shapes |= _linear("head.head", (4, "latent_dim"), "video_dim") | {"head.modulation": (1, 2, "video_dim")}
    return _under(prefix, shapes)


def action_dit(names: Iterable[str], prefix: str = "") -> Shapes:
    """The executor's transformer alone."""
    shapes = _linear("action_encoder", "action_hidden_dim", "action_dim")
    shapes |= _trunk("action_hidden_dim", "action_ffn_dim", _count(names, prefix))
    return _under(prefix, shapes | _linear("head", "action_dim", "action_hidden_dim"))


def action_dit_backbone(names: Iterable[str]) -> Shapes:
    """The executor as made from a planner, without the two layers that belong to one robot's actions."""
    return {name: shape for name, shape in action_dit(names).items() if not name.startswith(("action_encoder.", "head."))}


def fast_wam(names: Iterable[str]) -> Shapes:
    """Two transformers and the proprioception layer."""
    names = list(names)
    shapes = video_dit(names, "mot.mixtures.video.") | action_dit(names, "mot.mixtures.action.")
    return shapes | _linear("proprio_encoder", "text_dim", "proprio_dim")


def aha_wam(names: Iterable[str]) -> Shapes:
    """Fast-WAM's parts, the branch embedding, the router and what it reads the observation with."""
    names = list(names)
    editor, text, attention = "mot.chunk_kv_cache_editor", "text_dim", "attention_dim"
    shapes: Shapes = fast_wam(names) | {"mot.action_branch_embedding": (2, "action_hidden_dim")}
    shapes |= {f"{editor}.delta_gate": ("num_layers",)}
    for layer in range(_count(names, "mot.mixtures.video.")):
        query, delta = f"{editor}.layer_query_proj.{layer}", f"{editor}.layer_delta_proj.{layer}"
        shapes |= _norm(f"{query}.0", text) | _linear(f"{query}.1", attention, text) | _norm(f"{delta}.0", attention)
        shapes |= _linear(f"{delta}.1", attention, attention) | _linear(f"{delta}.3", (2, attention), attention)
    shapes |= _norm("action_obs_visual_proj.0", "latent_dim") | _linear("action_obs_visual_proj.1", text, "latent_dim")
    shapes |= _linear("action_obs_visual_proj.3", text, text)
    reader: Shapes = {"base_queries": (1, 1, "num_queries", text)}
    for part, last in (("obs_key_proj", 1), ("obs_value_proj", 3), ("query_proj", 3)):
        reader |= _norm(f"{part}.0", text) | _linear(f"{part}.1", text, text) | _linear(f"{part}.{last}", text, text)
    return shapes | _under("chunk_obs_query_encoder.", reader)


def umt5(names: Iterable[str]) -> Shapes:
    """The UMT5 encoder in Wan's own naming."""
    shapes: Shapes = {"token_embedding.weight": ("vocab_size", "dim")}
    for layer in range(_count(names, "")):
        block = f"blocks.{layer}."
        shapes |= {f"{block}{norm}.weight": ("dim",) for norm in ("norm1", "norm2")}
        shapes |= {f"{block}attn.{part}.weight": ("attention_dim", "dim") for part in "qkv"}
        shapes |= {f"{block}attn.o.weight": ("dim", "attention_dim")}
        shapes |= {f"{block}ffn.{part}.weight": ("ffn_dim", "dim") for part in ("gate.0", "fc1")}
        shapes |= {f"{block}ffn.fc2.weight": ("dim", "ffn_dim")}
        shapes |= {f"{block}pos_embedding.embedding.weight": ("num_buckets", "num_heads")}
    return shapes | {"norm.weight": ("dim",)}


def _residual(name: str, into: Side, out: Side) -> Shapes:
    shapes: Shapes = {f"{name}.residual.0.gamma": (into, 1, 1, 1), f"{name}.residual.3.gamma": (out, 1, 1, 1)}
    shapes |= _conv(f"{name}.residual.2", out, into, 3, 3, 3) | _conv(f"{name}.residual.6", out, out, 3, 3, 3)
    return shapes | (_conv(f"{name}.shortcut", out, into, 1, 1, 1) if into != out else {})


def _conv(name: str, out: Side, into: Side, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}


def _middle(name: str, width: tuple[int, str]) -> Shapes:
    factor, size = width
    shapes = _residual(f"{name}.0", width, width) | _residual(f"{name}.2", width, width)
    shapes |= {f"{name}.1.norm.gamma": (width, 1, 1)} | _conv(f"{name}.1.to_qkv", (3 * factor, size), width, 1, 1)
    return shapes | _conv(f"{name}.1.proj", width, width, 1, 1)


def wan_vae(names: Iterable[str]) -> Shapes:
    """The Wan2.2 VAE: four stages of widths 1, 2, 4, 4, time strided in two of them; decoder stages have a block more."""
    blocks = max(1, _count(names, "encoder.downsamples.3.downsamples.", "residual"))
    shapes = _conv("encoder.conv1", (1, "dim"), 12, 3, 3, 3) | _middle("encoder.middle", (4, "dim"))
    shapes |= {"encoder.head.0.gamma": ((4, "dim"), 1, 1, 1)} | _conv("encoder.head.2", (2, "z_dim"), (4, "dim"), 3, 3, 3)
    shapes |= _stages("encoder.downsamples", "downsamples", "dim", (1, 1, 2, 4, 4), blocks, (False, True, True), 1)
    shapes |= _conv("conv1", (2, "z_dim"), (2, "z_dim"), 1, 1, 1) | _conv("conv2", "z_dim", "z_dim", 1, 1, 1)
    shapes |= _conv("decoder.conv1", (4, "dec_dim"), "z_dim", 3, 3, 3) | _middle("decoder.middle", (4, "dec_dim"))
    shapes |= {"decoder.head.0.gamma": ((1, "dec_dim"), 1, 1, 1)} | _conv("decoder.head.2", 12, (1, "dec_dim"), 3, 3, 3)
    return shapes | _stages("decoder.upsamples", "upsamples", "dec_dim", (4, 4, 4, 2, 1), blocks + 1, (True, True, False), 2)


def _stages(
    name: str, inner: str, size: str, widths: tuple[int, ...], blocks: int, temporal: tuple[bool, ...], growth: int
) -> Shapes:
    shapes: Shapes = {}
    for stage, (into, out) in enumerate(itertools.pairwise(widths)):
        place = f"{name}.{stage}.{inner}"
        for block in range(blocks):
            shapes |= _residual(f"{place}.{block}", (out if block else into, size), (out, size))
        if stage < 3:
            shapes |= _conv(f"{place}.{blocks}.resample.1", (out, size), (out, size), 3, 3)
            if temporal[stage]:
                shapes |= _conv(f"{place}.{blocks}.time_conv", (growth * out, size), (out, size), 3, 1, 1)
    return shapes


KINDS: Mapping[str, Callable[[Iterable[str]], Shapes]] = {
    "aha_wam": aha_wam, "fast_wam": fast_wam, "video_dit": video_dit, "action_dit": action_dit,
    "action_dit_backbone": action_dit_backbone, "wan_vae": wan_vae, "umt5": umt5,
}  # fmt: skip
# Further keys that a kind may hold and that its network does not read.
UNREAD: Mapping[str, tuple[str, ...]] = {"fast_wam": ("mot.action_branch_embedding",)}


def _count(names: Iterable[str], prefix: str, part: str = "") -> int:
    """One more than the largest number of a block with this prefix; a number above 999 is no block of any network."""
    blocks = "" if prefix.endswith("downsamples.") else r"blocks\."
    pattern = re.compile(rf"{re.escape(prefix)}{blocks}([0-9]{{1,3}})\.{part}")
    return 1 + max((int(found.group(1)) for name in names if (found := pattern.match(name))), default=-1)


@dataclass(frozen=True)
class Match:
    """How a file's tensors fit a kind: the sizes that most of them agree on, and those that do not fit, with the reason."""

    kind: str
    sizes: Mapping[str, int]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unread: tuple[str, ...]
    shapes: Mapping[str, str]
    dtypes: Mapping[str, str]


def matched(entries: Mapping[str, Entry]) -> Match | None:
    """The kind whose keys fit best, or None where fewer than half of all keys are shared with any."""
    if not entries:
        return None
    shared = {}
    for kind, template in KINDS.items():
        expected = template(entries).keys()
        shared[kind] = len(expected & entries.keys()) / len(expected | entries.keys())
    best = max(shared, key=lambda kind: shared[kind])
    return match(best, entries) if shared[best] >= 0.5 else None


def match(kind: str, entries: Mapping[str, Entry]) -> Match:
    """Compare a file with one kind."""
    expected = KINDS[kind](entries)
    sizes = _sizes(expected, entries)
    unread = tuple(name for name in UNREAD.get(kind, ()) if name in entries)
    shapes = {}
    for name, sides in expected.items():
        if name in entries and (wanted := tuple(_value(side, sizes) for side in sides)) != entries[name].shape:
            shapes[name] = f"is {list(entries[name].shape)} where the others ask for {list(wanted)}"
    return Match(
        kind, sizes,
        missing=tuple(name for name in expected if name not in entries),
        extra=tuple(name for name in entries if name not in expected and name not in unread),
        unread=unread, shapes=shapes,
        dtypes={name: entries[name].dtype for name in expected if name in entries and entries[name].dtype not in FLOATS},
    )  # fmt: skip


def _sizes(expected: Shapes, entries: Mapping[str, Entry]) -> dict[str, int]:
    """Every size as most tensors have it."""
    votes: dict[str, Counter[int]] = {}
    for name, sides in expected.items():
        if name not in entries or len(entries[name].shape) != len(sides):
            continue
        for side, found in zip(sides, entries[name].shape, strict=True):
            factor, size = side if isinstance(side, tuple) else (1, side)
            if isinstance(size, str) and found % factor == 0:
                votes.setdefault(size, Counter())[found // factor] += 1
    sizes = {size: counter.most_common(1)[0][0] for size, counter in votes.items()}
    layers = max(_count(entries, prefix) for prefix in ("", "mot.mixtures.video."))
    return sizes | ({"num_layers": layers} if layers else {})


def _value(side: Side, sizes: Mapping[str, int]) -> int:
    factor, size = side if isinstance(side, tuple) else (1, side)
    return factor * (size if isinstance(size, int) else sizes.get(size, 0))

"""Every exact rewrite of a policy's stages: the table `REWRITES` and `rewrite`, which applies all that fit or the named ones.

Exact means: in real numbers the result is the same.  *bitwise* ones only leave out or regroup work, so no bit changes;
*algebraic* ones reorder sums or fold constants, so float32 differs by rounding and bfloat16 needs a gate of its own.
Rows without a function are held by the stages as `edgewam.models` builds them; docs/numerics.md gives proof and gain of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgewam.compile.rewritten_layers import (
    drop_last_query,
    fold_cross_gains,
    fold_cross_norms,
    fold_state,
    rotate_pairs,
    scale_cross_logits,
)
from edgewam.compile.rewritten_router import (
    batch_editor,
    commute_observation_value,
    fold_delta,
    fold_observation_key,
    merge_editor_queries,
)
from edgewam.compile.rewritten_stage import RewriteRefused, Stages
from edgewam.core.errors import EdgewamError
from edgewam.core.stage import Stage

__all__ = [
    "LAYERWISE",
    "NOT_LAYERWISE",
    "REWRITES",
    "Rewrite",
    "RewriteRefused",
    "fitting",
    "refusals",
    "rewrite",
    "rewrite_fitting",
]

# Of an output's maximum, in float32: up to 4e-7 was seen at golden size, and deeper stacks add up.  The comparison in float64
# gives up to 7e-16, which shows that it is rounding and nothing else; a constant that is folded wrongly is off by more than 1e-3.
ALGEBRAIC = 5e-6
BITWISE = 0.0


@dataclass(frozen=True)
class Rewrite:
    """One row.  `item`: of the issue's list; `stages`: those it touches; `tolerance` of each output's maximum in float32.

    function: stages -> stages with some exchanged, or RewriteRefused; None when the stages hold it from the start.
    """

    name: str
    item: str
    kind: Literal["bitwise", "algebraic"]
    stages: tuple[str, ...]
    tolerance: float
    reason: str
    why: str
    function: Callable[[Stages], dict[str, Stage]] | None = None


def _held(name: str, item: str, stages: tuple[str, ...], why: str, reason: str, tolerance: float = ALGEBRAIC) -> Rewrite:
    return Rewrite(name, item, "algebraic" if tolerance else "bitwise", stages, tolerance, reason, why)


def _row(function: Callable[[Stages], dict[str, Stage]], item: str, stages: tuple[str, ...], why: str, reason: str) -> Rewrite:
    return Rewrite(function.__name__, item, "algebraic", stages, ALGEBRAIC, reason, why, function)


_NORMS, _EDITOR = "RMSNorm scalars and gammas folded", "editor layers batched, query projections merged"
_ROUTER, _READERS = ("router",), ("planner", "denoise")

REWRITES: dict[str, Rewrite] = {
    row.name: row
    for row in (
        _held(
            "text_once", "text K/V once per prompt", ("text", "state", "denoise", "planner"),
            "text embedding and cross keys/values do not depend on the step", "products of other row counts sum in another order",
        ),
        _held(
            "pad_collapse", "padded rows collapsed to one weighted key", ("text", "denoise", "planner"),
            "zero rows are equal keys: n of them are one key with log(n) on its logit", "n exp(x) becomes exp(x + log n)",
        ),
        _held(
            "time_tables", "AdaLN/time tables per schedule", ("denoise", "planner"),
            "a fixed schedule makes every modulation a row of a table", "one product for all steps instead of one per step",
        ),
        _held(
            "image_vae_2d", "single-image VAE as 2-D convolutions", ("image_encoder",),
            "for one frame only the last temporal tap meets data", "latent constants and pixel scaling are folded",
        ),
        _held(
            "merged_qkv", "merged QKV", ("text", "planner", "state", "denoise"),
            "projections of one input are one product with the weights side by side", "a wider product may sum in another order",
        ),
        _held(
            "no_masks", "no masks where all is attended", ("planner", "denoise"),
            "adding a mask of zeros changes no logit", "x + 0 is x", BITWISE,
        ),
        _held(
            "planner_tail", "planner work after the last K/V dropped", ("planner",),
            "nothing reads the planner's tokens after its last keys and values", "work is only left out", BITWISE,
        ),
        _row(
            fold_observation_key, "observation-key fold", _ROUTER,
            "the queries are constants, so the key projection can be part of them", "q.(W n) becomes (W'q).n",
        ),
        _row(
            commute_observation_value, "value-linear commute", _ROUTER,
            "480 tokens become 32 averages before the last value layer instead of after it", "P (V W) becomes (P V) W",
        ),
        _row(
            merge_editor_queries, _EDITOR, _ROUTER,
            "one norm and one product for all layers instead of one per layer", "norm weights and scale are folded",
        ),
        _row(
            fold_delta, _NORMS, _ROUTER,
            "constants of the delta MLP cost nothing inside its weights", "norm weights and gate are folded",
        ),
        _row(
            batch_editor, _EDITOR, _ROUTER,
            "the layers are independent: two batched products instead of two per layer", "batched products sum in another order",
        ),
        _row(
            fold_cross_norms, _NORMS, _READERS,
            "an affine map before a linear layer is part of it", "norm weights are folded",
        ),
        _row(
            fold_cross_gains, _NORMS, ("text", "planner", "state", "denoise"),
            "a gain on queries may as well be on keys that are made once per prompt", "(q g).k becomes q.(k g)",
        ),
        _row(
            scale_cross_logits, _NORMS, _READERS,
            "one number per token: heads x keys logits are fewer than channels", "(q / r).k becomes (q.k) / r",
        ),
        _row(
            drop_last_query, "planner work after the last K/V dropped", ("planner",),
            "the queries of the last layer have no reader either", "a narrower product may sum in another order",
        ),
        _row(
            fold_state, "linear behind linear folded", ("state",),
            "two linear layers in a row are one", "W2 (W1 x) becomes (W2 W1) x",
        ),
        Rewrite(
            "rotate_pairs", "RoPE without a product", "bitwise", _READERS, BITWISE,
            "each sum of the product has one term, a value times 1 or -1",
            "a product with a constant 128x128 matrix per layer keeps compilers from fusing the rotation", rotate_pairs,
        ),
    )
}  # fmt: skip

# Left out for quantisers, which want a layer for every weight, and for engines that know an attention by its form.
NOT_LAYERWISE = ("batch_editor", "scale_cross_logits")
LAYERWISE = tuple(name for name, row in REWRITES.items() if row.function is not None and name not in NOT_LAYERWISE)


def rewrite(stages: Stages, names: Sequence[str] | None = None) -> dict[str, Stage]:
    """The stages rewritten: by `names` in the order of the table, or (None) by every rewrite that fits; `()` changes nothing.

    Raises:
        EdgewamError: an unknown name, or one that the stages hold already.
        RewriteRefused: a named rewrite does not know the stages or would gain nothing.  With None such rewrites are left out;
            `refusals` tells which and why.
    """
    if names is None:
        return _apply_all(stages)[0]
    functions = _functions()
    if unknown := [name for name in names if name not in functions]:
        held = ", ".join(name for name in REWRITES if name not in functions)
        raise EdgewamError(
            f"No rewrite named {', '.join(map(repr, unknown))}. Available: {', '.join(functions)}. "
            f"Every policy holds from the start: {held}."
        )
    out = dict(stages)
    for name, function in functions.items():
        if name in names:
            try:
                out = function(out)
            except RewriteRefused as refused:
                raise RewriteRefused(f"Rewrite '{name}' was asked for, but {refused}. Leave it out, or change that.") from refused
    return out


def refusals(stages: Stages) -> dict[str, str]:
    """Rewrites that `rewrite(stages)` leaves out, each with the reason."""
    return _apply_all(stages)[1]


def fitting(stages: Stages, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the rewrites that fit these stages, those of `without` aside: what `rewrite` takes by name."""
    return rewrite_fitting(stages, without)[1]


def rewrite_fitting(stages: Stages, without: Sequence[str] = ()) -> tuple[dict[str, Stage], tuple[str, ...]]:
    """The stages with every rewrite that fits, those of `without` aside, and the names of those applied."""
    out, refused = _apply_all(stages, without)
    return out, tuple(name for name in _functions() if name not in refused and name not in without)


def _functions() -> dict[str, Callable[[Stages], dict[str, Stage]]]:
    return {name: row.function for name, row in REWRITES.items() if row.function is not None}


def _apply_all(stages: Stages, without: Sequence[str] = ()) -> tuple[dict[str, Stage], dict[str, str]]:
    out, refused = dict(stages), {}
    for name, function in _functions().items():
        if name in without:
            continue
        try:
            out = function(out)
        except RewriteRefused as reason:
            refused[name] = str(reason)
    return out, refused

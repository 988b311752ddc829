"""`--dry-run` at full size: parameters, memory of a rank, operations and time of a step for a named device, without any weights.

Bytes and operations follow from the recipe and are exact to what is left out and said; the time assumes how much of the device's
matrix rate a training reaches (`UTILISATION`), until `make gpu` has measured it on that device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewam.core import plugins
from edgewam.core.errors import require
from edgewam.core.estimate import Duration, StepPlan
from edgewam.recipes.full_size import Cluster, PolicyRecipe, Schedule, StudentRecipe

if TYPE_CHECKING:
    from edgewam.profiles.device import Device
    from edgewam.training.step_count import PassCount

# Of the bf16 matrix rate in the device's file.  Dense transformers with FSDP and compiled blocks reach about 0.4 on this class of
# card (published Llama runs); here attention is two plain products and layers are not compiled.  An assumption: the section
# train_step of `make gpu` measures it.
UTILISATION = 0.3
# Of the device's memory that tensors cannot have: CUDA context, NCCL buffers, what the allocator keeps in pieces.
RESERVED = 0.08
FLOAT32, BFLOAT16 = 4, 2  # bytes
_ON_HOST = {True: "while it is built, twice with --init-from", False: "twice until teacher and student are on their devices"}
_MEASURING = "measuring (first rank)"  # at the end, on held-out windows; what these need is not counted
ADAMW_TRAFFIC = 7 * FLOAT32  # reads weight, gradient and both moments of a value, writes weight and moments


@dataclass(frozen=True)
class Part:
    """Values of one part of the network, and how many of them are trained."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True)
class FullSize:
    """What a rank holds and does.

    memory: moment -> parts in bytes.  model_flops: of one optimiser step on one rank, forward and backward; recomputed_flops:
    layers anew in the backward pass; picture_flops: of the image encoder.  seconds: part of a step -> seconds; empty
    without a device.
    """

    parts: tuple[Part, ...]
    memory: Mapping[str, Mapping[str, int]]
    kept_otherwise: int  # bytes of activations with the other choice of `recompute`
    model_flops: float
    recomputed_flops: float
    picture_flops: float
    seconds: Mapping[str, float]
    device_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        """Of the moment that needs most."""
        return max(sum(parts.values()) for parts in self.memory.values())

    @property
    def fits(self) -> bool | None:
        """Whether that is less than what tensors can have of the device; None without one."""
        return None if self.device_bytes is None else self.peak_bytes <= (1 - RESERVED) * self.device_bytes

    @property
    def step_seconds(self) -> float | None:
        """Of one optimiser step; None without a device."""
        return sum(self.seconds.values()) if self.seconds else None

    def sentences(self, recompute: bool, device: Device | None) -> list[str]:
        """What the tables do not say, for people."""
        kept = f"{self.kept_otherwise / 1e9:.1f} GB"
        found = [
            f"Activations without computing layers again: {kept}."
            if recompute
            else f"Activations when layers are computed again (recompute): {kept}.",
            f"Operations of one optimiser step on one rank: {self.model_flops / 1e12:.1f} TFLOP forward and backward, "
            f"{self.recomputed_flops / 1e12:.1f} again in the backward pass, {self.picture_flops / 1e12:.1f} for pictures.",
        ]
        if device is not None and self.step_seconds is not None:
            parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in self.seconds.items() if seconds)
            found += [
                f"A step on {device.title}: about {self.step_seconds:.2g} s ({parts}), if it reaches {UTILISATION:.0%} of its "
                "bf16 rate: an assumption until `make gpu` has measured it there. Traffic between ranks is not counted.",
                f"{'Fits' if self.fits else 'Does NOT fit'}: {self.peak_bytes / 1e9:.1f} GB of {device.memory_gb.value:g} GB, of "
                f"which {RESERVED:.0%} are left to CUDA, NCCL and the allocator."
                + ("" if self.fits else " Use more ranks, a smaller batch_per_rank with more accumulate, or reshard."),
            ]
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain-JSON form."""
        trained, total = (sum(getattr(part, name) for part in self.parts) for name in ("trained", "parameters"))
        return {
            "parameters": total,
            "trained": trained,
            "parts": [dict(vars(part)) for part in self.parts],
            "memory_per_rank": {moment: dict(parts) for moment, parts in self.memory.items()},
            "peak_bytes_per_rank": self.peak_bytes,
            "activations_with_the_other_choice_of_recompute": self.kept_otherwise,
            "model_flops_per_step_and_rank": self.model_flops,
            "recomputed_flops_per_step_and_rank": self.recomputed_flops,
            "picture_flops_per_step_and_rank": self.picture_flops,
            "parts_of_a_step_s": dict(self.seconds),
            "step_s": self.step_seconds,
            "assumed_utilisation": UTILISATION,
            "fits": self.fits,
        }


def estimate_policy(recipe: PolicyRecipe, ranks: int, device: Device | None = None) -> FullSize:
    """One optimiser step of a policy's training on one of `ranks` ranks."""
    from edgewam.training.step_count import count_policy_pass

    family, schedule = plugins.load("family", recipe.family), recipe.schedule
    counts = {
        recompute: count_policy_pass(family, recipe.model, recipe.layout, schedule.batch_per_rank, recompute)
        for recompute in (True, False)
    }
    network = _Network.of(recipe.family, recipe.model, ("",))
    held = network.held(ranks, schedule, recipe.reshard)
    memory = {
        "loss and gradients": {
            **held,
            **network.gathered(ranks, recipe.reshard, network.total),
            **_activations(counts[recipe.recompute]),
        },
        "optimiser": {**held, "temporaries of AdamW": network.shard(FLOAT32, ranks)},
        _MEASURING: {"weights, whole": FLOAT32 * network.total},
    }
    pictures = _pictures(recipe, schedule, held, memory)
    return _full_size(network, memory, counts, recipe.recompute, schedule, ranks, device, pictures)


def estimate_student(recipe: StudentRecipe, ranks: int, device: Device | None = None) -> tuple[FullSize, float]:
    """One optimiser step of a student's training on one of `ranks` ranks, and operations of one window's teacher trajectory."""
    from edgewam.training.step_count import count_student_pass

    teacher, schedule = recipe.teacher, recipe.schedule
    family = plugins.load("family", teacher.family)
    students = {
        recompute: count_student_pass(
            family, teacher.model, teacher.layout, schedule.batch_per_rank, recompute, recipe.teacher_steps
        )
        for recompute in (True, False)
    }
    network = _Network.of(teacher.family, teacher.model, family.LEARNT_BY_STUDENTS)
    held = network.held(ranks, schedule, reshard=False)
    held["teacher"] = FLOAT32 * network.total
    # what conditions it is the teacher's work, unless the family says otherwise: the student's frozen layers are not computed
    visited = network.total if family.OWN_CONDITIONING else network.outside + network.learning_blocks
    memory = {
        "loss and gradients": {
            **held, **network.gathered(ranks, False, visited), **_activations(students[recipe.recompute].step),
        },
        "optimiser": {**held, "temporaries of AdamW": network.shard(FLOAT32, ranks)},
        "teacher's trajectories": {"teacher": held["teacher"], "temporaries": round(students[False].rollout_bytes)},
        _MEASURING: {"teacher": held["teacher"], "weights, whole": FLOAT32 * network.total},
    }  # fmt: skip
    counts = {recompute: student.step for recompute, student in students.items()}
    pictures = _pictures(teacher, schedule, held, memory)
    full_size = _full_size(network, memory, counts, recipe.recompute, schedule, ranks, device, pictures)
    return full_size, students[recipe.recompute].rollout_flops


@dataclass(frozen=True)
class _Network:
    """Numbers of values: of the parts, of the largest block, of the blocks that learn, and of what is in none."""

    parts: tuple[Part, ...]
    largest_block: int
    learning_blocks: int
    outside: int

    @staticmethod
    def of(family: str, sizes: Any, trained: tuple[str, ...]) -> _Network:
        """Of a family's network; `trained` are prefixes of names."""
        torch = require("torch", extra="train")
        module = plugins.load("family", family)
        with torch.device("meta"):
            model = module.build(sizes)
        parts: dict[str, Part] = {}
        for name, parameter in model.named_parameters():
            part = next((title for prefix, title in _PARTS if name.startswith(prefix)), name.split(".")[0])
            before, count = parts.get(part, Part(part, 0, 0)), parameter.numel()
            learns = count if name.startswith(trained) else 0
            parts[part] = Part(part, before.parameters + count, before.trained + learns)
        learning = {id(parameter) for name, parameter in model.named_parameters() if name.startswith(trained)}
        blocks = [(sum(p.numel() for p in block.parameters()), block) for block in module.BLOCKS(model)]
        learns = sum(values for values, block in blocks if any(id(p) in learning for p in block.parameters()))
        outside = sum(part.parameters for part in parts.values()) - sum(values for values, _ in blocks)
        return _Network(tuple(parts.values()), max(values for values, _ in blocks), learns, outside)

    @property
    def total(self) -> int:
        """All values."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """Those that are trained."""
        return sum(part.trained for part in self.parts)

    def shard(self, num_bytes: int, ranks: int) -> int:
        """A rank's bytes of something that every trained value has."""
        return num_bytes * self.trained // ranks

    def held(self, ranks: int, schedule: Schedule, reshard: bool) -> dict[str, int]:
        """What is there all the time."""
        parts = {
            "weights": FLOAT32 * self.total // ranks,
            "gradients": self.shard(FLOAT32, ranks),
            "AdamW": self.shard(2 * FLOAT32, ranks),
        }
        if ranks > 1 and schedule.accumulate > 1:  # they are summed over the ranks after the last pass only
            parts["gradients of earlier passes"] = FLOAT32 * self.trained
        return parts

    def gathered(self, ranks: int, reshard: bool, visited: int) -> dict[str, int]:
        """Weights in the type of the products: the `visited` ones, or two blocks at a time; and the gradients of two blocks."""
        if ranks == 1:
            return {"weights in bf16": BFLOAT16 * visited}
        values = self.outside + 2 * self.largest_block if reshard else visited
        return {
            "gathered weights": BFLOAT16 * values,
            "gradients on their way": FLOAT32 * (self.outside + 2 * self.largest_block),
        }


# prefixes of names -> what people call the part; others are called by their module
_PARTS = (
    ("mot.mixtures.video.", "planner (video DiT)"),
    ("mot.mixtures.action.", "executor (action DiT)"),
    ("mot.chunk_kv_cache_editor.", "router (editor)"),
    ("mot.action_branch_embedding", "branch embedding"),
)


def _pictures(recipe: PolicyRecipe, schedule: Schedule, held: Mapping[str, int], memory: dict[str, dict[str, int]]) -> float:
    """Operations of encoding the pictures of one pass, none where latents are cached; the bytes are added to `memory`."""
    if not recipe.frames:
        return 0.0
    from edgewam.models.wan_vae import WanVae, WanVaeConfig
    from edgewam.training.step_count import count_encoding

    torch = require("torch", extra="train")
    chunk_images = recipe.model.num_chunks > 1  # one chunk looks at the planner's own picture
    count = count_encoding(WanVaeConfig(), recipe.model, recipe.layout, schedule.batch_per_rank, chunk_images)
    with torch.device("meta"):
        vae = WanVae()
    memory["encoding pictures"] = {**held, "pictures": round(count.peak_bytes)}
    for parts in memory.values():
        parts["image encoder"] = BFLOAT16 * sum(p.numel() for p in vae.parameters())
    return count.flops


def _activations(count: PassCount) -> dict[str, int]:
    return {"activations": round(count.kept_bytes), "temporaries": round(count.peak_bytes - count.kept_bytes)}


def _full_size(
    network: _Network,
    memory: dict[str, dict[str, int]],
    counts: Mapping[bool, PassCount],
    recompute: bool,
    schedule: Schedule,
    ranks: int,
    device: Device | None,
    picture_flops: float,
) -> FullSize:
    passes = schedule.accumulate
    plain = counts[False]
    again = passes * (counts[True].flops - plain.flops) if recompute else 0.0
    seconds: dict[str, float] = {}
    if device is not None:
        rate = _rate(device)
        traffic = ADAMW_TRAFFIC * network.trained / ranks
        seconds = {
            "model": passes * plain.flops / rate,
            "recomputed layers": again / rate,
            "pictures": passes * picture_flops / rate,
            "AdamW": traffic / (device.bandwidth_gb_s.value * 1e9),
        }
    return FullSize(
        network.parts,
        memory,
        round(counts[not recompute].kept_bytes),
        passes * plain.flops,
        again,
        passes * picture_flops,
        seconds,
        None if device is None else round(device.memory_gb.value * 1e9),
    )


def plan_steps(
    recipe: PolicyRecipe | StudentRecipe, cluster: Cluster, dataset: Path, out: Path, steps: int | None, device: Device | None
) -> tuple[FullSize, list[StepPlan]]:
    """The plan of a recipe: what a rank needs, and the steps of the command with their time, memory and disk.

    Args:
        recipe: of a policy or of a student.
        cluster: ranks, and windows of an epoch; 0 where the dataset is not there yet.
        dataset: that it is trained on.
        out: artifact directory.
        steps: optimiser steps instead of the recipe's epochs.
        device: of every rank; None: nothing is said of time.
    """
    is_policy = isinstance(recipe, PolicyRecipe)
    full_size, rollout = (
        (estimate_policy(recipe, cluster.ranks, device), 0.0) if is_policy else estimate_student(recipe, cluster.ranks, device)
    )
    schedule, todo = recipe.schedule, steps
    if todo is None and cluster.num_windows:
        todo = schedule.steps(cluster)
    each = full_size.step_seconds
    values, trained = (sum(getattr(part, name) for part in full_size.parts) for name in ("parameters", "trained"))
    checkpoint = FLOAT32 * (values + 2 * trained)  # weights, and both moments of what is trained
    training = StepPlan(
        name="train" if is_policy else "distill",
        inputs=(str(dataset),),
        outputs=(str(out), f"{out}.training"),
        work=_work(schedule, cluster, todo),
        duration=Duration(None if each is None or todo is None else each * todo, _source(each, device)),
        memory=full_size.memory,
        # a student's file holds what differs from its teacher's
        disk={"checkpoint": checkpoint, "policy" if is_policy else "student": BFLOAT16 * trained},
        disk_extra=checkpoint,
        notes=(f"memory is of one rank's device; its host holds the whole network in float32 {_ON_HOST[is_policy]}",),
    )
    if is_policy or not cluster.num_windows:
        return full_size, [training]
    windows = schedule.batch_per_rank * cluster.ranks * math.ceil(cluster.num_windows / (schedule.batch_per_rank * cluster.ranks))
    sizes = recipe.teacher.model
    states = FLOAT32 * windows * len(recipe.captured) * sizes.horizon * sizes.action_dim
    seconds = None if device is None else windows * rollout / cluster.ranks / _rate(device)
    rolling = StepPlan(
        name="trajectories",
        inputs=(str(dataset),),
        outputs=(f"{out}.training/trajectories",),
        work=f"{windows:,} windows, {recipe.teacher_steps} teacher steps each",
        duration=Duration(seconds, _source(seconds, device)),
        disk={"trajectories": states},
    )
    return full_size, [rolling, training]


def _work(schedule: Schedule, cluster: Cluster, steps: int | None) -> str:
    together = f"{schedule.windows_per_step(cluster.ranks)} windows each ({schedule.batch_per_rank} a rank and pass"
    together += f", {schedule.accumulate} passes)" if schedule.accumulate > 1 else ")"
    if steps is None:
        return f"{schedule.epochs} epochs of a dataset that is not there yet, {together}"
    return f"{steps:,} optimiser steps of {together}"


def _rate(device: Device) -> float:
    """Operations per second that a training is assumed to reach there."""
    return UTILISATION * device.peak_tflops[device.plain_format].value * 1e12


def _source(seconds: float | None, device: Device | None) -> str:
    if device is None:
        return "name a device to have it estimated: --on h200"
    return f"{UTILISATION:.0%} of the bf16 rate of {device.title}, assumed" if seconds is not None else "unknown"

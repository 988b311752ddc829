"""Estimates against what a training then really takes: bytes that are saved, optimiser state, files on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewam.core.errors import ArtifactError
from edgewam.core.estimate import StepPlan, Totals, tree_bytes
from edgewam.data.dataset import Dataset
from edgewam.training.checkpoint import CHECKPOINT, read_header
from edgewam.training.estimate import TrainingCost, progress_of
from edgewam.training.estimate_policy import estimate_policy
from edgewam.training.estimate_vae import estimate_vae
from edgewam.training.example_windows import ExampleWindows
from edgewam.training.memory import loss_memory
from edgewam.training.optimizers import build_optimizers, state_bytes
from edgewam.training.policy import PolicyTask, train_policy
from edgewam.training.vae import train_vae
from edgewam.training.weights import load_vae
from edgewam.training.windows import WindowSource
from tests.training import tiny

Road = tuple[Dataset, Path, Path]
# Names, shapes and JSON that lie beside the values of a file: about 150 bytes a tensor, 240 in a shard of a checkpoint, which
# names it twice; and tiny models have tiny tensors.
HEADER_BYTES_PER_TENSOR = 300
SAVED_TOLERANCE = 0.02  # a real batch may have fewer history frames or padding; shapes are the same, masks are not


def by_name(steps: list[StepPlan]) -> dict[str, StepPlan]:
    return {step.name: step for step in steps}


@pytest.fixture(scope="module")
def trained(road: Road, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, StepPlan], Path]:
    """The plan of a tiny training, and where it then ran."""
    dataset, vae, _ = road
    out = tmp_path_factory.mktemp("trained") / "policy"
    config = tiny.policy_training(dataset, vae, None)  # type: ignore[arg-type]
    plan = by_name(estimate_policy(config, out))
    assert not list(out.parent.iterdir()), "a plan writes nothing"
    train_policy(config, out)
    return plan, out


def test_example_windows_have_the_shapes_of_real_ones(road: Road, trained: tuple[dict[str, StepPlan], Path]) -> None:
    from edgewam.data.stats import measure_stats
    from edgewam.models.text import SmallTextEncoder
    from edgewam.training.latents import open_cache
    from edgewam.training.windows import latent_plan

    dataset, vae_path, _ = road
    vae, manifest = load_vae(vae_path)
    plan = latent_plan(tiny.LAYOUT, tiny.MODEL, 6, 0)
    cache = open_cache(trained[1].parent / "policy.training/latents", dataset, vae, manifest.digest, plan)
    text = SmallTextEncoder(tiny.MODEL.text_dim, tiny.MODEL.text_len)
    source = WindowSource(dataset, cache, measure_stats(dataset, range(2)), text, tiny.LAYOUT, range(2))
    batches = (source.batch(source.draw(4, np.random.default_rng(seed))) for seed in range(20))
    real = next(batch for batch in batches if batch.history_latents.shape[1] == tiny.LAYOUT.num_history)
    example = ExampleWindows(tiny.MODEL, tiny.LAYOUT, 4)
    made = example.batch(example.draw(4, np.random.default_rng(0)))
    for name, value in vars(real).items():
        assert getattr(made, name).shape == value.shape, name
        assert getattr(made, name).dtype == value.dtype, name


def test_saved_activations_are_those_of_a_real_batch(road: Road, trained: tuple[dict[str, StepPlan], Path]) -> None:
    """The plan counted at batches of 1 and 2; here the real loss runs at the full batch size."""
    dataset, vae, _ = road
    config = tiny.policy_training(dataset, vae, None, batch_size=16)  # type: ignore[arg-type]
    plan = by_name(estimate_policy(config, Path("nowhere/policy")))["train"].memory["optimiser step"]
    windows = ExampleWindows(config.model, config.layout, 16)
    task = PolicyTask(config, windows, {})  # type: ignore[arg-type]
    batch = task.batch(0, np.random.default_rng(0))

    def loss() -> torch.Tensor:
        return task.loss(batch, torch.Generator().manual_seed(0))[0]

    loss().backward()
    found = loss_memory(loss, [*task.module.parameters(), *task.module.buffers()])
    assert plan["saved activations"] == pytest.approx(found.saved_bytes, rel=SAVED_TOLERANCE)
    assert plan["saved activations"] + plan["temporaries"] == pytest.approx(found.peak_bytes, rel=SAVED_TOLERANCE)
    single = by_name(estimate_policy(replace(config, batch_size=1), Path("nowhere/policy")))["train"].memory["optimiser step"]
    assert plan["saved activations"] > 8 * single["saved activations"], "it grows with the batch"


def test_optimiser_state_gradients_and_average_are_exact(road: Road, trained: tuple[dict[str, StepPlan], Path]) -> None:
    dataset, vae, _ = road
    config = tiny.policy_training(dataset, vae, None)  # type: ignore[arg-type]
    task = PolicyTask(config, ExampleWindows(config.model, config.layout, 2), {})  # type: ignore[arg-type]
    parts = trained[0]["train"].memory["optimiser step"]
    groups = task.parameter_groups()
    assert {group.optimizer for group in groups} == {"adamw", "muon"}
    task.loss(task.batch(0, np.random.default_rng(0)), torch.Generator().manual_seed(0))[0].backward()
    real = 0
    for group, optimizer in zip(groups, build_optimizers(groups).values(), strict=True):
        optimizer.step()
        held = sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())
        assert state_bytes(group) == held
        real += held
    assert parts["optimiser"] == real
    gradients = sum(p.grad.numel() * 4 for p in task.module.parameters() if p.grad is not None)
    assert parts["gradients"] == gradients
    assert parts["average"] == sum(t.numel() * t.element_size() for t in task.module.state_dict().values())


def test_disk_is_what_the_training_then_wrote(trained: tuple[dict[str, StepPlan], Path]) -> None:
    plan, out = trained
    work = out.parent / "policy.training"
    headers = tree_bytes(work / "latents/header.json") + tree_bytes(work / "latents/done.json")
    assert plan["latents"].disk["latents"] == tree_bytes(work / "latents") - headers
    num_tensors = 4 * 150  # weights, average, two moments
    written = sum(read_header(work / CHECKPOINT)["files"].values())
    assert plan["train"].disk["checkpoint"] <= written <= plan["train"].disk["checkpoint"] + num_tensors * HEADER_BYTES_PER_TENSOR
    weights = tree_bytes(out / "model.safetensors")
    assert plan["train"].disk["policy"] <= weights <= plan["train"].disk["policy"] + 150 * HEADER_BYTES_PER_TENSOR
    assert tree_bytes(out) - weights < 100_000, "nothing large besides the weights"


def test_what_is_there_already_is_not_counted_again(road: Road, trained: tuple[dict[str, StepPlan], Path]) -> None:
    dataset, vae, _ = road
    out = trained[1]
    before = {path: path.stat().st_mtime_ns for path in out.parent.rglob("*")}
    config = tiny.policy_training(dataset, vae, None)  # type: ignore[arg-type]
    plan = by_name(estimate_policy(config, out))
    assert plan["latents"].settled and not plan["train"].settled
    assert plan["latents"].disk_bytes == 0
    assert plan["train"].duration.seconds == 0.0 and "step 4 is done" in plan["train"].work
    assert progress_of(out.parent / "policy.training")[0] == 4
    assert {path: path.stat().st_mtime_ns for path in out.parent.rglob("*")} == before


def test_minutes_are_the_time_and_steps_are_timed(road: Road) -> None:
    dataset, vae, _ = road
    config = tiny.policy_training(dataset, vae, None, loop=replace(tiny.LOOP, steps=None, minutes=3.0))  # type: ignore[arg-type]
    by_minutes = by_name(estimate_policy(config, Path("nowhere/policy")))["train"]
    assert by_minutes.duration.seconds == 180.0 and "the limit" in by_minutes.duration.source
    config = replace(config, loop=replace(tiny.LOOP, steps=1000))
    by_steps = by_name(estimate_policy(config, Path("nowhere/policy")))["train"]
    assert by_steps.duration.seconds is not None and 1.0 < by_steps.duration.seconds < 1000.0
    assert "timed here" in by_steps.duration.source


def test_a_model_too_large_to_try_is_counted_and_says_what_is_missing(road: Road) -> None:
    from edgewam.models.aha_wam_config import full

    dataset, vae, _ = road
    model = replace(full(), image_height=96, image_width=64, horizon=8, chunk_size=4)
    config = tiny.policy_training(dataset, vae, None, model=model)  # type: ignore[arg-type]
    plan = by_name(estimate_policy(config, Path("nowhere/policy")))["train"]
    parts = plan.memory["saving a checkpoint"]
    assert parts["weights"] > 25e9 and parts["average"] > 25e9 and parts["optimiser"] > 25e9
    assert "activations are not counted" in plan.notes[0]
    assert plan.peak_moment == "saving a checkpoint"


def test_a_vae_plan_is_kept_by_its_training(road: Road, tmp_path: Path) -> None:
    dataset = road[0]
    config = tiny.vae_training(dataset)
    (plan,) = estimate_vae(config, tmp_path / "vae")
    assert not list(tmp_path.iterdir())
    train_vae(config, tmp_path / "vae")
    written = sum(read_header(tmp_path / "vae.training" / CHECKPOINT)["files"].values())
    assert plan.disk["checkpoint"] <= written <= plan.disk["checkpoint"] + 1000 * HEADER_BYTES_PER_TENSOR
    split = dataset.num_episodes - 1
    frames = sum(-(-int(length) // config.stride) for length in dataset.lengths[:split])
    assert plan.memory["optimiser step"]["pictures"] == frames * 96 * 64 * 3
    assert plan.memory["optimiser step"]["saved activations"] > 0


def test_a_plan_refuses_what_the_training_would(road: Road, trained: tuple[dict[str, StepPlan], Path], tmp_path: Path) -> None:
    dataset, vae, _ = road
    with pytest.raises(ArtifactError, match="edgewam collect"):
        estimate_policy(replace(tiny.policy_training(dataset, vae, tmp_path), dataset=tmp_path / "none"), tmp_path / "p")
    with pytest.raises(ArtifactError, match="policy is needed"):
        estimate_policy(tiny.policy_training(dataset, vae, tmp_path, init_from=vae), tmp_path / "p")
    other = tiny.vae_at(tmp_path / "vae", seed=1)
    with pytest.raises(ArtifactError, match="another vae"):
        estimate_policy(tiny.policy_training(dataset, other, trained[1].parent / "policy.training/latents"), tmp_path / "p")


def test_totals_leave_out_what_is_settled() -> None:
    from edgewam.core.estimate import Duration

    def step(name: str, seconds: float | None, settled: str = "") -> StepPlan:
        return StepPlan(
            name, (), (), "", Duration(seconds, ""), {"a": {"x": 5}, "b": {"x": 3, "y": 4}}, {"d": 10}, 4, settled=settled
        )

    total = Totals.of([step("a", 1.0), step("b", 2.0), step("c", 9.0, "complete")])
    assert (total.seconds, total.peak_memory_bytes, total.disk_bytes, total.peak_disk_bytes) == (3.0, 7, 20, 24)
    assert Totals.of([step("a", None), step("b", 2.0)]).seconds is None


def test_the_cost_of_a_training_leaves_its_weights_alone(road: Road) -> None:
    from edgewam.training.estimate import BatchKind, training_cost

    dataset, vae, _ = road
    config = tiny.policy_training(dataset, vae, None)  # type: ignore[arg-type]
    windows = ExampleWindows(config.model, config.layout, 1)
    task = PolicyTask(config, windows, {})  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in task.module.state_dict().items()}
    cost = training_cost(task, config.loop, [BatchKind(1.0, 4, lambda n: windows.draw(n, np.random.default_rng(0)))])
    assert isinstance(cost, TrainingCost) and cost.step_seconds is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in task.module.state_dict().items())
    assert all(parameter.grad is None for parameter in task.module.parameters())

"""Any number of ranks trains the same thing, reads the others' checkpoints, and ends with one message."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgewam.core.errors import EdgewamError
from edgewam.training.checkpoint import CHECKPOINT, read_header, read_tensors
from edgewam.training.log import read_log
from edgewam.training.parallel import checkpoint_activations
from edgewam.training.policy_artifact import load_policy
from edgewam.training.ranks import ALONE, Share, join_ranks
from tests.training.toy import RankToy

# Ranks add the same numbers in another order: float32 sums of a few rows, over six steps of AdamW and a clipped gradient.
SUM_ORDER = 1e-6
# Of the largest weight.  Muon's orthogonalisation rounds to bfloat16, where a last bit of a gradient can become 2^-8 of an
# update: at the recipe's first rate, 1/200 of its full one, that is this much.
FIRST_STEP = 1e-5
# Of the largest gradient: products of a few bfloat16 factors, each rounded to 2^-9.
HALF = 2e-2
# Two steps at rates where that rounding stays as small; and AdamW's first step is the gradient's sign, for the smallest too.
FEW_STEPS = 1e-4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with what `rank_scenes` leaves: a training directory per scene and said.json."""
    out = tmp_path_factory.mktemp("scenes")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.training.rank_scenes", str(out)]
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def said(scenes: Path, name: str) -> list[tuple[int, str]]:
    return [(code, words) for code, words in json.loads((scenes / "said.json").read_text())[name]]


def assert_went_well(scenes: Path, *names: str) -> None:
    for name in names:
        assert all(code == 0 for code, _ in said(scenes, name)), said(scenes, name)


def difference(left: Path, right: Path) -> dict[str, float]:
    """Largest difference of each tensor of two checkpoints, by the largest value of that kind (model, average, moment)."""
    a, b = (read_tensors(path / CHECKPOINT, "") for path in (left, right))
    assert a.keys() == b.keys() and any(name.startswith("optimizer.") for name in a)
    scale: dict[str, float] = {}
    for name, tensor in a.items():
        kind = name.split(".")[0] if not name.startswith("optimizer.") else name.rsplit(".", 1)[1]
        scale[kind] = max(scale.get(kind, 0.0), float(tensor.abs().max()))
    return {
        name: float((a[name] - b[name]).abs().max())
        / scale[name.split(".")[0] if not name.startswith("optimizer.") else name.rsplit(".", 1)[1]]
        for name in a
    }


@pytest.mark.parametrize("ranks", ["two", "back_to_one", "four", "after_kill", "after_full_disk", "inside"])
def test_any_number_of_ranks_stopped_killed_or_resharded_trains_the_same(scenes: Path, ranks: str) -> None:
    """7 rows on 1, 2 (3 + 4) and 4 (1 + 2 + 2 + 2) ranks; `one` is not sharded and recomputes nothing."""
    assert_went_well(scenes, "one", ranks)
    worst = max(difference(scenes / "one", scenes / ranks).items(), key=lambda item: item[1])
    print(f"{ranks}: largest difference {worst[1]:.1e} ({worst[0]})")
    assert worst[1] < SUM_ORDER
    left, right = read_log(scenes / "one"), read_log(scenes / ranks)
    assert [line["step"] for line in right] == list(range(6))
    for a, b in zip(left, right, strict=True):
        assert [b[name] for name in ("loss", "mean_error", "grad_norm")] == pytest.approx(
            [a[name] for name in ("loss", "mean_error", "grad_norm")], rel=SUM_ORDER, abs=SUM_ORDER
        )


def test_muon_on_sharded_matrices_takes_the_steps_of_whole_ones(scenes: Path) -> None:
    assert_went_well(scenes, "muon_whole", "muon_sharded")
    whole, sharded = (load_file(scenes / name / "matrices.safetensors") for name in ("muon_whole", "muon_sharded"))
    assert len(whole) == 6
    for name, matrix in whole.items():
        torch.testing.assert_close(sharded[name], matrix, rtol=0, atol=1e-7)  # one product is rounded before it is added


def test_weights_gathered_in_bfloat16_give_float32_gradients_of_its_precision(scenes: Path) -> None:
    assert_went_well(scenes, "half")
    found = load_file(scenes / "half/gradients.safetensors")
    task = RankToy()
    task.loss(task.batch(0, np.random.default_rng(0)), torch.Generator().manual_seed(0)).value.backward()  # type: ignore[no-untyped-call]
    exact = {name: p.grad for name, p in task.module.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in exact.values() if gradient is not None)
    assert found.keys() == exact.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, exact[name], rtol=0, atol=HALF * largest)


def test_a_step_of_small_on_two_ranks_equals_one_rank_with_unequal_padding(scenes: Path) -> None:
    """Weights, average and both moments, which after one step are the gradient and its square; 5 windows as 2 + 3."""
    assert_went_well(scenes, "small_one", "small_two")
    found = difference(scenes / "small_one", scenes / "small_two")
    moments = {name: value for name, value in found.items() if name.startswith("optimizer.")}
    for what, values in (("gradients", moments), ("everything", found)):
        worst = max(values.items(), key=lambda item: item[1])
        print(f"small, {what}: largest difference {worst[1]:.1e} of the largest value ({worst[0]})")
    assert max(moments.values()) < SUM_ORDER
    assert max(found.values()) < FIRST_STEP


def test_a_policy_is_trained_and_distilled_on_two_ranks_as_on_one(scenes: Path) -> None:
    assert_went_well(scenes, "taught_one", "taught_two", "learnt_one", "learnt_two")
    for name in ("images.f16", "clips.f16", "done.json"):
        assert (scenes / "taught_one/latents" / name).read_bytes() == (scenes / "taught_two/latents" / name).read_bytes()
    one, two = (scenes / who / "student.training/trajectories" for who in ("learnt_one", "learnt_two"))
    assert (one / "done.json").read_bytes() == (two / "done.json").read_bytes()
    states = [np.fromfile(path / "states.f32", np.float32) for path in (one, two)]
    assert np.abs(states[0]).max() > 1 and np.abs(states[0] - states[1]).max() < SUM_ORDER * np.abs(states[0]).max()
    for one, two, artifact in (("taught_one", "taught_two", "teacher"), ("learnt_one", "learnt_two", "student")):
        a, b = (read_tensors(scenes / who / f"{artifact}.training" / CHECKPOINT, "model.") for who in (one, two))
        assert max(float((a[name] - b[name]).abs().max()) for name in a) < FEW_STEPS
        losses = [[line["loss"] for line in read_log(scenes / who / artifact)] for who in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=FEW_STEPS)
        assert load_policy(scenes / two / artifact, scenes / "road/vae").manifest.measured["steps"] == len(losses[0])


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(scenes: Path) -> None:
    assert read_header(scenes / "stopped" / CHECKPOINT)["step"] == 3
    found = said(scenes, "stopped")
    assert [code for code, _ in found] == [1, 1]
    assert "Stopped after step 3" in "".join(words for _, words in found)


def test_a_checkpoint_of_two_ranks_comes_back_from_four_bit_for_bit(scenes: Path) -> None:
    assert_went_well(scenes, "rewritten")
    shards = sorted(read_header(scenes / "rewritten" / CHECKPOINT)["files"])
    assert len(shards) == 4
    a, b = (read_tensors(scenes / name / CHECKPOINT, "") for name in ("stopped", "rewritten"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("scene", "codes", "sentence"),
    [
        ("stopped", [1, 1], "Stopped after step 3; run the same command again"),
        ("nan", [1, 1, 1, 1], "The loss is nan at step 3, batch toy rows of batch 6"),
        ("killed", [1, -9], "Another rank ended without a word"),
        ("full_disk", [1, 1], "Cannot write the checkpoint"),
        ("too_small", [1, 1, 1, 1], "A batch of 3 cannot be divided among 4 ranks"),
    ],
)
def test_a_failure_on_any_rank_ends_all_with_one_message(scenes: Path, scene: str, codes: list[int], sentence: str) -> None:
    found = said(scenes, scene)
    assert [code for code, _ in found] == codes
    (words,) = [words for _, words in found if words]
    assert words.startswith(f"edgewam: {sentence}")
    assert words.count("\n") == 1


def test_a_full_disk_on_one_rank_leaves_the_checkpoint_of_all_as_it_was(scenes: Path) -> None:
    words = "".join(words for _, words in said(scenes, "full_disk"))
    assert "at step 4: rank 1: [Errno 28] No space left on device. The checkpoint before it is untouched" in words
    assert read_header(scenes / "full_disk" / CHECKPOINT)["step"] == 2
    assert sorted(path.name for path in (scenes / "full_disk").glob("checkpoint*")) == ["checkpoint.a", CHECKPOINT]


def test_shares_are_contiguous_and_cover_a_batch() -> None:
    for world in (1, 2, 3, 5):
        rows = [Share(rank, world).rows(7) for rank in range(world)]
        assert [i for part in rows for i in range(7)[part]] == list(range(7))
        assert {part.stop - part.start for part in rows} <= {7 // world, 7 // world + 1}
    with pytest.raises(EdgewamError, match="at most 7 ranks"):
        Share(0, 8).rows(7)


def test_recomputed_activations_give_the_same_gradient_bit_for_bit() -> None:
    plain = RankToy()
    again = copy.deepcopy(plain)
    checkpoint_activations(again.blocks())
    batch = plain.batch(0, np.random.default_rng(0))
    for task in (plain, again):
        task.loss(batch, torch.Generator().manual_seed(0)).value.backward()  # type: ignore[no-untyped-call]
    for (name, a), b in zip(plain.module.named_parameters(), again.module.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.equal(a.grad, b.grad), name


def test_one_process_is_one_rank_and_a_launcher_that_says_half_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert join_ranks("cpu") == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(EdgewamError, match=r"MASTER_ADDR, MASTER_PORT is not set. Start with torchrun"):
        join_ranks("cpu")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(EdgewamError, match="Say cuda: each rank takes its own"):
        join_ranks("cuda:0")

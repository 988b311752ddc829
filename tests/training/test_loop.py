"""The loop learns, is exact across every kind of interruption, and never leaves half a checkpoint."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from edgewam.core.errors import ArtifactError, EdgewamError
from edgewam.training import checkpoint
from edgewam.training.checkpoint import CHECKPOINT, read_header, read_tensors, read_weights
from edgewam.training.log import read_log
from edgewam.training.loop import Interrupted, LoopConfig, Progress, train
from edgewam.training.optimizers import ParameterGroup, WeightAverage, build_optimizers, rate_factor
from tests.training.toy import RankToy, ToyTask

CONFIG = LoopConfig(
    steps=40, warmup_steps=5, ema_decay=0.9, log_every=1, autocast=False, threads=1, tensorboard=False, checkpoint_steps=10
)


def whole_state(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, average, optimiser state."""
    return read_tensors(path / CHECKPOINT, "")


def assert_same_state(left: Path, right: Path) -> None:
    a, b = whole_state(left), whole_state(right)
    assert a.keys() == b.keys()
    assert any(name.startswith("optimizer.muon") for name in a)
    assert any(name.startswith("average.") for name in a)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    train(ToyTask(), CONFIG, path)
    return path


def test_the_loss_falls_and_every_step_is_logged_once(uninterrupted: Path) -> None:
    log = read_log(uninterrupted)
    assert [line["step"] for line in log] == list(range(40))
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert {"loss", "mean_error", "grad_norm", "lr_factor", "elapsed_s"} <= log[0].keys()


def test_a_run_stopped_by_ctrl_c_and_resumed_equals_an_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    def stop_at_17(now: Progress) -> None:
        if now.step == 17:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="step 17"):
        train(ToyTask(), CONFIG, tmp_path, progress=stop_at_17)
    assert signal.getsignal(signal.SIGINT) is before
    assert read_header(tmp_path / CHECKPOINT)["step"] == 17
    train(ToyTask(), CONFIG, tmp_path)
    assert_same_state(uninterrupted, tmp_path)
    assert curve(uninterrupted) == curve(tmp_path)


def test_ctrl_c_while_the_last_step_is_saved_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is whole, but the command around it must not go on with its next step."""
    from edgewam.training import loop

    real = loop.write_checkpoint

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*arguments)  # type: ignore[arg-type]

    config = replace(CONFIG, steps=3, checkpoint_steps=None)
    monkeypatch.setattr(loop, "write_checkpoint", interrupted)
    with pytest.raises(Interrupted, match="after step 3"):
        train(ToyTask(), config, tmp_path)
    monkeypatch.undo()
    assert train(ToyTask(), config, tmp_path).step == 3


def curve(path: Path) -> list[dict[str, float]]:
    """The log without what a clock said."""
    return [{name: value for name, value in line.items() if name != "elapsed_s"} for line in read_log(path)]


def in_a_child(run: Callable[[], object]) -> int:
    """Start `run` in a forked process, which ends with it; returns its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no other thread of ours runs
        child = os.fork()
    if child:
        return child
    try:
        run()
        os._exit(0)
    finally:
        os._exit(1)


# A checkpoint is flushed to disk file by file: its shard, its directory, its record, the record's directory.
@pytest.mark.parametrize(("flushes", "step"), [(9, 20), (10, 20), (11, 20), (12, 30)])
def test_a_run_killed_inside_of_a_checkpoint_goes_on_from_the_last_whole_one(
    uninterrupted: Path, tmp_path: Path, flushes: int, step: int
) -> None:
    def killed() -> None:
        left = flushes
        real = os.fsync

        def flush(file: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(file)

        os.fsync = flush
        train(ToyTask(), CONFIG, tmp_path)

    assert os.waitstatus_to_exitcode(os.waitpid(in_a_child(killed), 0)[1]) == -signal.SIGKILL
    assert read_header(tmp_path / CHECKPOINT)["step"] == step
    train(ToyTask(), CONFIG, tmp_path)
    assert_same_state(uninterrupted, tmp_path)
    assert curve(uninterrupted) == curve(tmp_path)


def test_a_run_killed_at_any_moment_again_and_again_has_the_same_curve_bit_for_bit(uninterrupted: Path, tmp_path: Path) -> None:
    config, kills = replace(CONFIG, checkpoint_steps=2), 0
    moments = random.Random(6)
    for attempt in range(40):
        child = in_a_child(lambda: train(ToyTask(), config, tmp_path))
        time.sleep(moments.uniform(0.0, 0.04 + 0.01 * attempt))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        kills += 1
    train(ToyTask(), config, tmp_path)
    assert kills >= 3
    assert_same_state(uninterrupted, tmp_path)
    assert curve(uninterrupted) == curve(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_to_do(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    real = safetensors.torch.save

    def full(tensors: object, metadata: object) -> bytes:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save", full)
        with pytest.raises(EdgewamError, match=r"step 30: rank 0: .*No space left.*free some space"):
            train(ToyTask(), CONFIG, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.b", CHECKPOINT, "log.jsonl"]
    assert read_header(tmp_path / CHECKPOINT)["step"] == 20
    train(ToyTask(), CONFIG, tmp_path)
    assert_same_state(uninterrupted, tmp_path)


def test_a_checkpoint_that_is_current_stays_when_its_folder_cannot_be_flushed(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, real = 0, checkpoint._sync

    def fails(directory: Path) -> None:
        nonlocal flushed
        flushed += directory == tmp_path
        if flushed == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(directory)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync", fails)
        with pytest.raises(EdgewamError, match=r"Cannot flush.*Input/output error"):
            train(ToyTask(), CONFIG, tmp_path)
    assert read_header(tmp_path / CHECKPOINT)["step"] == 20
    train(ToyTask(), CONFIG, tmp_path)
    assert_same_state(uninterrupted, tmp_path)


def test_a_loss_that_is_not_finite_names_step_and_batch_and_keeps_the_last_good_checkpoint(
    uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(EdgewamError, match="loss is nan at step 25, batch toy rows of batch 25"):
        train(ToyTask(bad_batch=25), CONFIG, tmp_path)
    assert read_header(tmp_path / CHECKPOINT)["step"] == 20
    assert all(tensor.isfinite().all() for tensor in whole_state(tmp_path).values())
    train(ToyTask(), CONFIG, tmp_path)
    assert_same_state(uninterrupted, tmp_path)


def test_accumulation_splits_a_batch_without_changing_the_step_count(tmp_path: Path) -> None:
    seen: list[int] = []

    class Recording(ToyTask):
        def batch(self, index, generator):  # type: ignore[no-untyped-def]
            seen.append(index)
            return super().batch(index, generator)

    result = train(Recording(), replace(CONFIG, steps=3, accumulate=4), tmp_path)
    assert result.step == 3
    assert seen == list(range(12))


class FakeClock:
    """Every look at it costs `step` seconds."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_schedule_on_wall_time_goes_on_where_it_stood(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=None, minutes=1.0, checkpoint_steps=None)

    def stop_at_10(now: Progress) -> None:
        if now.step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(ToyTask(), config, tmp_path, progress=stop_at_10, clock=FakeClock(1.0))
    elapsed = read_header(tmp_path / CHECKPOINT)["elapsed_s"]
    assert 10 < elapsed < 40
    seen: list[Progress] = []
    result = train(ToyTask(), config, tmp_path, progress=seen.append, clock=FakeClock(1.0))
    assert 60 <= result.elapsed_s < 65
    assert seen[0].step == 11
    assert seen[0].fraction == pytest.approx(elapsed / 60, abs=0.1)
    assert seen[-1].fraction == 1.0
    assert seen[-1].seconds_left == 0.0
    again = train(ToyTask(), config, tmp_path, clock=FakeClock(1.0))
    assert again.step == result.step, "a finished training does nothing more"


def test_a_checkpoint_of_another_configuration_is_refused_by_name(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ArtifactError, match=r"clip_norm: 1\.0 there, 0\.5 now"):
        train(ToyTask(), replace(CONFIG, clip_norm=0.5), tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 2000])
def test_a_truncated_or_missing_part_of_a_checkpoint_is_an_error_that_names_it(
    uninterrupted: Path, tmp_path: Path, cut: int
) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (shard,) = tmp_path.glob("checkpoint.?/*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:cut])
    with pytest.raises(ArtifactError, match=f"{shard}' has {cut} bytes instead of {len(whole)}"):
        train(ToyTask(), CONFIG, tmp_path)
    shard.write_bytes(bytes(len(whole)))
    with pytest.raises(ArtifactError, match="no readable training checkpoint"):
        train(ToyTask(), CONFIG, tmp_path)
    shard.unlink()
    with pytest.raises(ArtifactError, match=f"{shard}' is missing"):
        train(ToyTask(), CONFIG, tmp_path)
    (tmp_path / CHECKPOINT).write_bytes((uninterrupted / CHECKPOINT).read_bytes()[:cut])
    with pytest.raises(ArtifactError, match="no readable training checkpoint"):
        train(ToyTask(), CONFIG, tmp_path)


def test_a_training_of_an_earlier_version_is_not_started_anew_silently(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"checkpoint.safetensors' was written by an earlier version"):
        train(ToyTask(), CONFIG, tmp_path)


def test_the_averaged_weights_are_what_a_reader_gets(uninterrupted: Path) -> None:
    averaged, last = read_weights(uninterrupted / CHECKPOINT), read_weights(uninterrupted / CHECKPOINT, average=False)
    assert averaged.keys() == last.keys() == ToyTask().module.state_dict().keys()
    assert not torch.equal(averaged["0.weight"], last["0.weight"])


def test_a_training_without_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="set steps= or minutes="):
        LoopConfig()


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    train(ToyTask(), replace(CONFIG, steps=3, tensorboard=True), tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"grad_norm" in events.read_bytes()


def test_the_rate_warms_up_linearly_and_ends_at_its_floor() -> None:
    assert rate_factor(0, 0.0, 10, 0.01) == pytest.approx(0.1)
    assert rate_factor(4, 0.0, 10, 0.01) == pytest.approx(0.5)
    assert rate_factor(100, 0.5, 10, 0.01) == pytest.approx(0.505)
    assert rate_factor(100, 1.0, 10, 0.01) == pytest.approx(0.01)


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"2-D weights; move bias"):
        build_optimizers([ParameterGroup("muon", {"bias": torch.nn.Parameter(torch.zeros(3))}, "muon")])


def test_the_average_follows_its_growing_decay() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, 0.999)
    old = module.weight.item()
    with torch.no_grad():
        module.weight.fill_(5.0)
    average.update(module, 0)
    assert average.state["weight"].item() == pytest.approx(0.1 * old + 0.9 * 5.0)


def test_a_checkpoint_of_other_optimisers_is_refused(tmp_path: Path) -> None:
    train(RankToy(matrices=False), replace(CONFIG, steps=1), tmp_path)
    with pytest.raises(ArtifactError, match=r"holds another model: \['optimizer.adamw.10'"):
        train(RankToy(), replace(CONFIG, steps=1), tmp_path)

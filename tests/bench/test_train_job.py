"""The training job: packed data come back bit for bit, broken files say what to do, no tensor of a step stays on the host."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.jobs import find_jobs
from benchmarks.gpu.pack_dataset import pack
from benchmarks.gpu.packed import read_packed, synthetic, write_packed
from benchmarks.gpu.worker import work
from edgewam.core.artifacts import write_artifact
from edgewam.core.errors import EdgewamError
from edgewam.data.schema import ACTION, STATE
from edgewam.models.text import SmallTextEncoder
from edgewam.models.wan_vae import WanVae, WanVaeConfig
from edgewam.training.loop import LoopConfig
from edgewam.training.optimizers import build_optimizers
from edgewam.training.policy import PolicyTask, PolicyTraining
from edgewam.training.weights import save_vae
from edgewam.training.windows import WindowSource
from tests.data.synthetic import dataset_of, episode

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "two.npz"
    synthetic(path, episodes=3, length=230)
    return path


def test_packing_some_episodes_keeps_every_number_of_them(packed_file, tmp_path):
    whole = read_packed(packed_file)
    write_packed(tmp_path / "two.npz", whole.dataset, whole.cache, whole.stats, 2, {"from": "test"})
    part = read_packed(tmp_path / "two.npz")
    assert part.origin == {"from": "test"} and part.cache.plan == whole.cache.plan
    rows, frames = 2 * 230, 2 * 115
    for name in (STATE, ACTION):
        np.testing.assert_array_equal(part.dataset.index.vectors[name], whole.dataset.index.vectors[name][:rows])
    np.testing.assert_array_equal(part.cache.images, whole.cache.images[:frames])
    kept = whole.cache.window_episode < 2
    np.testing.assert_array_equal(part.cache.clips, whole.cache.clips[kept])
    np.testing.assert_array_equal(part.cache.window_step, whole.cache.window_step[kept])
    assert part.dataset.task(1) == whole.dataset.task(1) and part.dataset.num_episodes == 2


def test_a_packed_batch_is_the_batch_of_its_source(packed_file, tmp_path):
    whole = read_packed(packed_file)
    write_packed(tmp_path / "a.npz", whole.dataset, whole.cache, whole.stats, 2, {})
    part = read_packed(tmp_path / "a.npz")
    config, text = PolicyTraining(dataset=Path("x"), vae=Path("x")), SmallTextEncoder(128, 16)
    batches = []
    for packed in (whole, part):
        source = WindowSource(packed.dataset, packed.cache, packed.stats, text, config.layout, range(2))
        batches.append(source.batch(source.draw(4, np.random.default_rng(3))))
    for name in vars(batches[0]):
        torch.testing.assert_close(getattr(batches[0], name), getattr(batches[1], name), rtol=0, atol=0)


def test_twenty_megabytes_hold_several_episodes(packed_file):
    assert packed_file.stat().st_size / 3 < 20e6 / 4  # random latents: real ones pack no worse


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", None])
def test_broken_packed_files_say_how_to_make_a_new_one(packed_file, tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(packed_file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(EdgewamError, match="Pack it again"):
        read_packed(path)


def test_no_tensor_of_a_training_step_stays_on_the_processor(packed_file):
    # the meta device refuses to mix with the processor, as a GPU would, and needs neither memory nor time
    packed = read_packed(packed_file)
    loop = LoopConfig(steps=1, device="meta", tensorboard=False)
    config = PolicyTraining(dataset=Path("x"), vae=Path("x"), loop=loop, batch_size=2)
    source = WindowSource(packed.dataset, packed.cache, packed.stats, SmallTextEncoder(128, 16), config.layout, range(3))
    task = PolicyTask(config, source, {})
    lengths = set()
    for index in range(6):
        batch = task.batch(index, np.random.default_rng(index))
        lengths.add(int(source.batch(batch).history_valid_len[0]))
        loss = task.loss(batch, torch.Generator()).value
        loss.backward()
    assert loss.device.type == "meta" and len(lengths) > 1
    for optimizer in build_optimizers(task.parameter_groups()).values():
        optimizer.step()


def test_the_job_trains_on_a_packed_file(packed_file, tmp_path, capsys):
    (job,) = find_jobs(["train_small"])
    assert job.data == "latents"
    job = job.with_data(packed_file)
    params = {**job.params, "runs": [[2, 4]], "warmup": 1, "model": {"num_layers": 1}}
    sections = work(type(job)(**{**vars(job), "params": params}), "cpu", tmp_path / "sections.json")
    figures = sections["batch_2"].figures
    assert figures["steps_per_s"] > 0 and figures["synthetic_data"] and sections["batch_2"].timings["step"].n == 2
    assert figures["contexts_per_s"] == pytest.approx(2 * figures["steps_per_s"])


def test_packing_a_dataset_takes_as_many_episodes_as_fit(tmp_path):
    pytest.importorskip("av")
    dataset = dataset_of(tmp_path / "data", [episode(length=40, seed=seed) for seed in range(3)])
    with write_artifact(tmp_path / "vae", "vae", config={}) as directory:
        save_vae(WanVae(WanVaeConfig(dim=4, dec_dim=4)), directory, "float32")
    latents, out = tmp_path / "latents", tmp_path / "packed" / "small.npz"
    episodes, size = pack(tmp_path / "data", tmp_path / "vae", latents, out, 20.0)
    packed = read_packed(out)
    assert episodes == 3 == packed.dataset.num_episodes and size == out.stat().st_size
    assert packed.origin["dataset"] == dataset.digest
    episodes, smaller = pack(tmp_path / "data", tmp_path / "vae", latents, out, 0.8 * size / 1e6)
    assert 1 <= episodes < 3 and smaller <= 0.8 * size
    with pytest.raises(EdgewamError, match="One episode takes"):
        pack(tmp_path / "data", tmp_path / "vae", latents, out, 1e-3)
    assert not out.exists()

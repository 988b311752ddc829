"""Released checkpoints of both families, at golden size, walk the whole road unchanged: convert, shrink, act as the sampler does.

Weights are random, so gates that compare spreads pass anything: what is judged here is what the road made, and that the bundle
computes the actions of the plain sampler.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs edgewam[train]")

from edgewam.core.artifacts import read_manifest  # noqa: E402
from edgewam.core.observation import compose_images  # noqa: E402
from edgewam.core.records import Observation  # noqa: E402
from edgewam.data.dataset import Dataset  # noqa: E402
from edgewam.flow.solver import euler_table  # noqa: E402
from edgewam.models.family import trainable  # noqa: E402
from edgewam.models.flow_loss import LossBatch  # noqa: E402
from edgewam.models.text_store import PROMPTS, write_prompts  # noqa: E402
from edgewam.runtime.bundle import Bundle  # noqa: E402
from edgewam.training.log import read_log  # noqa: E402
from edgewam.training.policy_artifact import LoadedPolicy, load_policy  # noqa: E402
from tests.cli.command import here  # noqa: E402
from tests.data.robotwin import small_episode, write_v21  # noqa: E402
from tests.models import aha_wam_golden as golden  # noqa: E402

TASK, STATE, ACTIONS = "lift the lid", 6, 5
SIZES = ("--config", golden.FOLDER / "config_ahawam.json")
FAST_SIZES = ("--config", golden.FOLDER / "config_fastwam.json", "--text-len", golden.config().text_len)
ENDS = {"mean": (-0.2, 0.3), "std": (0.4, 0.9)}  # of the statistics, over the dimensions
# of actions in units of their std: samplers of two steps on values of order ten, through exact rewrites and another engine
ACTIONS_ATOL = 2e-4
STEPS = 8  # of ten: random weights are not to be sampled in two, and the gate against the teacher says so
FEW = ("--minutes", 0.02, "--batches", 1, "--frames", 1, "-n", 3, "--threads", 1)


@dataclass(frozen=True)
class Place:
    """A small dataset, and the artifacts that convert made."""

    root: Path
    dataset: Dataset
    vae: Path
    stats: Path
    words: Path

    def policy(self, name: str, *sizes: object, trained_in: str = "float32") -> Path:
        """Convert a golden checkpoint, once, as if it had been trained in that type."""
        out, file = self.root / f"{name}_{trained_in}", self.root / f"{name}_{trained_in}.pt"
        if not out.exists():
            content = torch.load(golden.FOLDER / f"{name}.pt", weights_only=True)
            torch.save({**content, "torch_dtype": f"torch.{trained_in}"}, file)
            here(
                "convert", file, out, "--vae", self.vae, "--stats", self.stats, "--text", self.words,
                "--prompt", TASK, "--composition", "single", *sizes,
            ).ok()  # fmt: skip
        return out

    def shrunk(self, policy: Path, target: str, *further: object) -> tuple[Path, dict[str, Any]]:
        out = self.root / f"{policy.name}.{target}.bundle"
        given = ("--target", target, "--out", out, "--dataset", self.dataset.path, *FEW, *further)
        done = here("shrink", policy, *given, "--json").ok()
        return out, done.json


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("imported")
    episodes = [small_episode(length, seed, (64, 96), ("front",), STATE, ACTIONS, TASK) for seed, length in enumerate((20, 26))]
    here("convert", golden.FOLDER / "vae_raw.pt", root / "vae").ok()
    form = {
        name: {"default": {f"global_{what}": np.linspace(*ends, size).tolist() for what, ends in ENDS.items()}}
        for name, size in (("state", STATE), ("action", ACTIONS))
    }
    (root / "dataset_stats.json").write_text(json.dumps(form))
    words = root / "words"
    words.mkdir()
    write_prompts(words / PROMPTS, {TASK: golden.arrays("sampler_streaming")["text.context"][0].numpy()})
    dataset = Dataset.open(write_v21(root / "dataset", episodes))
    return Place(root, dataset, root / "vae", root / "dataset_stats.json", words)


def one_frame(policy: LoadedPolicy, canvas: Any, state: Any) -> LossBatch:
    """What a policy sees at the start of an episode, as the plain sampler takes it; every chunk begins there."""
    sizes, chunks = policy.sizes, policy.sizes.num_chunks
    pixels = torch.from_numpy(canvas.copy()).permute(2, 0, 1)[None].float() * (2.0 / 255.0) - 1.0
    latent = policy.vae.encode_image(pixels)
    proprio = torch.from_numpy(policy.stats.state.forward(state))
    none = torch.zeros(1, 0)
    return LossBatch(
        actions=torch.zeros(1, sizes.horizon, sizes.action_dim), action_is_pad=torch.zeros(1, sizes.horizon, dtype=torch.bool),
        proprio=proprio.expand(1, chunks, -1), context=torch.from_numpy(policy.text().encode(TASK))[None],
        video_latents=latent[:, :, None], image_is_pad=torch.zeros(1, 1, dtype=torch.bool),
        video_frame_ids=torch.zeros(1, 1, dtype=torch.int64), history_latents=torch.zeros(1, 0, *latent.shape[1:]),
        history_frame_ids=none.long(), history_valid_len=torch.zeros(1, dtype=torch.int64),
        chunk_latents=latent[:, None].expand(-1, chunks, -1, -1, -1),
    )  # fmt: skip


@torch.inference_mode()
def plain_actions(policy: LoadedPolicy, batch: LossBatch, noise: Any, steps: int, tables: str) -> Any:
    """Normalised actions [horizon, A] of the plain sampler."""
    family = trainable(policy.family)
    table = euler_table(steps, policy.sizes.shift, tables)  # type: ignore[arg-type]
    return family.sample_horizon(policy.model, family.condition(policy.model, batch), noise, table)[-1][0]


def assert_acts_as_the_sampler(bundle: Path, policy: LoadedPolicy, dataset: Dataset, steps: int) -> None:
    """The first chunk of the bundle, from a recorded frame and given noise, is that of the policy's own sampler."""
    acting = Bundle.open(bundle, threads=1).open_policy()
    frame, state = dataset.frames(0, "front", [7])[0], dataset.states(0)[7]
    noise = torch.randn(acting.noise_shape, generator=torch.Generator().manual_seed(5))
    acting.reset(TASK, 0)
    found = acting.sample(Observation({"front": frame}, state, 7), noise.numpy())
    canvas = compose_images({"front": frame}, policy.sizes.image_height, policy.sizes.image_width, "single")
    normalised = plain_actions(policy, one_frame(policy, canvas, state), noise[None], steps, policy.facts.sampler_tables)
    stats = policy.stats.action
    np.testing.assert_allclose(found, (stats.backward(normalised.numpy()) / stats.std)[: len(found)], rtol=0, atol=ACTIONS_ATOL)


def test_an_imported_policy_reproduces_the_golden_actions(place: Place) -> None:
    """Images, state and text through the artifact's own VAE and stored rows, with the tables that its file asks for."""
    student = load_policy(place.policy("checkpoint_ahawam_student_ode", *SIZES))
    data = golden.arrays("student_sampler_streaming")
    for chunk in range(student.sizes.num_chunks):
        batch = one_frame(student, data["image_u8"][0].permute(1, 2, 0).numpy(), np.zeros(STATE, np.float32))
        images = student.vae.encode_image(data["chunk_obs_images_u8"].float() * (2.0 / 255.0) - 1.0)
        object.__setattr__(batch, "proprio", data["chunk_proprio"][None])
        object.__setattr__(batch, "chunk_latents", images[None])
        found = plain_actions(student, batch, data["start_noise_full_horizon"], 2, student.facts.sampler_tables)
        size = student.sizes.chunk_size
        expected = data[f"steps2.chunk{chunk}.actions_normalized"]
        torch.testing.assert_close(found[chunk * size :][:size], expected, atol=golden.SAMPLER_ATOL, rtol=0)
    fast, data = load_policy(place.policy("checkpoint_fastwam", *FAST_SIZES)), golden.arrays("fastwam_inference")
    batch = one_frame(fast, data["image_u8"][0].permute(1, 2, 0).numpy(), np.zeros(STATE, np.float32))
    object.__setattr__(batch, "proprio", data["proprio"][None])
    object.__setattr__(batch, "context", data["text.context"])
    for steps in (2, 10):
        found = plain_actions(fast, batch, data["start_noise"], steps, fast.facts.sampler_tables)
        torch.testing.assert_close(found, data[f"steps{steps}.actions_normalized"], atol=golden.SAMPLER_ATOL, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("checkpoint_ahawam", SIZES), ("checkpoint_fastwam", FAST_SIZES)])
def test_an_imported_teacher_is_distilled_to_a_bundle_that_acts_as_its_student(place: Place, name: str, sizes: Any) -> None:
    checkpoint = place.policy(name, *sizes, trained_in="bfloat16")  # as released
    out, result = place.shrunk(checkpoint, "torch", "--steps", STEPS)
    work = Path(f"{out}.shrink")
    assert result["ran"] == ["distill", "compile", "validate", "profile"] and list(result["skipped"]) == ["quantize"]
    teacher, student = load_policy(checkpoint), load_policy(work / "student")
    made, bundle = student.manifest, read_manifest(out, kind="bundle")
    assert made.kind == "student" and made.parents["teacher"] == teacher.manifest.digest
    assert made.config["lr"] == 2e-5 and made.config["anchor_draws"] > 0, "the released way, not that of the small policy"
    assert bundle.parents["student"] == made.digest and bundle.config["num_action_steps"] == STEPS
    assert bundle.config["tables"] == "bf16" and bundle.config["host"]["composition"] == "single"
    assert student.family == teacher.family == bundle.config["family"]
    assert list(student.prompts) == [TASK] and student.facts.text_encoder == "umt5"
    assert made.measured["steps"] > 0 and len(read_log(work / "student")) > 0
    header = json.loads((work / "student.training" / "trajectories" / "header.json").read_text())
    assert header["tables"] == "bf16", "the student learns at the timesteps that it acts at"
    family, before = trainable(teacher.family), teacher.model.state_dict()
    changed = {key for key, value in student.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith(family.LEARNT_BY_STUDENTS) for key in changed)
    assert_acts_as_the_sampler(out, student, place.dataset, STEPS)


@pytest.mark.slow
def test_an_imported_student_is_not_distilled_again(place: Place) -> None:
    checkpoint = place.policy("checkpoint_ahawam_student_ode", *SIZES)
    out, result = place.shrunk(checkpoint, "torch")
    assert result["ran"] == ["compile", "validate", "profile"]
    assert result["skipped"]["distill"] == "the checkpoint is a student already"
    bundle, student = read_manifest(out, kind="bundle"), load_policy(checkpoint)
    assert bundle.parents["student"] == student.manifest.digest and bundle.config["num_action_steps"] == 2
    assert student.facts.ode_metadata is not None and bundle.config["backend"] == "eager"
    assert_acts_as_the_sampler(out, student, place.dataset, 2)


def test_what_cannot_be_shrunk_is_refused_with_what_to_do(place: Place, tmp_path: Path) -> None:
    def refused(checkpoint: Path, dataset: Path) -> str:
        done = here("shrink", checkpoint, "--target", "torch", "--out", tmp_path / "bundle", "--dataset", dataset, *FEW)
        assert done.code == 1 and "Traceback" not in done.err and not (tmp_path / "bundle").exists()
        return " ".join(done.err.split())

    file, checkpoint = golden.FOLDER / "checkpoint_ahawam.pt", place.policy("checkpoint_ahawam", *SIZES)
    assert f"edgewam convert {file} POLICY --vae VAE --stats" in refused(file, place.dataset.path)
    here("convert", file, tmp_path / "bare", *SIZES).ok()
    assert "Convert the released file again with: edgewam convert" in refused(tmp_path / "bare", place.dataset.path)
    other = [small_episode(20, 0, (64, 96), ("front",), STATE, ACTIONS, "close the lid")]
    message = refused(checkpoint, write_v21(tmp_path / "other", other))
    assert "no embedding of 1 of the 1 instructions" in message and f"edgewam prompt add {checkpoint} 'close the lid'" in message
    wide = [small_episode(20, 0, (64, 96), ("front",), 7, ACTIONS, TASK)]
    assert "7 numbers in a state" in refused(checkpoint, write_v21(tmp_path / "wide", wide))

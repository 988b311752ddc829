"""Initial weights from a video DiT: the interpolation against NumPy's, and files of every form that weights come in."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.models.aha_wam_config import AhaWamConfig
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.warm_start import (
    EXECUTOR,
    NOT_FROM_VIDEO,
    PLANNER,
    backbone_sizes,
    executor_backbone,
    read_backbone,
    resize,
    warm_start,
    write_backbone,
)

# places between entries are computed in float32, as upstream does: an error of 144 entries * 2^-24, times steps of about 1
FLOAT32 = 1e-5
SIZES = AhaWamConfig(
    num_layers=2, num_heads=2, head_dim=12, video_dim=24, video_ffn_dim=40, action_hidden_dim=10, action_ffn_dim=14, text_dim=20,
    text_len=4, freq_dim=8, latent_dim=4, image_height=64, image_width=32, action_dim=3, proprio_dim=3, chunk_size=4, horizon=8,
    num_queries=3, memory_slots=2,
)  # fmt: skip


def by_numpy(values, shape):
    """The rule of facts/aha_wam.md 2, with np.interp along every dimension, in float64."""
    found = values.astype(np.float64)
    for dim, size in enumerate(shape):
        places = np.linspace(0, found.shape[dim] - 1, size)
        found = np.apply_along_axis(lambda line, places=places: np.interp(places, np.arange(len(line)), line), dim, found)
    if len(shape) >= 2 and values.shape[-1] != shape[-1]:
        found = found * np.sqrt(values.shape[-1] / shape[-1])
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((7,), (3,)),
        ((3,), (7,)),
        ((9, 6), (4, 6)),
        ((9, 6), (9, 2)),
        ((30, 24), (11, 8)),
        ((1, 6, 24), (1, 6, 8)),
        ((5, 1), (3, 4)),
    ],
)
def test_resizing_is_numpys_interpolation(old, new):
    source = torch.randn(old, generator=torch.Generator().manual_seed(sum(old)))
    found = resize(source, new)
    assert found.dtype == torch.float32 and tuple(found.shape) == new
    np.testing.assert_allclose(found.numpy(), by_numpy(source.numpy(), new), atol=FLOAT32, rtol=FLOAT32)


def test_a_ramp_stays_a_ramp_and_a_constant_matrix_grows_by_the_root():
    torch.testing.assert_close(resize(torch.linspace(0, 1, 10), (4,)), torch.linspace(0, 1, 4))
    torch.testing.assert_close(resize(torch.ones(6, 12), (2, 3)), torch.full((2, 3), 2.0))
    # only the last dimension changes the scale, and vectors never
    torch.testing.assert_close(resize(torch.ones(12, 3), (3, 3)), torch.ones(3, 3))
    torch.testing.assert_close(resize(torch.ones(12), (3,)), torch.ones(3))


def test_equal_shapes_are_not_touched_and_other_ranks_are_refused():
    same = torch.randn(3, 4, dtype=torch.float64)
    assert resize(same, (3, 4)) is same
    with pytest.raises(ContractError, match="dimensions differ"):
        resize(same, (12,))


@pytest.fixture
def source():
    torch.manual_seed(1)
    return AhaWam(SIZES)


@pytest.fixture
def target():
    torch.manual_seed(2)
    return AhaWam(SIZES)


def video_tensors(model):
    return {name.removeprefix(PLANNER): t for name, t in model.state_dict().items() if name.startswith(PLANNER)}


def executor_shapes(model):
    return {name.removeprefix(EXECUTOR): t.shape for name, t in model.state_dict().items() if name.startswith(EXECUTOR)}


def written(form, video, folder):
    """A file or folder of one of the forms in which video DiTs come."""
    path = folder / "dit.pt"
    if form == "wan shards":
        names = sorted(video)
        save_file({name: video[name] for name in names[::2]}, folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
        save_file({name: video[name] for name in names[1::2]}, folder / "diffusion_pytorch_model-00002-of-00002.safetensors")
        return folder
    if form == "released":
        torch.save({"mot": {f"mixtures.video.{k}": v for k, v in video.items()} | {"chunk": torch.ones(1)}, "step": 3}, path)
    elif form == "legacy dit":
        torch.save({"dit": dict(video), "step": 3}, path)
    elif form == "module prefix":
        torch.save({f"module.{k}": v for k, v in video.items()}, path)
    else:
        save_file({k: v.bfloat16() for k, v in video.items()}, path := folder / "dit.safetensors")
    return path


@pytest.mark.parametrize("form", ["wan shards", "released", "legacy dit", "module prefix", "bfloat16"])
def test_the_planner_is_copied_and_the_executor_interpolated(form, source, target, tmp_path):
    video, untouched = video_tensors(source), {name: t.clone() for name, t in target.state_dict().items()}
    if form == "bfloat16":
        video = {name: t.bfloat16().float() for name, t in video.items()}
    report = warm_start(target, [written(form, video, tmp_path)])
    for name, tensor in target.state_dict().items():
        if name.startswith(PLANNER):
            torch.testing.assert_close(tensor, video[name.removeprefix(PLANNER)], rtol=0, atol=0)
        elif name.startswith(EXECUTOR) and not name.removeprefix(EXECUTOR).startswith(NOT_FROM_VIDEO):
            wanted = by_numpy(video[name.removeprefix(EXECUTOR)].numpy(), tensor.shape)
            np.testing.assert_allclose(tensor.numpy(), wanted, atol=FLOAT32, rtol=FLOAT32)
        else:
            torch.testing.assert_close(tensor, untouched[name], rtol=0, atol=0)
            assert name in report.kept
    assert report.copied + report.resized + len(report.kept) == len(untouched)
    # per executor: 2 biases or more of equal width are copied, all that has the hidden width is resized
    assert report.resized == sum(
        tuple(video[n].shape) != tuple(s) for n, s in executor_shapes(target).items() if not n.startswith(NOT_FROM_VIDEO)
    )


def test_an_action_dit_file_comes_back_and_wins_over_the_interpolation(source, target, tmp_path):
    video = video_tensors(source)
    tensors = dict(executor_backbone(video, executor_shapes(source)))
    assert not [name for name in tensors if name.startswith(NOT_FROM_VIDEO)]
    marked = {name: t + 1 for name, t in tensors.items()}
    write_backbone(tmp_path / "action.pt", marked, backbone_sizes(SIZES))
    raw = torch.load(tmp_path / "action.pt", weights_only=True)
    assert set(raw) == {"policy", "backbone_state_dict", "meta"}
    assert raw["policy"]["skip_prefixes"] == ["action_encoder.", "head."] and raw["policy"]["alpha_scaling"] is True
    assert set(raw["meta"]) == {
        "hidden_dim", "ffn_dim", "num_layers", "num_heads", "attn_head_dim", "text_dim", "freq_dim", "eps",
    }  # fmt: skip
    back = read_backbone(tmp_path / "action.pt")
    assert back.meta["hidden_dim"] == 10 and back.meta["attn_head_dim"] == 12 and set(back.tensors) == set(marked)
    save_file(video, tmp_path / "video.safetensors")
    report = warm_start(target, [tmp_path / "action.pt", tmp_path / "video.safetensors"])
    assert report.resized == 0
    for name, tensor in marked.items():
        torch.testing.assert_close(target.state_dict()[EXECUTOR + name], tensor, rtol=0, atol=0)
    torch.testing.assert_close(
        target.state_dict()[PLANNER + "head.head.weight"], source.state_dict()[PLANNER + "head.head.weight"], rtol=0, atol=0
    )


def test_an_action_dit_file_alone_leaves_the_planner(source, target, tmp_path):
    write_backbone(
        tmp_path / "a.pt", dict(executor_backbone(video_tensors(source), executor_shapes(source))), backbone_sizes(SIZES)
    )
    report = warm_start(target, [tmp_path / "a.pt"])
    assert any(name.startswith(PLANNER) for name in report.kept) and report.copied > 0


def test_bad_files_are_named_with_what_to_do(source, target, tmp_path):
    video = video_tensors(source)
    good = tmp_path / "good.safetensors"
    save_file(video, good)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    empty = tmp_path / "empty"
    empty.mkdir()
    vae = tmp_path / "vae.pt"
    torch.save({"encoder.conv1.weight": torch.ones(2)}, vae)
    shallow = tmp_path / "shallow.safetensors"
    save_file({name: t for name, t in video.items() if not name.startswith("blocks.1.")}, shallow)
    deep = tmp_path / "deep.safetensors"
    save_file(
        video | {name.replace("blocks.1.", "blocks.2."): t.clone() for name, t in video.items() if "blocks.1." in name}, deep
    )
    wide = tmp_path / "wide.safetensors"
    save_file({name: torch.cat([t, t]) if name == "patch_embedding.bias" else t for name, t in video.items()}, wide)
    for files, words in (
        ([tmp_path / "nothing.pt"], "is not there"),
        ([empty], "holds no .safetensors"),
        ([cut], "truncated"),
        ([vae], "should hold one video DiT.*encoder.conv1.weight"),
        ([good, good], "second file of the same kind"),
        ([shallow], "blocks.1.*is missing"),
        ([deep], "tensors that the planner does not: blocks.2"),
        ([wide], r"patch_embedding.bias' is \[48\] there and \[24\]"),
    ):
        with pytest.raises(ArtifactError, match=words):
            warm_start(target, files)
    with pytest.raises(ArtifactError, match="no ActionDiT file"):
        read_backbone(good)

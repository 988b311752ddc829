"""Fast-WAM is the released one: prefill, velocity, samplers, joint loss and gradients; trajectories teach the executor only."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewam.core.errors import ArtifactError, ContractError
from edgewam.flow.solver import euler_table
from edgewam.models import checkpoints, fast_wam
from edgewam.models.dit_block import attend
from edgewam.models.family import trainable
from edgewam.models.flow_loss import draw_noise
from edgewam.models.flow_ode import Prefix, student_prediction
from edgewam.models.masks import bias_of, first_frame_causal, joint_first_frame
from tests.models import aha_wam_golden as golden
from tests.models import fast_wam_golden as fast

CLOSE = {"atol": golden.STAGE_ATOL, "rtol": 0}
SAMPLED = {"atol": golden.SAMPLER_ATOL, "rtol": 0}
LOSS_RTOL = 1e-6  # scalars of order ten, float32


@pytest.fixture(scope="module")
def net():
    torch.set_num_threads(1)
    return fast.model().requires_grad_(False)


@pytest.fixture(scope="module")
def conditioning(net):
    data = golden.arrays(fast.INFERENCE)
    return fast_wam.prefill(net, golden.encode_images(data["image_u8"]), data["text.context"], data["proprio"])


def test_the_prefill_and_its_text_with_the_state_token_equal_the_golden_ones(conditioning):
    data = golden.arrays(fast.INFERENCE)
    together = torch.cat([conditioning.context, conditioning.proprio_tokens], 1)
    torch.testing.assert_close(together, data["context_with_proprio_token"], **CLOSE)
    for mine, theirs in zip(conditioning.routed, fast.layers("prefill"), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("steps", golden.indices(fast.INFERENCE, r"steps(\d+)\."))
def test_every_step_of_a_sampler_equals_the_golden_one(net, conditioning, steps):
    data = golden.arrays(fast.INFERENCE)
    states = fast_wam.sample_horizon(net, conditioning, data["start_noise"], euler_table(steps, net.config.shift))
    torch.testing.assert_close(torch.stack(states[1:]), data[f"steps{steps}.latents_after_step"], **SAMPLED)
    torch.testing.assert_close(states[-1][0], data[f"steps{steps}.actions_normalized"], **SAMPLED)


def test_the_first_velocity_equals_the_golden_one(net, conditioning):
    data, velocities = golden.arrays(fast.INFERENCE), []
    table = euler_table(golden.indices(fast.INFERENCE, r"steps(\d+)\.")[0], net.config.shift)
    assert torch.equal(table.timesteps[:1], data["step0.timestep"])
    hook = net.executor.head.register_forward_hook(lambda _m, _i, output: velocities.append(output))
    fast_wam.sample_horizon(net, conditioning, data["start_noise"], table)
    hook.remove()
    torch.testing.assert_close(velocities[0], data["step0.velocity"], **CLOSE)


def test_the_joint_mask_is_the_golden_one_and_what_both_experts_see():
    config, stored = fast.config(), golden.arrays(fast.INFERENCE)["attention_mask_video_plus_action"]
    frames = (len(stored) - config.horizon) // config.frame_tokens
    assert torch.equal(joint_first_frame(frames, config.frame_tokens, config.horizon), stored.bool())
    # one joint attention under the mask is the planner's own and the executor's over frame 0 and itself
    tokens, video, generator = 3, 9, torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, video + 4, 8, generator=generator)
    joint = attend(q, k, v, 2, bias_of(joint_first_frame(3, tokens, 4)))
    seen = [torch.cat([x[:, :tokens], x[:, video:]], 1) for x in (k, v)]
    torch.testing.assert_close(joint[:, video:], attend(q[:, video:], *seen, 2))
    own = attend(q[:, :video], k[:, :video], v[:, :video], 2, bias_of(first_frame_causal(3, tokens)))
    torch.testing.assert_close(joint[:, :video], own)


def test_loss_velocities_and_gradients_equal_the_golden_ones():
    data, net, batch, noise = golden.arrays(fast.LOSS), fast.model(), fast.loss_batch(), fast.stored_noise()
    prediction = fast_wam.predict(net, batch, noise)
    torch.testing.assert_close(prediction.video, data["intermediate.pred_video_velocity"], **CLOSE)
    torch.testing.assert_close(prediction.action[:, 0], data["intermediate.pred_action_velocity"], **CLOSE)
    losses = fast_wam.training_loss(net, batch, noise)
    for part in ("total", "video", "action"):
        torch.testing.assert_close(getattr(losses, part), data[f"loss.{part}"][0], atol=0, rtol=LOSS_RTOL)
    losses.total.backward()
    parameters = dict(net.named_parameters())
    names = [key.removeprefix("grad.") for key in data if key.startswith("grad.")]
    assert names, "no gradient is stored"
    for name in names:
        gradient = data[f"grad.{name}"]
        atol = golden.GRADIENT_RTOL * float(gradient.abs().max())
        torch.testing.assert_close(parameters[name].grad, gradient, atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert all(parameter.grad is not None for parameter in parameters.values()), "both losses together train every weight"


def test_noise_has_one_action_time_per_sample_and_draws_of_it_are_averaged():
    net, batch = fast.model().requires_grad_(False), fast.loss_batch()
    noise = draw_noise(batch, torch.Generator().manual_seed(0), num_action_draws=2)
    assert noise.action_timestep.shape == (len(batch.actions), 2, 1)
    together = fast_wam.training_loss(net, batch, noise)
    alone = [
        fast_wam.training_loss(
            net, batch, replace(noise, action=noise.action[:, [k]], action_timestep=noise.action_timestep[:, [k]])
        )
        for k in range(2)
    ]
    torch.testing.assert_close(together.action_per_sample, torch.stack([x.action_per_sample for x in alone]).mean(0))
    torch.testing.assert_close(together.video_per_sample, alone[0].video_per_sample)


def test_trajectories_teach_the_executor_only_and_the_teacher_is_its_own_perfect_student():
    teacher, student, batch = fast.model().requires_grad_(False), fast.model(), fast.loss_batch()
    data, steps = golden.arrays(fast.LOSS), 4
    noise = data["intermediate.noise_action"]
    trajectory = fast_wam.teacher_trajectory(teacher, fast_wam.condition(teacher, batch), noise, steps, (0, 1, steps))
    anchors = fast_wam.draw_anchors(batch, len(trajectory.timesteps), torch.Generator().manual_seed(1))
    assert anchors.shape == (len(batch.actions), 1), "one anchor per sample"
    own = fast_wam.condition(student, batch)  # a student is conditioned by its own prefill
    guess = student_prediction(student, own, trajectory, anchors)
    by_hand = [
        ((g - end)[~pad] ** 2).mean(-1).mean()
        for g, end, pad in zip(guess, trajectory.states[-1], batch.action_is_pad, strict=True)
    ]
    loss = fast_wam.ode_loss(student, own, trajectory, anchors, batch.action_is_pad)
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    loss.backward()
    reached = {name for name, p in student.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in student.named_parameters() if name.startswith(fast_wam.LEARNT_BY_STUDENTS)}
    with torch.no_grad():
        table = euler_table(steps, teacher.config.shift)
        assert float(fast_wam.rollout_loss(student, own, trajectory, table, batch.action_is_pad)) < golden.SAMPLER_ATOL**2


def test_given_rows_stay_and_are_not_judged():
    net, batch = fast.model().requires_grad_(False), fast.loss_batch()
    data, table = golden.arrays(fast.LOSS), euler_table(2, net.config.shift)
    prefix = Prefix(batch.actions, torch.full((len(batch.actions), 1), 3))
    states = fast_wam.sample_horizon(net, fast_wam.condition(net, batch), data["intermediate.noise_action"], table, prefix)
    assert torch.equal(states[-1][:, :3], batch.actions[:, :3]) and not torch.equal(states[-1][:, 3:], batch.actions[:, 3:])
    noise = replace(fast.stored_noise(), prefix_rows=torch.full((len(batch.actions), 1, 1), net.config.horizon))
    assert float(fast_wam.training_loss(net, batch, noise).action) == 0


def test_a_released_file_round_trips_and_a_stored_branch_embedding_changes_nothing(tmp_path):
    release = checkpoints.read_release(fast.CHECKPOINT)
    model = fast.model()
    checkpoints.write_release(model, tmp_path / "again.pt", release.extra)
    again = checkpoints.read_release(tmp_path / "again.pt")
    assert again.extra == release.extra and set(again.tensors) == set(release.tensors)
    assert all(torch.equal(again.tensors[key], value) for key, value in release.tensors.items())
    stored = torch.load(fast.CHECKPOINT, weights_only=True)
    stored["mot"]["action_branch_embedding"] = torch.ones(2, model.config.action_hidden_dim)
    torch.save(stored, tmp_path / "with_branch.pt")
    loaded = fast_wam.load(tmp_path / "with_branch.pt", fast.config()).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


def test_our_format_round_trips_and_other_families_are_refused(tmp_path):
    model = fast.model()
    fast_wam.save(model, tmp_path)
    again = fast_wam.load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    checkpoints.save(model, tmp_path, family="aha_wam", config=model.config.to_json())
    with pytest.raises(ArtifactError, match="family 'aha_wam'"):
        fast_wam.load(tmp_path)


def test_it_can_be_trained_and_every_layer_is_a_block(net):
    assert trainable("fast_wam") is fast_wam
    in_blocks = {id(p) for block in fast_wam.BLOCKS(net) for p in block.parameters()}
    assert in_blocks == {id(p) for name, p in net.named_parameters() if any(part in name for part in fast_wam.MATRICES)}


def test_names_of_tensors_tell_the_family():
    names = set(fast.model().state_dict())
    assert fast_wam.matches(names) and not fast_wam.matches(golden.model().state_dict())
    assert not fast_wam.matches(name for name in names if not name.startswith("mot.mixtures.action"))


def test_more_executed_steps_than_actions_are_refused():
    assert fast_wam.host_config(fast_wam.full())["execute_steps"] == 24
    assert fast_wam.host_config(fast_wam.libero())["execute_steps"] == 10
    with pytest.raises(ValueError, match="from 1 to the horizon 32"):
        fast_wam.FastWamConfig(execute_steps=33)


def test_sizes_come_from_the_shapes_and_what_they_cannot_tell_is_given(net):
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    config = fast.config()
    given = {name: getattr(config, name) for name in ("head_dim", "text_len", "image_height", "image_width", "horizon")}
    assert fast_wam.sizes_of(shapes, **given) == config
    with pytest.raises(ContractError, match="head_dim"):
        fast_wam.sizes_of(shapes)
    with pytest.raises(ContractError, match="make no Fast-WAM"):
        fast_wam.sizes_of(shapes, **given, execute_steps=99)


def test_full_size_keys_and_shapes_are_those_of_the_released_checkpoint():
    manifest = Path(__file__).parents[1] / "golden" / "manifests" / "manifest_fastwam_full.json"
    with torch.device("meta"):
        model = fast_wam.build(fast_wam.full())
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in json.loads(manifest.read_text()).items()}
    assert fast_wam.sizes_of({name: tuple(shape) for name, shape in ours.items()}) == fast_wam.full(), "nothing has to be told"

"""The joint loss and its gradients are the released ones; padding, draws and history behave as declared."""

from dataclasses import replace

import pytest
import torch

from edgewam.flow.training import loss_weight, velocity_target
from edgewam.models.aha_wam_loss import predict, training_loss
from edgewam.models.flow_loss import LossBatch, Noise, draw_noise, masked_mean, video_loss
from tests.models import aha_wam_golden as golden

LOSSES = ("training_loss", "training_loss_no_history", "training_loss_offset")
LOSS_RTOL = 1e-6  # scalars of order ten, float32
# Softmax ignores what is added to every key alike, so these gradients are zero in exact arithmetic and noise in float32.
ZERO_IN_THEORY = ("chunk_obs_query_encoder.obs_key_proj.0.bias", "chunk_obs_query_encoder.obs_key_proj.1.bias")


def stored_noise(name: str) -> Noise:
    data = golden.arrays(name)
    batch = len(data["intermediate.noise_action"])
    return Noise(
        video=data["intermediate.noise_video"],
        video_timestep=data["intermediate.timestep_video"],
        action=data["intermediate.noise_action"][:, None],
        action_timestep=data["intermediate.timestep_action_raw"].reshape(batch, 1, -1),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_velocities_equal_the_golden_ones(name):
    data, net = golden.arrays(name), golden.model()
    batch, _ = golden.loss_batch(name)
    with torch.no_grad():
        prediction = predict(net, batch, stored_noise(name))
        losses = training_loss(net, batch, stored_noise(name))
    close = {"atol": golden.STAGE_ATOL, "rtol": 0}
    torch.testing.assert_close(prediction.video[:, :, 1:], data["intermediate.pred_video_velocity_without_first_latent"], **close)
    torch.testing.assert_close(prediction.action[:, 0], data["intermediate.pred_action_velocity"], **close)
    unweighted = video_loss(prediction.video, batch, stored_noise(name))
    torch.testing.assert_close(unweighted, data["intermediate.loss_video_per_sample_unweighted"], atol=0, rtol=LOSS_RTOL)
    for part in ("total", "video", "action"):
        torch.testing.assert_close(getattr(losses, part), data[f"loss.{part}"][0], atol=0, rtol=LOSS_RTOL)


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_loss_is_made_of_equals_the_golden_pieces(name):
    data, net, (batch, _), noise = golden.arrays(name), golden.model(), golden.loss_batch(name), stored_noise(name)
    close = {"atol": golden.STAGE_ATOL, "rtol": 0}
    torch.testing.assert_close(batch.video_latents, data["batch.vae_latents_of_video"], **close)
    with torch.no_grad():
        visual = net.visual_tokens(batch.chunk_latents.flatten(0, 1))
        queries = net.chunk_obs_query_encoder(visual)
    chunks = batch.chunk_latents.shape[:2]
    torch.testing.assert_close(visual.unflatten(0, chunks), data["intermediate.visual_obs_tokens"], **close)
    torch.testing.assert_close(queries.unflatten(0, chunks), data["intermediate.routing_queries"], **close)
    assert torch.equal(batch.actions, data["intermediate.action_target_clean"])
    video_target = velocity_target(batch.video_latents, noise.video)[:, :, 1:]
    torch.testing.assert_close(video_target, data["intermediate.target_video_velocity_without_first_latent"], **close)
    action_target = velocity_target(batch.actions, noise.action[:, 0])
    torch.testing.assert_close(action_target, data["intermediate.target_action_velocity"], **close)
    per_token = noise.action_timestep[:, 0].repeat_interleave(golden.config().chunk_size, 1)
    assert torch.equal(per_token, data["intermediate.timestep_action_per_token"])


def test_every_gradient_equals_the_golden_one():
    net = golden.model()
    batch, _ = golden.loss_batch("training_loss")
    training_loss(net, batch, stored_noise("training_loss")).total.backward()
    expected = golden.arrays("training_loss_grads")
    parameters = dict(net.named_parameters())
    assert set(parameters) == set(expected)
    for key, gradient in expected.items():
        scale = expected[key.replace("bias", "weight")] if key in ZERO_IN_THEORY else gradient
        atol = golden.GRADIENT_RTOL * float(scale.abs().max())
        torch.testing.assert_close(parameters[key].grad, gradient, atol=atol, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


def test_several_action_draws_average_single_draws_over_one_video_pass():
    net, (batch, _) = golden.model(), golden.loss_batch("training_loss")
    noise = draw_noise(batch, torch.Generator().manual_seed(0), num_action_draws=3)
    with torch.no_grad():
        together = training_loss(net, batch, noise)
        alone = [
            training_loss(net, batch, replace(noise, action=noise.action[:, [k]], action_timestep=noise.action_timestep[:, [k]]))
            for k in range(3)
        ]
    torch.testing.assert_close(together.action, torch.stack([x.action for x in alone]).mean())
    torch.testing.assert_close(together.video, alone[0].video)


def test_padded_actions_and_padding_history_do_not_change_the_loss():
    net, (batch, _) = golden.model(), golden.loss_batch("training_loss")
    noise = stored_noise("training_loss")
    num_frames = batch.history_latents.shape[1]
    short = replace(batch, history_valid_len=torch.full_like(batch.history_valid_len, num_frames - 1))
    garbage = short.history_latents.clone()
    garbage[:, 0] = 1e3
    is_pad = batch.action_is_pad.clone()
    is_pad[:, -1] = True  # some padding whatever the stored batch has
    actions = torch.where(is_pad[..., None], 7.0 * batch.actions + 1, batch.actions)
    with torch.no_grad():
        reference = training_loss(net, short, noise)
        history = training_loss(net, replace(short, history_latents=garbage), noise)
        clean = predict(net, batch, noise).action
        moved = predict(net, replace(batch, actions=actions), noise).action
    torch.testing.assert_close(history.total, reference.total, atol=0, rtol=LOSS_RTOL)
    # other chunks cannot see the padded rows of theirs
    chunk_size = golden.config().chunk_size
    whole = ~is_pad.unflatten(1, (-1, chunk_size)).any(-1).repeat_interleave(chunk_size, 1)
    torch.testing.assert_close(moved[:, 0][whole], clean[:, 0][whole])
    assert not torch.allclose(moved[:, 0][~whole], clean[:, 0][~whole])


def test_no_history_frames_equal_history_of_length_zero_and_gradients_are_finite():
    net, (batch, _) = golden.model(), golden.loss_batch("training_loss_no_history")
    noise = stored_noise("training_loss_no_history")
    empty = replace(batch, history_latents=batch.history_latents[:, :0], history_frame_ids=batch.history_frame_ids[:, :0])
    loss = training_loss(net, batch, noise).total
    torch.testing.assert_close(training_loss(net, empty, noise).total, loss, atol=0, rtol=LOSS_RTOL)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_noise_is_decided_by_the_generator():
    batch: LossBatch = golden.loss_batch("training_loss_no_history")[0]
    first, second = (draw_noise(batch, torch.Generator().manual_seed(3), num_action_draws=2) for _ in range(2))
    assert torch.equal(first.action, second.action) and torch.equal(first.action_timestep, second.action_timestep)
    assert first.action_timestep.shape == (*first.action.shape[:2], batch.proprio.shape[1])


def test_a_mean_over_nothing_is_zero():
    assert masked_mean(torch.ones(2, 3), torch.tensor([[True, False, True], [False] * 3])).tolist() == [1.0, 0.0]


def test_the_loss_runs_under_outside_autocast_and_stays_near_float32():
    net, (batch, _) = golden.model(), golden.loss_batch("training_loss")
    noise = stored_noise("training_loss")
    with torch.autocast("cpu", torch.bfloat16):
        loss = training_loss(net, batch, noise).total
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in net.parameters())
    torch.testing.assert_close(
        loss.detach(), golden.arrays("training_loss")["loss.total"][0], atol=0, rtol=0.03
    )  # 8-bit mantissa


def test_given_rows_are_drawn_last_and_from_nothing_to_all_that_is_allowed():
    batch: LossBatch = golden.loss_batch("training_loss")[0]
    plain, given = (draw_noise(batch, torch.Generator().manual_seed(3), 2, max_prefix=n) for n in (0, 2))
    assert plain.prefix_rows is None and given.prefix_rows is not None
    assert torch.equal(plain.action, given.action) and torch.equal(plain.action_timestep, given.action_timestep)
    many = draw_noise(batch, torch.Generator().manual_seed(3), 200, max_prefix=2).prefix_rows
    assert many is not None and set(many.flatten().tolist()) == {0, 1, 2}


def test_no_given_rows_are_the_released_loss():
    net, (batch, _) = golden.model(), golden.loss_batch("training_loss")
    noise = stored_noise("training_loss")
    none = replace(noise, prefix_rows=torch.zeros(noise.action_timestep.shape, dtype=torch.int64))
    with torch.no_grad():
        expected, found = (training_loss(net, batch, each) for each in (noise, none))
    torch.testing.assert_close(found.total, expected.total, atol=0, rtol=LOSS_RTOL)


def test_given_rows_are_clean_seen_by_the_others_and_not_judged():
    net, (batch, _) = golden.model(), golden.loss_batch("training_loss")
    noise = stored_noise("training_loss")
    size, given = golden.config().chunk_size, 2
    noise = replace(noise, prefix_rows=torch.full(noise.action_timestep.shape, given))
    mask = (torch.arange(batch.actions.shape[1]) % size < given)[None, :, None]
    other = replace(noise, action=torch.where(mask, 5 + noise.action, noise.action))
    moved = replace(batch, actions=torch.where(mask, batch.actions + 0.5, batch.actions))
    with torch.no_grad():
        loss, prediction = training_loss(net, batch, noise), predict(net, batch, noise).action
        assert torch.equal(training_loss(net, batch, other).action, loss.action), "their noise plays no part"
        assert not torch.allclose(predict(net, moved, noise).action[:, :, ~mask[0, :, 0]], prediction[:, :, ~mask[0, :, 0]])
    error = (prediction[:, 0] - (noise.action[:, 0] - batch.actions)).pow(2).mean(-1)
    weight = loss_weight(noise.action_timestep[:, 0].repeat_interleave(size, 1), golden.config().train_shift)
    judged = ~batch.action_is_pad & ~mask[..., 0]
    by_hand = torch.stack([(e * w)[j].mean() for e, w, j in zip(error, weight, judged, strict=True)]).mean()
    torch.testing.assert_close(loss.action, by_hand, atol=0, rtol=LOSS_RTOL)

"""What a horizon of AHA-WAM is sampled from, computed once; trajectories and the students' losses are those of all families."""

from __future__ import annotations

import torch

from edgewam.models.aha_wam_loss import history_context, route_chunks
from edgewam.models.aha_wam_model import AhaWam
from edgewam.models.flow_loss import LossBatch
from edgewam.models.flow_ode import (
    CAPTURED_STEPS,
    TEACHER_STEPS,
    Conditioning,
    Prefix,
    Trajectory,
    draw_anchors,
    ode_loss,
    rollout_loss,
    sample_horizon,
    student_prediction,
    teacher_trajectory,
)

__all__ = [
    "CAPTURED_STEPS",
    "TEACHER_STEPS",
    "Conditioning",
    "Prefix",
    "Trajectory",
    "condition",
    "draw_anchors",
    "ode_loss",
    "rollout_loss",
    "sample_horizon",
    "student_prediction",
    "teacher_trajectory",
]


@torch.no_grad()
def condition(model: AhaWam, batch: LossBatch) -> Conditioning:
    """Conditioning from the current image, history and chunk images of a batch; the future frames are not needed."""
    text = model.planner.text_key_values(batch.context)
    history, history_bias = history_context(model, batch, text)
    if history_bias is not None:  # own tokens come after the history and see each other
        own = torch.zeros(*history_bias.shape[:-1], model.config.frame_tokens, device=history_bias.device)
        history_bias = torch.cat([history_bias, own], -1)
    table = model.video_rope(batch.video_frame_ids[:, :1])
    current = model.planner.context(batch.video_latents[:, :, :1], table, text, history, history_bias)
    routed = route_chunks(model, batch.chunk_latents, current)
    return Conditioning(routed, batch.context, model.proprio_encoder(batch.proprio))

"""The released RoboTwin runs as they were run: AHA-WAM, its form with action offsets, Fast-WAM, and their two-step students.

Values are those of the released configurations (facts/aha_wam.md 1, 6, 7, 9), which differ from the paper in places (section 10):

* noise levels: the paper draws them logit-normal; the code uniformly, bent by shift 5, and so do these;
* a bell over the noise level weighs the loss in the code; the paper has none;
* rate: 1e-4 in the paper, 5e-5 in the code of AHA-WAM; 2e-5 of the students agrees;
* anchors of the students: uniform in the code, "more frequently near the noisy end" in the paper;
* the paper freezes the video DiT of a student; in the code, and here, no gradient reaches it;
* offsets and horizon 80 are part of the paper's method, but the released policy was trained without (`robotwin_ahawam`).
"""

from __future__ import annotations

from dataclasses import replace

from edgewam.recipes.full_size import PolicyRecipe, Schedule, StudentRecipe


def robotwin_ahawam() -> PolicyRecipe:
    """The released policy: 65 steps, 4 chunks of 16, six history frames 64 steps apart, no offset."""
    from edgewam.data.windows import released_layout
    from edgewam.models.aha_wam_config import full

    return PolicyRecipe(
        family="aha_wam",
        model=full(),  # both lambdas 1.0, both shifts 5.0
        layout=released_layout(),
        schedule=Schedule(batch_per_rank=6, lr=5e-5),  # facts 6; the paper says 1e-4
    )


def robotwin_ahawam_offset() -> PolicyRecipe:
    """The form for asynchronous execution: 97 steps, 5 chunks, the first action up to 15 steps after the planner's image."""
    from edgewam.data.windows import offset_layout
    from edgewam.models.aha_wam_config import full

    policy = robotwin_ahawam()
    # facts 1 and 4.5: 13 frames, 4 latents; the history is spaced by the clip, 96 steps, and a GPU takes 16 windows (facts 6)
    schedule = replace(policy.schedule, batch_per_rank=16)
    return replace(policy, model=full(horizon=80), layout=offset_layout(), schedule=schedule)


def robotwin_fastwam() -> PolicyRecipe:
    """Fast-WAM: one planner frame, all 32 actions denoised together, no memory."""
    from edgewam.data.windows import fast_wam_layout
    from edgewam.models.fast_wam import full

    return PolicyRecipe(
        family="fast_wam",
        model=full(),
        layout=fast_wam_layout(),  # 33 steps, every fourth a frame, 3 latents
        schedule=Schedule(batch_per_rank=16, lr=1e-4),  # facts 9
    )


def robotwin_ahawam_ode() -> StudentRecipe:
    """AHA-WAM-Flash: two steps instead of ten.  64 windows per rank and optimiser step (facts 7.8)."""
    return _student(robotwin_ahawam())


def robotwin_ahawam_offset_ode() -> StudentRecipe:
    """The same of the policy that was trained with offsets."""
    return _student(robotwin_ahawam_offset())


def robotwin_fastwam_ode() -> StudentRecipe:
    """The same of Fast-WAM; its family draws one anchor per sample and conditions the student by its own planner (facts 7)."""
    return _student(robotwin_fastwam())


def _student(teacher: PolicyRecipe) -> StudentRecipe:
    return StudentRecipe(teacher=teacher, schedule=Schedule(batch_per_rank=16, accumulate=4, lr=2e-5))

"""The film: one episode as the three cameras saw it."""

from __future__ import annotations

from edgewam.profiles.html.values import Values, absent, section

_NUMBERS = (("seed", "plain"), ("seconds", "seconds"), ("pictures", "count"), ("film_bytes", "bytes"))
NAME, TITLE = "film", "What it does"


def render(v: Values) -> str:
    """A moving picture; a reader who asked for less motion gets a still one."""
    part = v["film"]
    if "reason" in part:
        return absent(NAME, TITLE, part)
    size = f'width="{part["width"] * 3}" height="{part["height"] * 3}"'
    verdict = (
        '<span class="pass">strict success</span>' if part["strict_success"] else '<span class="fail">no strict success</span>'
    )
    lead = f"&ldquo;{v.text('film.prompt')}&rdquo;"
    what = "High camera on the left, left wrist camera above right wrist camera on the right"
    numbers = [v.number(f"film.{key}", form) for key, form in _NUMBERS]
    body = (
        '<figure class="film"><picture>'
        f'<source media="(prefers-reduced-motion: reduce)" srcset="{part["still"]}">'
        f'<img src="{part["film"]}" {size} alt="{what}"></picture>'
        f"<figcaption>High camera, left wrist, right wrist, as the policy sees them. Episode of seed {numbers[0]}, "
        f"{numbers[1]} in lockstep: {verdict}. {numbers[2]} pictures, {numbers[3]}.</figcaption></figure>"
    )
    return section(NAME, TITLE, lead, body)

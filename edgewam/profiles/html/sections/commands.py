"""The commands that made every figure of the page, exactly."""

from __future__ import annotations

from edgewam.profiles.html.values import Values, escape, section

NAME, TITLE = "commands", "The exact commands"


def render(v: Values) -> str:
    """One block per figure."""
    blocks = "".join(f"<h3>{escape(row['what'])}</h3><pre>{escape(row['command'])}</pre>" for row in v["commands"])
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in v["notes"])
    return section(NAME, TITLE, "Each figure above again, from a shell with edgewam on its PATH.", blocks + notes)

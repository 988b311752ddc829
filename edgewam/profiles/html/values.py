"""Numbers of the page: each is written from the data it stands in, with its path, so that a reader or a test finds it again.

A form says how a raw value is shown: its unit, its scale and its digits.  The page holds no number that did not come this way.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

# form -> text of a raw value
FORMS: dict[str, Callable[[float], str]] = {
    "count": lambda value: f"{value:,.0f}",
    "ms": lambda value: f"{value:.2f}" if value < 100 else f"{value:.0f}",
    "seconds": lambda value: f"{value:.2f} s",
    "minutes": lambda value: f"{value:.1f} min",
    "hz": lambda value: f"{value:.2f} Hz",
    "percent": lambda value: f"{100 * value:.1f} %",
    "times": lambda value: f"{value:.2f}x",
    "small": lambda value: f"{value:.4f}",
    "tiny": lambda value: f"{value:.1e}",
    "plain": lambda value: f"{value:g}",
    "bytes": lambda value: f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB",
}


def escape(text: object) -> str:
    """Text that may stand in HTML, also inside of attributes."""
    return html.escape(str(text), quote=True)


class Values:
    """The data of a page, read by dotted paths such as "latency.programs.0.rows.2.engine.p50_ms"."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def __getitem__(self, path: str) -> Any:
        """The value at a path; KeyError or IndexError where there is none."""
        value: Any = self.data
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return value

    def number(self, path: str, form: str) -> str:
        """An element that shows a number and remembers where it is from; a dash where the value is None."""
        value = self[path]
        if value is None:
            return '<span class="none">-</span>'
        return f'<data value="{value!r}" data-path="{escape(path)}" data-form="{form}">{FORMS[form](value)}</data>'

    def text(self, path: str) -> str:
        """Escaped text at a path."""
        return escape(self[path])

    def short(self, path: str) -> str:
        """The first twelve digits of a digest."""
        return f'<code title="{escape(self[path])}">{escape(self[path][:12])}</code>'


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table of ready cells; the first `left` columns are left-aligned, the others are numbers."""
    kinds = ["" if i < left else ' class="n"' for i in range(len(head))]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(name: str, title: str, lead: str, body: str) -> str:
    """One section of the page; `lead` is a sentence of ready HTML."""
    return f'<section id="{name}"><h2>{escape(title)}</h2><p class="lead">{lead}</p>{body}</section>'


def absent(name: str, title: str, part: Mapping[str, Any]) -> str:
    """A section that could not be made, with the reason and the command that would make it."""
    body = f"<p><code>{escape(part['command'])}</code></p>" if part.get("command") else ""
    return section(name, title, f'<span class="absent">Not in this report:</span> {escape(part["reason"])}', body)

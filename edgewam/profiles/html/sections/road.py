"""The road: every artifact from the demonstrations to the bundle, with its digest, its size and what was measured."""

from __future__ import annotations

from edgewam.profiles.html.values import Values, section

NAME, TITLE = "road", "The road"
_ORIGIN = {"shipped": "shipped", "here": "made here", "missing": "not on this disk"}


def render(v: Values) -> str:
    """One card per artifact, in the order of the road."""
    cards = []
    for i, entry in enumerate(v["road"]):
        at = f"road.{i}"
        rows = [("digest", v.short(f"{at}.digest")), ("origin", _ORIGIN[entry["origin"]])]
        if "size_bytes" in entry:
            rows.append(("size", v.number(f"{at}.size_bytes", "bytes")))
        for j, fact in enumerate(entry["facts"]):
            rows.append((fact["label"], v.number(f"{at}.facts.{j}.value", fact["form"])))
        lines = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows)
        cards.append(f'<li class="step"><h3>{v.text(f"{at}.role")}</h3><dl>{lines}</dl></li>')
    lead = "Each artifact names the digests of those it was made from; sizes and times are from their manifests."
    return section(NAME, TITLE, lead, f'<ol class="road">{"".join(cards)}</ol>')

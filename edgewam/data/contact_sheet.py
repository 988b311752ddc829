"""What a dataset shows, for a person to look at: canvases of one episode over time, and its states and actions as curves.

A PNG holds the pictures with their step numbers; a page (plain HTML and SVG, nothing from elsewhere) holds both.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from edgewam.core.artifacts import replaced_file
from edgewam.core.errors import ContractError
from edgewam.core.observation import compose_images, composition_named, composition_of
from edgewam.data.dataset import Dataset
from edgewam.data.schema import ACTION, STATE, Floats, Images
from edgewam.profiles.html.style import STYLE
from edgewam.profiles.html.values import escape, section

CANVASES = {"three_cameras": (384, 320), "side_by_side": (224, 448), "single": (384, 320)}  # released (height, width)
NUM_PICTURES, COLUMNS = 12, 4
_LABEL_PX, _GAP_PX, _PAPER = 16, 6, (250, 250, 248)
_OWN_STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .8rem; }
.sheet figure { margin: 0; } .sheet img { width: 100%; height: auto; display: block; border-radius: 4px; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem 1.4rem; }
.curves svg { width: 100%; height: 6rem; } .curves figure { margin: 0; } .curves figcaption { margin: 0; }
"""
_KEY = '<div class="key"><span><i class="wire engine"></i>state</span><span><i class="wire second"></i>action</span></div>'


@dataclass(frozen=True)
class Sheet:
    """Canvases uint8 [n, H, W, 3] of an episode at control steps [n]; `shows` says how they are made."""

    dataset: Dataset
    episode: int
    steps: npt.NDArray[np.int64]
    pictures: Images
    shows: str


def make_sheet(dataset: Dataset, episode: int = 0, composition: str | None = None, num_pictures: int = NUM_PICTURES) -> Sheet:
    """Pictures evenly over one episode.

    Args:
        dataset: its frames.
        episode: number, from 0.
        composition: a name of `COMPOSITIONS`; by default the first that the cameras can fill, else all of them in a row.
        num_pictures: how many, at least one.

    Raises:
        ContractError: no such episode or composition, or cameras that do not fill it.
    """
    if num_pictures < 1:
        raise ContractError(f"A contact sheet shows at least one picture, got {num_pictures}.")
    length = len(dataset.states(episode))
    steps = np.unique(np.linspace(0, length - 1, min(num_pictures, length)).round().astype(np.int64))
    chosen = composition or composition_of(dataset.cameras)
    if chosen is None:
        views = [dataset.frames(episode, camera, steps) for camera in dataset.cameras]
        height = max(view.shape[1] for view in views)
        return Sheet(dataset, episode, steps, np.concatenate([_to_height(view, height) for view in views], 2), "side by side")
    names = composition_named(chosen).chosen(dataset.cameras).values()
    found = {name: dataset.frames(episode, name, steps) for name in names}
    pictures = np.stack(
        [compose_images({name: view[i] for name, view in found.items()}, *CANVASES[chosen], chosen) for i in range(len(steps))]
    )
    return Sheet(dataset, episode, steps, pictures, f"composed as {chosen}")


def _to_height(view: Images, height: int) -> Images:
    """Pictures scaled to one height, in proportion."""
    width = max(1, round(view.shape[2] * height / view.shape[1]))
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)) for image in view])


def write_png(sheet: Sheet, path: Path) -> None:
    """The pictures in rows, each with its step and time below."""
    count, height, width = sheet.pictures.shape[:3]
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    size = (_GAP_PX + columns * (width + _GAP_PX), _GAP_PX + rows * (height + _LABEL_PX + _GAP_PX))
    paper = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(paper)
    for place, (step, picture) in enumerate(zip(sheet.steps, sheet.pictures, strict=True)):
        left = _GAP_PX + place % columns * (width + _GAP_PX)
        top = _GAP_PX + place // columns * (height + _LABEL_PX + _GAP_PX)
        paper.paste(Image.fromarray(picture), (left, top))
        draw.text((left + 2, top + height + 2), _label(sheet, int(step)), fill=(40, 44, 50))
    with replaced_file(path) as file:
        paper.save(file, "PNG")


def write_html(sheet: Sheet, path: Path) -> None:
    """One page: pictures, and a small chart for every number of state and action."""
    dataset, episode = sheet.dataset, sheet.episode
    states, actions = dataset.states(episode), dataset.actions(episode)
    pictures = "".join(
        f'<figure><img src="{_jpeg(picture)}" width="{picture.shape[1]}" height="{picture.shape[0]}" '
        f'alt="Cameras at step {step}"><figcaption>{_label(sheet, int(step))}</figcaption></figure>'
        for step, picture in zip(sheet.steps, sheet.pictures, strict=True)
    )
    curves = "".join(_curve(title, lines) for title, lines in _charts(dataset, states, actions))
    title = f"{dataset.path.name}, episode {episode}"
    lead = f"{len(states)} steps at {dataset.fps} a second: &ldquo;{escape(dataset.task(episode))}&rdquo;"
    cameras = escape(", ".join(dataset.cameras))
    body = section(
        "pictures", "Pictures", f"{cameras}, {escape(sheet.shows)}.", f'<div class="sheet">{pictures}</div>'
    ) + section(
        "curves", "States and actions", f"Values from step 0 to {len(states) - 1}.", f'{_KEY}<div class="curves">{curves}</div>'
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}{_OWN_STYLE}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{lead}</p></header>{body}</main></body></html>\n'
    )
    with replaced_file(path) as file:
        file.write_text(page)


def _charts(dataset: Dataset, states: Floats, actions: Floats) -> list[tuple[str, dict[str, Floats]]]:
    """(title, line class -> values): state and action of one name share a chart."""
    named = {
        feature: dict(zip(_names(dataset, feature, values.shape[1]), values.T, strict=True))
        for feature, values in ((STATE, states), (ACTION, actions))
    }
    if list(named[STATE]) == list(named[ACTION]):
        return [(name, {"engine": values, "second": named[ACTION][name]}) for name, values in named[STATE].items()]
    parts = (("state", "engine", named[STATE]), ("action", "second", named[ACTION]))
    return [(f"{what} {name}", {kind: values}) for what, kind, found in parts for name, values in found.items()]


def _curve(title: str, lines: Mapping[str, Floats]) -> str:
    """One number over the episode; the vertical axis spans its own range."""
    low, high = min(float(line.min()) for line in lines.values()), max(float(line.max()) for line in lines.values())
    span = max(high - low, 1e-9)

    def points(line: Floats) -> str:
        across = 1000 / max(len(line) - 1, 1)
        return " ".join(
            f"{step * across:.1f},{1000 - 1000 * (value - low) / span:.1f}" for step, value in enumerate(line.tolist())
        )

    drawn = "".join(f'<polyline class="{kind}" points="{points(line)}"/>' for kind, line in lines.items())
    return (
        f'<figure><svg role="img" aria-label="{escape(title)}" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
        '<line class="grid" x1="0" x2="1000" y1="0" y2="0"/><line class="grid" x1="0" x2="1000" y1="1000" y2="1000"/>'
        f"{drawn}</svg><figcaption>{escape(title)}: {low:.4g} to {high:.4g}</figcaption></figure>"
    )


def _names(dataset: Dataset, feature: str, width: int) -> list[str]:
    names = dataset.features.get(feature, {}).get("names") or []
    return [str(name) for name in names] if len(names) == width else [str(number) for number in range(width)]


def _label(sheet: Sheet, step: int) -> str:
    return f"step {step}, {step / sheet.dataset.fps:.2f} s"


def _jpeg(picture: npt.NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()

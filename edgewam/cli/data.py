"""`edgewam data`: look at a dataset before training on it: is it whole, what are its statistics, what does it show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewam.cli._output import Json, emit, progress, say

if TYPE_CHECKING:
    from edgewam.data.key_map import KeyMap

app = typer.Typer(help="Check, measure and look at a LeRobot dataset (v2.1 or v3.0).", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="Dataset directory.")]
State = Annotated[str | None, typer.Option("--state", metavar="KEY", help="Feature that is the state.")]
Action = Annotated[str | None, typer.Option("--action", metavar="KEY", help="Feature that is the action.")]
Cameras = Annotated[
    list[str] | None, typer.Option("--camera", metavar="NAME=KEY", help="A camera's name here and its feature; repeatable.")
]


@app.command()
def check(
    dataset: Source,
    full: Annotated[bool, typer.Option("--full", help="Decode every frame, not three of every episode and camera.")] = False,
    state: State = None,
    action: Action = None,
    camera: Cameras = None,
    save_keys: Annotated[
        bool, typer.Option("--save-keys", help="Store these names in the dataset, where every command finds them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at every file and every episode; exit 1 and name each fault, with what to do about it."""
    from edgewam.core.errors import EdgewamError
    from edgewam.data.check import check_dataset

    keys = _keys(state, action, camera)
    if save_keys and keys is None:
        raise EdgewamError("There are no names to store. Give --state, --action or --camera with --save-keys.")
    with progress("videos") as update:
        checked = check_dataset(dataset, keys, full, lambda done, total: update(done, total))
    for problem in checked.problems:
        say(f"FAULT: {problem}")
    for note in checked.notes:
        say(f"note: {note}")
    if facts := checked.facts:
        say(
            f"{dataset}: {facts['layout']}, {facts['episodes']} episodes of {facts['shortest']} to {facts['longest']} steps at "
            f"{facts['fps']} a second, state {facts['state_dim']}, action {facts['action_dim']}, {len(facts['tasks'])} tasks"
        )
        for name, shape in facts["cameras"].items():
            say(f"  camera {name}: {'x'.join(map(str, shape)) or 'size not told'}")
    say("No faults." if not checked.problems else f"{len(checked.problems)} faults.")
    emit(checked.to_json(), as_json)
    if checked.problems:
        raise typer.Exit(1)
    if save_keys and keys is not None:
        keys.save(dataset)
        say("Names stored in meta/edgewam_keys.json.")


@app.command()
def stats(
    dataset: Source,
    out: Annotated[Path, typer.Argument(help="JSON file to write, in the form of a released dataset_stats.json.")],
    std_floor: Annotated[float, typer.Option(min=0.0, help="Least standard deviation; 0 as in released files.")] = 1e-2,
    as_json: Json = False,
) -> None:
    """Measure states and actions: mean, standard deviation, range and the 1 % and 99 % quantiles."""
    from edgewam.core.artifacts import write_json
    from edgewam.data.dataset import Dataset
    from edgewam.data.stats import released_form

    form = released_form(Dataset.open(dataset), std_floor)
    write_json(out, form)
    say(f"{form['num_episodes']} episodes, {form['num_transition']} steps -> {out}")
    emit(form, as_json)


@app.command()
def view(
    dataset: Source,
    out: Annotated[Path, typer.Argument(help="OUT.png for pictures, OUT.html for pictures and curves.")],
    episode: Annotated[int, typer.Option(min=0, help="Number of the episode.")] = 0,
    composition: Annotated[
        str | None, typer.Option(help="How cameras are put together; by default the first way that they fit.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many, evenly over the episode.")] = 12,
    as_json: Json = False,
) -> None:
    """Make a contact sheet of one episode."""
    from edgewam.core.errors import EdgewamError
    from edgewam.data.contact_sheet import make_sheet, write_html, write_png
    from edgewam.data.dataset import Dataset

    writers = {".png": write_png, ".html": write_html}
    if out.suffix not in writers:
        raise EdgewamError(f"'{out}' is neither .png nor .html. Give one of these.")
    sheet = make_sheet(Dataset.open(dataset), episode, composition, pictures)
    writers[out.suffix](sheet, out)
    say(f"{len(sheet.steps)} pictures of episode {episode}, {sheet.shows} -> {out}")
    emit({"out": str(out), "episode": episode, "steps": sheet.steps.tolist(), "shows": sheet.shows}, as_json)


def _keys(state: str | None, action: str | None, camera: list[str] | None) -> KeyMap | None:
    """None where no name was given: the dataset's own, and rules."""
    from edgewam.core.errors import EdgewamError
    from edgewam.data.key_map import KeyMap

    pairs = [entry.partition("=") for entry in camera or ()]
    if wrong := [entry for entry, (name, _, key) in zip(camera or (), pairs, strict=True) if not name or not key]:
        raise EdgewamError(f"'{wrong[0]}' is no camera. Write NAME=KEY, such as cam_high=observation.images.top")
    if state is None and action is None and not pairs:
        return None
    return KeyMap(state, action, {name: key for name, _, key in pairs})

"""`edgewam join`: several datasets as one, such as one per task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewam.cli._output import Json, emit, say


def command(
    out: Annotated[Path, typer.Argument(help="Directory to write: a list of the datasets, which stay where they are.")],
    datasets: Annotated[list[Path], typer.Argument(help="Two or more dataset directories of one robot.")],
    as_json: Json = False,
) -> None:
    """Make one dataset of several, for a policy that learns several tasks. Nothing is copied."""
    from edgewam.data.join import join

    joined = join(out, datasets)
    counts = {task: sum(joined.task(episode) == task for episode in range(joined.num_episodes)) for task in joined.tasks}
    for task, count in counts.items():
        say(f"{count} episodes: {task}")
    say(f"{joined.num_episodes} episodes in {out}.")
    emit({"path": str(out), "digest": joined.digest, "num_episodes": joined.num_episodes, "tasks": counts}, as_json)

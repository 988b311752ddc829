"""`edgewam control`: arm, stop, reset a run on this machine, or see how it is."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from edgewam.cli._output import Json, emit, say

_SETTLE_S = 0.2  # a request takes effect within a control tick; shown is the mode after that


class Verb(StrEnum):
    """What can be asked of a run."""

    STATUS = "status"
    ARM = "arm"
    DISARM = "disarm"
    STOP = "stop"
    RESET = "reset"
    ESTOP = "estop"


_HALTING = (Verb.STOP, Verb.ESTOP, Verb.DISARM)


def command(
    verb: Annotated[
        Verb,
        typer.Argument(
            help="status; arm: let the arm move; disarm: hold it; stop: brake and stay; reset: leave STOP; estop: stay for good."
        ),
    ],
    run: Annotated[
        str | None, typer.Option(help="Name of the run; of several, stop, estop and disarm take all without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Arm, stop or reset a run on this machine, or see how it is.  Nothing of this can be reached over a network."""
    from edgewam.core.errors import EdgewamError
    from edgewam.robot_bridge.processes.local_control import ask, runs

    # nobody has to think of a name while an arm is where it must not be
    names = runs() if run is None and verb in _HALTING else []
    answers, failures = [], []
    for name in names or [run]:
        try:
            answers.append(ask(verb, name))
        except EdgewamError as error:
            failures.append(str(error))
    if verb is not Verb.STATUS and answers:
        time.sleep(_SETTLE_S)
        answers = [ask(Verb.STATUS, answer["run"]) for answer in answers]
    for answer in answers:
        say(describe(answer))
    if answers:
        emit(answers[0] if len(answers) == 1 else {"runs": answers}, as_json)
    if failures:
        raise EdgewamError(" ".join(failures))


def describe(answer: dict[str, Any]) -> str:
    """A run in one line, with what to do next when it does not move."""
    cause = "" if answer["cause"] == "none" else f" ({answer['cause'].replace('_', ' ')})"
    text = f"{answer['run']}: {answer['mode']}{cause} at tick {answer['tick']}, {'armed' if answer['is_armed'] else 'not armed'}."
    name = answer["run"]
    if answer["mode"] == "ESTOP":
        return f"{text} It stays until the run is ended and started again."
    if answer["mode"] == "STOP":
        return f"{text} When it is safe: edgewam control reset --run {name}"
    return text if answer["is_armed"] else f"{text} Let it move with: edgewam control arm --run {name}"

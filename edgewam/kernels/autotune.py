"""Finds the fastest right variant of every kernel of a recipe, in a child process that may die without taking the build along.

A candidate counts when its result is the reference's (`trial.WRONG`).  One that ends the process, or never answers, is lost and
nothing else: the process is started again and goes on with the next.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgewam.core.errors import PluginError
from edgewam.core.tensor_spec import TensorSpec
from edgewam.kernels.bound import kernel_of, on_meta
from edgewam.kernels.call import PROGRAM, Call, Recipe
from edgewam.kernels.choices import Choices, key_of
from edgewam.kernels.target import Target
from edgewam.kernels.trial import Operand
from edgewam.kernels.variant import Variant

ANSWER_S = 120.0  # for one candidate: compiling a large kernel takes seconds, and a kernel that waits for itself never answers
_WORDS = 200  # characters of what a dead child said last
Report = Callable[[int, int, str], None]


class ChildDied(Exception):
    """The child ended, or was ended because it did not answer; the text says what was seen."""


class Asked(Protocol):
    """Who answers questions about candidates; see `tune_child.Answers`."""

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Child:
    """The process `tune_child`."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        command = [sys.executable, "-m", "edgewam.kernels.tune_child"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Put a question and wait for its answer.

        Raises:
            ChildDied: no answer came.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise self._death(None if ready else f"no answer for {ANSWER_S:.0f} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _death(self, what: str | None = None) -> ChildDied:
        if what is None:
            self._process.wait()
            what = f"the process ended with {self._process.returncode}"
        size = os.fstat(self._errors.fileno()).st_size
        self._errors.seek(max(0, size - _WORDS))
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        return ChildDied(what + (f": {said[-1]}" if said else ""))


@dataclass(frozen=True)
class _Job:
    """One distinct kernel: a call and what its operands look like."""

    call: Call
    operands: Mapping[str, Operand]

    def question(self, device: str) -> dict[str, Any]:
        operands = {role: operand.to_json() for role, operand in self.operands.items()}
        return {"device": device, "call": self.call.to_json(), "operands": operands}


class _Session:
    """A child that is started again when it died."""

    def __init__(self, open_child: Callable[[], Asked]) -> None:
        self._open, self._has_answered = open_child, False
        self._child: Asked | None = None

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer, or {"failed": why}."""
        if self._child is None:
            self._child = self._open()
        try:
            answer = self._child.ask(question)
        except ChildDied as death:
            self._child = None
            if not self._has_answered:
                raise PluginError(f"Kernels cannot be tried here: {death}. Look at 'edgewam doctor'.") from death
            return {"failed": str(death)}
        self._has_answered = True
        return answer

    def close(self) -> None:
        if self._child is not None:
            self._child.close()


def tune(
    recipe: Recipe,
    specs: Mapping[str, TensorSpec],
    target: Target,
    device: str = "cuda",
    limit_s: float = math.inf,
    report: Report | None = None,
    open_child: Callable[[], Asked] = Child,
) -> Choices:
    """The fastest right variant of every distinct kernel call.  In the interpreter times mean nothing: the defaults.

    Args:
        recipe: the stage.
        specs: of its inputs, outputs and weights by name.
        target: what `device` is.
        device: torch device.
        limit_s: seconds after which what is not tuned keeps its first variant.
        report: called with (kernels done, kernels, what was found).
        open_child: starts whoever tries them.

    Raises:
        PluginError: the first child died before it answered anything.
    """
    choices = Choices.defaults(target)
    if target.interpreted:
        return choices
    jobs = distinct(recipe, specs)
    began = time.monotonic()
    session = _Session(open_child)
    found: dict[str, Variant | None] = {}
    remarks: list[str] = []
    try:
        for done, (key, job) in enumerate(jobs.items()):
            if time.monotonic() - began > limit_s:
                remarks.append(f"{len(jobs) - done} of {len(jobs)} kernels were not tuned within {limit_s:.0f} s")
                break
            text = _tune_one(key, job.question(device), session, found, remarks)
            if report:
                report(done + 1, len(jobs), text)
    finally:
        session.close()
    return replace(choices, by_key=found, remarks=tuple(remarks))


def distinct(recipe: Recipe, specs: Mapping[str, TensorSpec]) -> dict[str, _Job]:
    """The calls of a recipe that have a kernel, one for each key, by key."""
    named = on_meta(recipe, specs)
    jobs: dict[str, _Job] = {}
    for call in recipe.calls:
        if call.op == PROGRAM or kernel_of(call.op) is None:
            continue
        operands = {role: named[name] for role, name in call.operands.items()}
        jobs.setdefault(key_of(call, operands), _Job(call, {role: Operand.of(t) for role, t in operands.items()}))
    return jobs


def _tune_one(key: str, question: dict[str, Any], session: _Session, found: dict[str, Variant | None], remarks: list[str]) -> str:
    """Try every variant of one kernel; notes the best in `found`, and what failed in `remarks`."""
    answer = session.ask(question)
    if answer.get("why") or "failed" in answer:
        remarks += [f"{key}: {answer['failed']}"] if "failed" in answer else []
        return f"{key}: not tuned, {answer.get('why') or answer['failed']}"
    session.ask({**question, "compile": answer["variants"]})  # one that takes the process along does it again when it is tried
    best, best_ms = None, math.inf
    for data in answer["variants"]:
        tried = session.ask({**question, "variant": data})
        if "ms" not in tried:
            what = tried.get("failed") or f"wrong by {tried['wrong_by']:.3g} of the largest value"
            remarks.append(f"{key} {Variant.from_json(data)}: {what}")
        elif tried["ms"] < best_ms:
            best, best_ms = Variant.from_json(data), tried["ms"]
    found[key] = best
    return f"{key}: {best_ms * 1e3:.1f} us with {best}" if best else f"{key}: no variant is right, so its reference runs"

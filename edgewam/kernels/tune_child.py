"""The process in which kernels are tried: `python -m edgewam.kernels.tune_child`, questions and answers as lines of JSON.

An illegal access ends what a process may do on a GPU, so after a failure that left the card unusable it leaves, and the builder
starts another one.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from edgewam.kernels.call import Call
from edgewam.kernels.target import target_of
from edgewam.kernels.trial import WRONG, Operand, Trial
from edgewam.kernels.variant import Variant


class Answers:
    """Answers questions; the operands of the last call are kept, since its candidates come one after another."""

    def __init__(self) -> None:
        self._job: Any = None
        self._trial: Trial | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """A question {"device", "call", "operands"}; with "compile", candidates to compile, or "variant", the one to try.

        Returns:
            {"why", "variants"}; nothing when they are compiled; of one variant {"ms"} or {"wrong_by"}.
        """
        trial = self._on_trial(question)
        if "compile" in question:
            trial.compile_ahead([Variant.from_json(variant) for variant in question["compile"]])
            return {}
        if "variant" not in question:
            why, variants = trial.candidates()
            return {"why": why, "variants": [variant.to_json() for variant in variants]}
        variant = Variant.from_json(question["variant"])
        wrong_by = trial.wrong_by(variant)
        return {"wrong_by": wrong_by} if wrong_by > WRONG else {"ms": trial.milliseconds(variant)}

    def _on_trial(self, question: dict[str, Any]) -> Trial:
        job = (question["device"], question["call"], question["operands"])
        if self._trial is None or self._job != job:
            self._trial = None  # frees its memory first
            device = question["device"]
            operands = {role: Operand.from_json(operand) for role, operand in question["operands"].items()}
            self._trial = Trial(Call.from_json(question["call"]), operands, target_of(device), device)
            self._job = job
        return self._trial


def main() -> None:
    """Answer until the questions end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints is not an answer
    torch.set_num_threads(1)
    state = Answers()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = state.answer(question)
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
        print(json.dumps(answer), file=answers, flush=True)
        if "failed" in answer and not _is_usable(question["device"]):
            os._exit(1)  # an orderly end would wait for the GPU


def _is_usable(device: str) -> bool:
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()

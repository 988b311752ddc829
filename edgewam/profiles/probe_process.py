"""The child's side of a probe: call one dotted function and print a JSON line with what it returned or raised.

    python -m edgewam.profiles.probe_process package.module.function '{"argument": 1}'

A generator function gives several values, each better than the one before; what it said last counts when it is cut.
What libraries print on stdout goes to stderr, so that the answers stand alone.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from typing import Any


def answers(function: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answers to a probe, {ok, value, reason} each; the last one counts."""
    module, _, name = function.rpartition(".")
    try:
        chosen = getattr(importlib.import_module(module), name)
        values = chosen(**arguments) if inspect.isgeneratorfunction(chosen) else iter([chosen(**arguments)])
        for value in values:
            yield {"ok": True, "value": value, "reason": ""}
    except Exception as error:  # whatever a vendor library raises is the answer
        first = str(error).strip().partition("\n")[0]
        # an error of edgewam is a sentence for people; the class says more than the text of a foreign one
        own = type(error).__module__.startswith("edgewam.")
        yield {"ok": False, "value": None, "reason": first if own else f"{type(error).__name__}: {first}"}


def main() -> None:
    """Command line."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for answer in answers(sys.argv[1], json.loads(sys.argv[2])):
            print(json.dumps(answer), file=out, flush=True)
    sys.stderr.flush()
    os._exit(0)  # libraries may crash or wait in their exit handlers; the answer is given


if __name__ == "__main__":
    main()

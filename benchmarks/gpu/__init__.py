"""Everything that is measured on a GPU: `make gpu`, that is `python3 -m benchmarks.gpu` (see benchmarks/NOTES.md)."""

import importlib.util
import sys

if importlib.util.find_spec("numpy") is None:
    raise ImportError(f"'{sys.executable}' has no numpy. Name a Python that has it: make gpu GPU_PYTHON=/path/to/python3")

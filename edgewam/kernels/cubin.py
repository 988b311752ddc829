"""What a compiled kernel costs and which instructions it has, read from its machine code with the tools that Triton brings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgewam.core.errors import EdgewamError, require

# products of matrix units, as PTX spells them and as machine code does
_PTX_PRODUCTS = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*")
_SASS_PRODUCTS = re.compile(r"\b(?:HMMA|IMMA|QMMA|OMMA|HGMMA|IGMMA|QGMMA|UTC[HIQO]MMA)[\w.]*")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one kind of GPU.

    registers: a thread's.  spills: bytes of a thread's stack and local memory, 0 where everything is in registers.
    shared: bytes of shared memory a block asks for.  mnemonics: the matrix products it contains.
    """

    cubin: bytes
    ptx: str
    registers: int
    spills: int
    shared: int
    mnemonics: frozenset[str]


def products(text: str) -> frozenset[str]:
    """The matrix products in a text of PTX or machine code."""
    return frozenset(_PTX_PRODUCTS.findall(text)) | frozenset(_SASS_PRODUCTS.findall(text))


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes a thread keeps in local memory: the most of all kernels in the file."""
    text = _run("cuobjdump", "--dump-resource-usage", cubin=cubin)
    rows = re.findall(r"REG:(\d+)\s+STACK:(\d+).*?LOCAL:(\d+)", text)
    if not rows:
        raise EdgewamError(f"cuobjdump tells no resources of this kernel: {text[:300]!r}. Install triton>=3.6,<3.10.")
    return max(int(row[0]) for row in rows), max(max(int(row[1]), int(row[2])) for row in rows)


def machine_code(cubin: bytes) -> str:
    """The kernel's machine code in text."""
    return _run("nvdisasm", "--print-code", cubin=cubin)


def _run(tool: str, *options: str, cubin: bytes) -> str:
    triton = require("triton", extra="kernels")
    path = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([path, *options, file.name], capture_output=True, text=True)
    if done.returncode:
        raise EdgewamError(f"{path} failed: {done.stderr.strip()[:300]}. Install triton>=3.6,<3.10 again.")
    return done.stdout

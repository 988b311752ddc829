"""Runs a CUDA C++ kernel on the processor: its own source, with other instructions in front (instructions_on_host.h).

What this proves is the kernel's arithmetic and every index in it; what it cannot prove is time, and races that need two warps at
once.
"""

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

from edgewam.kernels.cuda_source import text_of

INSTRUCTIONS = Path(__file__).with_name("instructions_on_host.h")
COMPILER = shutil.which("g++")
_ENTRY = """
static Operands given;
static void one_block() { %s(given); }
extern "C" void run(const Operands* operands, int x, int y) { given = *operands; launch(x, y, one_block); }
"""


def run_on_host(program, grid, addresses, folder, copies_at_once=False):
    """Run every block of `program` on memory at `addresses`."""
    text = text_of(program, INSTRUCTIONS.read_text()) + _ENTRY % program.function
    if copies_at_once:
        text = "#define COPY_AT_ONCE\n" + text
    library = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        library.with_suffix(".cpp").write_text(text)
        command = [COMPILER, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(library.with_suffix(".cpp"))]
        subprocess.run(command, check=True, timeout=120)
    structure = (ctypes.c_uint64 * len(addresses))(*addresses)
    ctypes.CDLL(str(library)).run(structure, *grid)

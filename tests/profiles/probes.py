"""Functions for the tests of probes: each behaves in its own way in a child process."""

import os
import signal
import sys
import time

from edgewam.core.errors import EdgewamError


def double(number):
    print("a library talks on stdout")
    return {"twice": 2 * number, "threads": os.environ["OMP_NUM_THREADS"], "mood": os.environ.get("MOOD")}


def refuses():
    raise EdgewamError("Install it with: pip install 'edgewam[sim]'")


def breaks():
    return 1 / 0


def crashes():
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves():
    print("out of tea", file=sys.stderr)
    os._exit(3)


def hangs(pid_file):
    child = os.fork()
    if child:
        with open(pid_file, "w") as file:
            file.write(f"{os.getpid()} {child}")
    time.sleep(60)


def says_half_and_hangs():
    yield {"half": True}
    time.sleep(60)


def says_half_and_crashes():
    yield {"half": True}
    os.kill(os.getpid(), signal.SIGABRT)

"""Emits one section, starts a child that ignores the polite signal, and never ends."""

import subprocess
import sys
import time
from pathlib import Path

from tests.bench.fake_jobs.good import section


def run(job, device, emit):
    emit("before", section())
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code])
    Path(job.params["pid_file"]).write_text(str(child.pid))
    time.sleep(600)

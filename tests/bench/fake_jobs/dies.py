"""Emits one section, then its process is gone, as after a crash in a library."""

import os

from tests.bench.fake_jobs.good import section


def run(job, device, emit):
    emit("before", section())
    os._exit(7)

"""Emits one section, then raises."""

from tests.bench.fake_jobs.good import section


def run(job, device, emit):
    emit("before", section())
    raise RuntimeError("out of luck")

"""A policy whose action chunk only sleeps: bundles of known speed for the tests of the chunk benchmark."""

import time

import numpy as np

from edgewam.core.program import Call, Loop, Program, Programs
from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.runtime.bundle import Bundle
from edgewam.runtime.pipeline import Pipeline

X = TensorSpec("x", (2,))
STEP = Stage("denoise", (X, TensorSpec("row", (1,))), (TensorSpec("y", (2,)),), Cost(8, 4, 1, 16))


class SleepingEngine:
    """Adds the row after a while."""

    def __init__(self, delay_s):
        self.delay_s = delay_s

    def bind(self, inputs, outputs):
        def call():
            time.sleep(self.delay_s)
            np.add(inputs["x"], inputs["row"], out=outputs["y"])

        return call


def make_bundle(backend, steps, delay_s):
    loop = Loop((Call("denoise", {"x": "x", "row": "row"}, {"y": "x"}),), {"row": "rows"}, steps)
    act = Program("act", (X,), ("x",), loop=loop)
    plan = Program("plan", (X,), ("z",), setup=(Call("denoise", {"x": "x", "row": "one"}, {"y": "z"}),))
    constants = {"rows": np.ones((steps, 1), np.float32), "one": np.ones(1, np.float32)}
    programs, stages, engines = (
        Programs((), {"act": act, "plan": plan}, constants),
        {"denoise": STEP},
        {"denoise": SleepingEngine(delay_s)},
    )
    pipeline = Pipeline(programs, stages, engines)
    return Bundle("fake", backend, "tests.bench.fake_policy", {}, stages, engines, pipeline, {})


def open_policy(bundle):
    return bundle


def timed_calls(bundle):
    x = np.zeros(2, np.float32)
    return {"L_chunk": lambda: bundle.pipeline.run("act", {"x": x}), "L_compose": lambda: None}

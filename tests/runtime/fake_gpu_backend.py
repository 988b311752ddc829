"""A backend on the fake device: eager files, run asynchronously, so that bundles can be tested as on a GPU."""

from edgewam.compile.backends import eager as eager_build
from edgewam.runtime.backends import eager
from edgewam.runtime.engine import Support
from tests.runtime.fake_device import FakeDevice

FACTS = {"name": "NVIDIA Fake", "sm": "sm_120", "runtime": "fake 1.0", "driver": "580.1"}
device_facts = dict(FACTS)
settings: dict[str, bool] = {}


class FakeGpu(FakeDevice):
    """A fake device with graphs and a name."""

    has_graphs = True

    def device_facts(self):
        return dict(device_facts)


TOLERANCE = eager_build.TOLERANCE
LEAST_DRIVER = "550.1"


def build(stage, directory, options):
    """The build half: a target changes nothing of an eager file."""
    return eager_build.build(stage, directory)


def runtime_of(record):
    """What opens a file that was built for another device."""
    return FACTS["runtime"]


def supports(stage=None):
    """Both halves: one module serves as both for a dotted name."""
    return Support(True)


def memory(options):
    made = FakeGpu(**settings)
    memory.latest = made
    return made


def load(stage, directory, record, options):
    return _Engine(eager.load(stage, directory, record, eager_options(options)))


def eager_options(options):
    return type(options)(options.threads, options.spinning, "cpu")


class _Engine:
    def __init__(self, inner):
        self.inner = inner

    def bind(self, inputs, outputs):
        call, device = self.inner.bind(inputs, outputs), memory.latest
        return lambda: device.issue(call)

"""A stage with both kinds of layers, small enough to check by hand."""

import torch
from torch import nn

from edgewam.core.stage import Cost, Stage
from edgewam.core.tensor_spec import TensorSpec
from edgewam.quantize.record import Recording


class Net(nn.Module):
    """Image and rows in, rows out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Linear(64, 96)
        self.down = nn.Linear(96, 40, bias=False)

    def forward(self, image, rows):
        """image [1, 8, 6, 6], rows [16, 64] -> [16, 40], [1, 8, 6, 6]."""
        return self.down(torch.tanh(self.up(rows))), self.conv(image)


def toy_stages(seed=0):
    """The stage `net`, random weights, float32."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    inputs = (TensorSpec("image", (1, 8, 6, 6)), TensorSpec("rows", (16, 64)))
    outputs = (TensorSpec("out", (16, 40)), TensorSpec("map", (1, 8, 6, 6)))
    net = Net().eval().requires_grad_(False)
    size = sum(4 * p.numel() for p in net.parameters())
    return {"net": Stage("net", inputs, outputs, Cost(size, 1, 16, 1), net)}


def toy_recording(count=6, scale=1.0):
    """What the stage `net` saw; one input channel is twenty times the others, as real activations have it."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.ones(64)
    spread[3] = 20.0
    calls = [
        (torch.randn(1, 8, 6, 6, generator=generator) * scale, torch.randn(16, 64, generator=generator) * spread * scale)
        for _ in range(count)
    ]
    return Recording({"net": calls}, count, "0" * 64)

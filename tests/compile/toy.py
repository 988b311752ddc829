"""A compiled toy for the tests of compile and runtime."""

import torch

from edgewam.compile.plan import CompilePlan
from edgewam.models import toy_three


def toy_plan(backend="eager", seed=0, **fields):
    """A plan of the toy family with random weights; fields override."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = toy_three.build()
    defaults = {"host": toy_three.host_config(model.config), "config": {"num_action_steps": 4}, "threads": 1}
    return CompilePlan("toy_three", toy_three.stages(model), toy_three.programs(model), backend, **(defaults | fields))

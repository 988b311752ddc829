"""Every kernel at full size on a GPU against its reference in float32, what `make gpu` runs; without a GPU it is skipped."""

import pytest
import torch

from edgewam.kernels.bound import bind_kernel, kernel_of, reference_of, split
from tests.kernels.full_size import CASES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: it runs the kernels")]

# root mean square of the deviation, relative to that of the result
TOLERANCES = {
    "none": 2e-2,  # attention: weights and results in bfloat16, 8 bits each
    "bfloat16": 1e-2,  # results in bfloat16; an input may round to the other neighbour
    "fp8": 2e-2,  # an input may round to the other neighbour, which is 1/16 away
    "int8": 1e-2,
}


def made(case):
    """Tensors such as the roles have, on the GPU."""
    from edgewam.kernels.trial import Operand, made_up

    generator = torch.Generator("cuda").manual_seed(0)
    return {role: made_up(role, Operand.of(tensor), "cuda", generator) for role, tensor in case.meta().items()}


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_references_numbers(name):
    from edgewam.kernels.target import target_of

    case, target = CASES[name], target_of("cuda")
    kernel, tensors = kernel_of(case.op), made(case)
    why = kernel.support(case.call, tensors, target)
    assert why == "", why
    reads, writes = split(case.call, tensors)
    expected = reference_of(case.op)(**reads, **case.attributes)
    defaults = {}  # the first of each source
    for variant in kernel.variants(case.call, tensors, target):
        defaults.setdefault(variant.source, variant)
    for variant in defaults.values():
        for tensor in writes.values():
            tensor.fill_(torch.nan)  # what is not written shows
        run = bind_kernel(kernel, case.call, tensors, variant, target)
        run()
        run()  # the second launch finds the scratch as the first one left it
        torch.cuda.synchronize()
        for role, tensor in writes.items():
            deviation = (tensor.float() - expected[role]).pow(2).mean().sqrt() / expected[role].pow(2).mean().sqrt()
            assert deviation <= TOLERANCES[str(case.attributes.get("activations", "none"))], (variant, role)


@pytest.mark.parametrize("name", ["down fp8", "down bf16", "chunk_attention"])
def test_a_graph_of_it_gives_the_same_bits_every_time(name):
    from edgewam.kernels.target import target_of

    case, target = CASES[name], target_of("cuda")
    kernel, tensors = kernel_of(case.op), made(case)
    for variant in kernel.variants(case.call, tensors, target)[:4]:
        run = bind_kernel(kernel, case.call, tensors, variant, target)
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(3):
                run()
        results = []
        for _ in range(3):
            tensors["y"].fill_(torch.nan)
            graph.replay()
            torch.cuda.synchronize()
            results.append(tensors["y"].clone())
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2]), variant

"""The CUDA C++ linear layer without a GPU: its own source on the processor against the reference, and its machine code."""

from dataclasses import replace

import pytest
import torch

from edgewam.core.errors import EdgewamError
from edgewam.kernels import linear_cuda
from edgewam.kernels.bound import bind_kernel
from edgewam.kernels.call import Call
from edgewam.kernels.cuda_source import CudaProgram, compile_cuda
from edgewam.kernels.reference import linear
from edgewam.kernels.target import INTERPRETER, TARGETS
from edgewam.kernels.variant import Variant
from edgewam.kernels.weights import pack
from tests.kernels.on_host import COMPILER, run_on_host

torch.set_num_threads(1)
# of the largest result
SAME_INPUTS = 1e-5  # the same rounded numbers in another order of float32 sums
NORMED = 5e-3  # besides, the norm's last bit may round an input to its neighbour: 1/256 of one of hundreds of terms
BFLOAT16 = 2**-8  # a result is rounded, perhaps to the other neighbour
FORMATS = {  # name -> weights, group, activations
    "bf16": ("bfloat16", 0, "bfloat16"),
    "fp8_weights": ("fp8", 0, "bfloat16"),
    "int8_weights": ("int8", 0, "bfloat16"),
    "int4_weights": ("int4", 64, "bfloat16"),
    "fp8": ("fp8", 0, "fp8"),
    "int8": ("int8", 0, "int8"),
}


def made(rows, ins, outs, format, *, roles=(), x=torch.float32, y=torch.float32, group=None, **attributes):
    """A call and its tensors on the CPU, every role that is asked for filled with random numbers."""
    weights, usual_group, activations = FORMATS[format]
    generator = torch.Generator().manual_seed(len(roles) + rows)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    packed = pack(random(outs, ins) * ins**-0.5, weights, usual_group if group is None else group)
    tensors = {"x": (random(rows, ins) * 2 + 0.5).to(x), "weight": packed.codes}
    if packed.scale is not None:
        tensors["weight_scale"] = packed.scale
    if activations != "bfloat16":
        tensors["input_scale"] = torch.tensor([6 / {"fp8": 448, "int8": 127}[activations]])  # some inputs saturate
    result = (2, rows, outs // 2) if attributes.get("pairs") else (rows, outs)
    shapes = {
        **dict.fromkeys(("shift", "scale", "clean_shift", "clean_scale", "smooth"), (ins,)),
        **dict.fromkeys(("bias", "gate", "clean_gate"), (outs,)),
        "residual": result,
    }
    for role in roles:
        if role == "mask":
            tensors[role] = torch.arange(rows) % 3 == 1
        elif role == "squares":
            tensors[role] = torch.full((rows, outs // 64), torch.nan)
        else:
            tensors[role] = random(*shapes[role])
    tensors["y"] = torch.full(result, torch.nan, dtype=y)
    return Call("linear", {role: role for role in tensors}, {**attributes, "activations": activations}), tensors


def on_host(call, tensors, variant, folder, **options):
    """The addresses as `bind` would give them, on the processor."""
    (launch,) = linear_cuda.launches(call, tensors, variant, TARGETS[90])
    parts, counters = launch.tensors[-2:]
    if parts is not None:
        parts.fill_(torch.nan)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in launch.tensors]
    run_on_host(launch.program(), launch.grid, addresses, folder, **options)
    assert counters is None or not counters.any(), "a launch leaves its counters at zero for the next one"


def program_of(call, tensors, variant, target):
    (launch,) = linear_cuda.launches(call, tensors, variant, target)
    return launch.program()


def check(call, tensors, tolerance):
    reads = {role: tensor for role, tensor in tensors.items() if role not in ("y", "squares")}
    expected = linear(**reads, **call.attributes)
    for role in ("y", "squares"):
        if role in tensors:
            deviation = (tensors[role].float() - expected[role]).abs().max() / expected[role].abs().max()
            assert deviation <= tolerance + (BFLOAT16 if tensors[role].dtype == torch.bfloat16 else 0), role


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("needs g++ to run CUDA sources on the processor")
    return tmp_path_factory.mktemp("on_host")


NORM = ("shift", "scale", "clean_shift", "clean_scale", "mask", "bias")
GATED = ("gate", "clean_gate", "mask", "residual", "bias")
CASES = {
    "query, key and value": (
        made(5, 256, 128, "bf16", roles=(*NORM, "squares"), norm=True, y=torch.bfloat16),
        Variant(8, 64, 32, warps=2, stages=2),
        NORMED,
    ),
    "FP8 up": (
        made(16, 256, 64, "fp8", roles=(*NORM, "smooth"), norm=True, activation="gelu", eps=1e-5),
        Variant(16, 64, 64, warps=2, stages=1),
        NORMED,
    ),
    "FP8 down in parts": (
        made(16, 384, 192, "fp8", roles=GATED, x=torch.bfloat16),
        Variant(16, 128, 64, splits=2, warps=2, stages=1),
        SAME_INPUTS,
    ),
    "INT8 down": (made(9, 192, 64, "int8", roles=GATED), Variant(16, 64, 64, warps=2, stages=2), SAME_INPUTS),
    "INT4 in groups of 64, in parts": (
        made(16, 1024, 64, "int4_weights", roles=(*GATED, "squares"), x=torch.bfloat16),
        Variant(16, 64, 128, splits=2, warps=1, stages=3),
        SAME_INPUTS,
    ),
    "INT4 in groups of 32": (
        made(3, 256, 64, "int4_weights", group=32, activation="gelu_exact", x=torch.bfloat16),
        Variant(8, 64, 128, warps=2, stages=1),
        SAME_INPUTS,
    ),
    "INT4 in groups of 256": (
        made(3, 512, 64, "int4_weights", group=256, x=torch.bfloat16),
        Variant(8, 64, 128, warps=1, stages=2),
        SAME_INPUTS,
    ),
    "FP8 weights, pairs": (
        made(16, 128, 256, "fp8_weights", roles=("bias", "residual"), pairs=True, y=torch.bfloat16),
        Variant(16, 128, 64, warps=2, stages=1),
        SAME_INPUTS,
    ),
    "INT8 weights": (made(1, 256, 64, "int8_weights"), Variant(8, 64, 64, warps=4, stages=1), SAME_INPUTS),
}


@pytest.mark.parametrize("name", CASES)
def test_the_source_gives_the_references_numbers(name, folder):
    (call, tensors), variant, tolerance = CASES[name]
    on_host(call, tensors, variant, folder)
    check(call, tensors, tolerance)


def test_copies_may_arrive_at_any_time(folder):
    """With several rounds through the ring: what is copied early overwrites nothing that is still to be read."""
    (call, tensors), variant, tolerance = CASES["FP8 down in parts"]
    tensors["y"].fill_(torch.nan)
    on_host(call, tensors, variant, folder, copies_at_once=True)
    check(call, tensors, tolerance)


def test_a_second_launch_gives_the_same_bits(folder):
    (call, tensors), variant, _ = CASES["FP8 down in parts"]
    results = []
    for _ in range(2):
        tensors["y"].fill_(torch.nan)
        on_host(call, tensors, variant, folder)
        results.append(tensors["y"].clone())
    assert torch.equal(*results)


def test_the_residual_may_be_written_in_place(folder):
    call, tensors = made(16, 384, 192, "fp8", roles=GATED, x=torch.bfloat16)
    expected = linear(**{role: tensor for role, tensor in tensors.items() if role != "y"}, **call.attributes)["y"]
    tensors["y"] = tensors["residual"]
    on_host(call, tensors, CASES["FP8 down in parts"][1], folder)
    assert (tensors["y"] - expected).abs().max() <= SAME_INPUTS * expected.abs().max()


# ---- full size, on meta tensors: what is compiled


def full(format, name):
    """The four kinds of layer of a denoise step: width 1024, attention width 3072, 4096 hidden, 16 rows."""
    ins, outs, roles, options = {
        "qkv": (1024, 9216, (*NORM, "squares"), {"norm": True, "y": torch.bfloat16}),
        "out": (3072, 1024, GATED, {"x": torch.bfloat16}),
        "up": (1024, 4096, NORM, {"norm": True, "y": torch.bfloat16, "activation": "gelu"}),
        "down": (4096, 1024, GATED, {"x": torch.bfloat16}),
    }[name]
    call, tensors = made(16, ins, 128, format, roles=roles, **options)  # the real inputs, few outputs: then as many as there are
    sized = {}
    for role, tensor in tensors.items():
        shape = list(tensor.shape)
        if role in ("weight", "weight_scale", "bias", "gate", "clean_gate"):
            shape[0] = outs
        elif role in ("y", "residual", "squares"):
            shape[-1] = outs // (64 if role == "squares" else 1)
        sized[role] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return call, sized


# What the assembler makes of a product of one warp.  Hopper and Thor have FP8 products only for four warps together (the Triton
# kernel's): there it converts to 16 bits, which is exact.
HALF_PRODUCT = "HMMA.16816.F32.BF16"
PRODUCTS = {
    "fp8": {89: "QMMA.16832.F32.E4M3.E4M3", 90: "HMMA.16816.F32", 110: "HMMA.16816.F32", 120: "QMMA.16832.F32.E4M3.E4M3"},
    "int8": dict.fromkeys(TARGETS, "IMMA.16832.S8.S8"),
}
TWO_BLOCKS = 128  # registers of a thread with which two blocks of 256 threads share a processor's 65536
ONE_BLOCK = 200  # with 128 outputs there are twice the sums, and with groups of inputs every sum is there twice


def prove(format, name, sm, variant=None):
    target = TARGETS[sm]
    call, tensors = full(format, name)
    assert linear_cuda.support(call, tensors, target) == ""
    variant = variant or linear_cuda.variants(call, tensors, target)[0]
    program = program_of(call, tensors, variant, target)
    compiled = compile_cuda(program, sm)
    assert compiled.spills == 0, variant
    assert compiled.registers <= (ONE_BLOCK if variant.outs == 128 or format == "int4_weights" else TWO_BLOCKS), variant
    assert compiled.shared == program.shared <= target.shared_memory
    wanted = PRODUCTS.get(format, {}).get(sm, HALF_PRODUCT)
    assert any(mnemonic.startswith(wanted) for mnemonic in compiled.mnemonics), compiled.mnemonics


QUICK = {  # what `make test` compiles; `make soak` compiles the rest
    "fp8": tuple(TARGETS),
    "int4_weights": (90, 120),
    "int8": (89, 110),
    "bf16": (90,),
    "fp8_weights": (110,),
    "int8_weights": (120,),
}


@pytest.mark.parametrize(("format", "sm"), [(format, sm) for format, sms in QUICK.items() for sm in sms])
def test_it_compiles_without_spills_to_products_of_matrix_units(format, sm):
    pytest.importorskip("cuda.bindings.nvrtc")
    prove(format, "qkv" if (format, sm) == ("fp8", 90) else "down", sm)


@pytest.mark.wide
@pytest.mark.parametrize("sm", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
def test_so_does_every_layer_with_either_tile(format, sm):
    pytest.importorskip("cuda.bindings.nvrtc")
    for name in ("qkv", "out", "up", "down"):
        candidates = linear_cuda.variants(*full(format, name), TARGETS[sm])
        for variant in {variant.outs: variant for variant in reversed(candidates)}.values():
            prove(format, name, sm, variant)


@pytest.mark.parametrize("sm", TARGETS)
def test_every_candidate_fits_and_divides(sm):
    for format in FORMATS:
        for name in ("qkv", "out", "up", "down"):
            call, tensors = full(format, name)
            found = linear_cuda.variants(call, tensors, TARGETS[sm])
            assert found and len(set(found)) == len(found) <= linear_cuda.MOST_VARIANTS
            for variant in found:
                assert variant.source == "cuda"
                assert program_of(call, tensors, variant, TARGETS[sm]).shared <= TARGETS[sm].shared_memory
                assert tensors["x"].shape[1] % (variant.ins * variant.splits) == 0


def test_support_names_what_it_does_not_take():
    target = TARGETS[90]
    call, tensors = full("fp8", "qkv")
    with_none = replace(call, attributes={**call.attributes, "activations": "none"})
    deep = {**tensors, "x": torch.empty(17, 1024, device="meta")}
    narrow = {**tensors, "weight": torch.empty(100, 1024, dtype=torch.float8_e4m3fn, device="meta")}
    other = {**tensors, "weight": torch.empty(9216, 1024, dtype=torch.int8, device="meta")}
    shifted = {**tensors, "x": torch.empty(16, 1026, device="meta")[:, :1024]}
    assert "interpreter" in linear_cuda.support(call, tensors, INTERPRETER)
    assert "as it is" in linear_cuda.support(with_none, tensors, target)
    assert "rows" in linear_cuda.support(call, deep, target)
    assert "multiples of 64 outputs" in linear_cuda.support(call, narrow, target)
    assert "a weight in torch.float8_e4m3fn" in linear_cuda.support(call, other, target)
    assert "'x' or one of its rows" in linear_cuda.support(call, shifted, target)
    assert "'delta'" in linear_cuda.support(call, {**tensors, "delta": torch.empty(1, device="meta")}, target)
    assert "on a GPU" in linear_cuda.support(call, {**tensors, "bias": torch.zeros(9216)}, target)


def test_what_nvrtc_says_reaches_the_user():
    pytest.importorskip("cuda.bindings.nvrtc")
    call, tensors = full("fp8", "down")
    program = program_of(call, tensors, linear_cuda.variants(call, tensors, TARGETS[90])[0], TARGETS[90])
    broken = CudaProgram(program.source, program.function, {**program.defines, "SPLITS": 7}, program.threads, program.shared)
    with pytest.raises(EdgewamError, match="shape"):
        compile_cuda(broken, 90)


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: it runs the kernel")
@pytest.mark.parametrize("name", ["qkv", "out", "up", "down"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_candidate_gives_the_references_numbers_on_a_gpu(format, name):
    from edgewam.kernels.target import target_of
    from edgewam.kernels.trial import Operand, made_up

    target = target_of("cuda")
    call, sized = full(format, name)
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = {role: made_up(role, Operand.of(tensor), "cuda", generator) for role, tensor in sized.items()}
    assert linear_cuda.support(call, tensors, target) == ""
    for variant in linear_cuda.variants(call, tensors, target):
        for role in ("y", "squares"):
            if role in tensors:
                tensors[role].fill_(torch.nan)
        run = bind_kernel(linear_cuda, call, tensors, variant, target)
        for _ in range(2):  # the second launch finds the counters as the first one left them
            run()
        check(call, tensors, NORMED)

"""A spec describes arrays of NumPy and of torch, whose names of dtypes are not always ours."""

import numpy as np
import pytest

from edgewam.core.errors import ContractError
from edgewam.core.tensor_spec import DTYPE_BYTES, TensorSpec


def test_a_spec_of_an_array_takes_it_and_no_other():
    spec = TensorSpec.of("x", np.zeros((2, 3), np.float16))
    assert spec == TensorSpec("x", (2, 3), "float16") and spec.size_bytes == 12
    spec.check(np.ones((2, 3), np.float16))
    for other in (np.zeros((3, 2), np.float16), np.zeros((2, 3), np.float32)):
        with pytest.raises(ContractError, match=r"'x' must be float16\[2, 3\]"):
            spec.check(other)
    with pytest.raises(ContractError, match="unknown dtype 'complex64'"):
        TensorSpec.of("z", np.zeros(1, np.complex64))


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_every_dtype_has_one_of_torch(dtype):
    torch = pytest.importorskip("torch", reason="needs the extra train")
    spec = TensorSpec("x", (4,), dtype)
    tensor = torch.zeros(4, dtype=getattr(torch, spec.torch_dtype))
    assert TensorSpec.of("x", tensor) == spec and tensor.nbytes == spec.size_bytes
    spec.check(tensor)

"""Compact ONNX files compute exactly what the plain ones do, in fewer bytes."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
ort = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

from edgewam.compile.onnx_weights import compact  # noqa: E402


def graph(first, second):
    """y = x @ first @ second."""
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "first"], ["h"]),
        onnx.helper.make_node("MatMul", ["h", "second"], ["y"]),
    ]
    size = first.shape[0]
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, size]) for name in ("x", "y")]
    weights = [onnx.numpy_helper.from_array(first, "first"), onnx.numpy_helper.from_array(second, "second")]
    body = onnx.helper.make_graph(nodes, "g", value[:1], value[1:], weights)
    return onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def run(model, x):
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def weights(seed, half):
    values = np.random.default_rng(seed).standard_normal((48, 48)).astype(np.float32)
    return values.astype(np.float16).astype(np.float32) if half else values


def size(model):
    return len(model.SerializeToString())


X = np.random.default_rng(9).standard_normal((3, 48)).astype(np.float32)


def test_half_weights_take_half_the_bytes_and_change_no_bit():
    plain, small = graph(weights(1, True), weights(2, True)), compact(graph(weights(1, True), weights(2, True)))
    onnx.checker.check_model(small, full_check=True)
    assert size(small) < 0.55 * size(plain)
    np.testing.assert_array_equal(run(small, X), run(plain, X))


def test_weights_that_do_not_survive_float16_are_kept():
    plain, small = graph(weights(1, False), weights(2, False)), compact(graph(weights(1, False), weights(2, False)))
    assert size(small) == size(plain)
    np.testing.assert_array_equal(run(small, X), run(plain, X))


def test_one_value_out_of_range_keeps_the_whole_tensor():
    first = weights(1, True)
    first[0, 0] = 1e6
    small = compact(graph(first, weights(2, True)))
    np.testing.assert_array_equal(run(small, X), run(graph(first, weights(2, True)), X))
    kinds = {t.name: t.data_type for t in small.graph.initializer}
    assert kinds == {"first": onnx.TensorProto.FLOAT, "second.float16": onnx.TensorProto.FLOAT16}


def test_equal_tensors_are_stored_once():
    same = weights(1, False)
    plain, small = graph(same, same.copy()), compact(graph(same, same.copy()))
    assert [t.name for t in small.graph.initializer] == ["first"]
    np.testing.assert_array_equal(run(small, X), run(plain, X))


def test_minus_zero_is_not_shared_with_zero():
    zero = np.zeros((48, 48), np.float32)
    assert len(compact(graph(zero, -zero)).graph.initializer) == 2

# SPDX-License-Identifier: Apache-2.0
"""Imports ONNX models in tests, and runs what came of them through the program."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from dosemap_tools import weights_file
from dosemap_tools.importing import proof
from dosemap_tools.importing.convert import convert
from dosemap_tools.importing.network import Port, Statement
from onnx import helper, numpy_helper
from program import assert_close

CARD = {"name": "net", "version": "1", "summary": "", "licence": "", "trained": False}


def ports(name, *channels):
    """Return one port for each number of channels; their values mean nothing."""
    return tuple(Port(f"{name}{i}", "other", "1", n) for i, n in enumerate(channels))


def statement(shape, inputs, outputs, spatial_axes="zyx"):
    """Return a statement for patches of `shape` in the network's own axes."""
    patch = tuple(shape) if spatial_axes == "xyz" else tuple(shape)[::-1]
    return Statement("net", patch, spatial_axes, "RAS", inputs, outputs)


def run_network(network, inputs, folder):
    """Return what the program makes of inputs (N, C, a, b, c), as the original has its outputs."""
    path = folder / "net.safetensors"
    weights_file.write(path, network.graph, CARD, {}, network.tensors)
    patches = {}
    for tensor, values in zip(network.inputs, inputs, strict=True):
        begins = np.cumsum(tensor.channels)[:-1]
        parts = np.split(np.asarray(values, np.float32), begins, axis=1)
        patches |= dict(zip(tensor.ports, parts, strict=True))
    names = [port for tensor in network.outputs for port in tensor.ports]
    found = proof.run_program(proof.find_program(None), path, patches, names)
    results = []
    for tensor in network.outputs:
        joined = np.concatenate([found[port] for port in tensor.ports], axis=1)
        results.append(joined.reshape(len(joined), *tensor.shape))
    return results


def onnx_model(nodes, weights=None, *, opset=20, inputs=None, outputs=("y",), domains=()):
    """Return a model of nodes (operator, inputs, outputs, attributes).

    inputs: name → shape, whose batch is left open if it is None; weights: name → array.
    """
    made = []
    for i, (kind, sources, results, attributes) in enumerate(nodes):
        node = helper.make_node(kind, sources, results, name=f"node_{i}", **attributes)
        made.append(node)
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    types = [
        helper.make_tensor_value_info(
            k, onnx.TensorProto.FLOAT, ["N" if n is None else n for n in v]
        )
        for k, v in (inputs or {"x": (None, 3, 7, 8, 9)}).items()
    ]
    ends = [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, None) for k in outputs]
    graph = helper.make_graph(made, "net", types, ends, tensors)
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", opset), *domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run_onnx(model, inputs):
    """Return ONNX Runtime's outputs, computed as the file says it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def imported(model, stated):
    """Return the network of an onnx.ModelProto."""
    return convert(ir.serde.deserialize_model(model), stated, "net.onnx")


def check_import(
    model, shape, folder, *, inputs, outputs=None, spatial_axes="zyx", tolerance=2e-6, samples=2
):
    """Import, run both sides on random patches of `shape`, compare, and return the network.

    inputs, outputs: ports; one for each of the network's outputs if they are not given.
    """
    rng = np.random.default_rng(5)
    channels = sum(port.channels for port in inputs)
    patches = [rng.standard_normal((samples, channels, *shape)).astype(np.float32)]
    expected = run_onnx(model, patches)
    if outputs is None:
        outputs = ports("out", *(values.shape[1] for values in expected))
    network = imported(model, statement(shape, inputs, outputs, spatial_axes))
    found = run_network(network, patches, folder)
    assert len(found) == len(expected)
    for result, reference in zip(found, expected, strict=True):
        assert_close(result, reference, tolerance)
    return network


def operators(network):
    """Return the operators of a network's nodes, in their order."""
    return [node["op"] for node in network.graph["nodes"]]

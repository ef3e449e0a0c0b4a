# SPDX-License-Identifier: Apache-2.0
"""An ONNX model made plain: one patch, concrete shapes, only what computes.

Functions are inlined, the input has the size of the patch, every shape that follows is known, what
depends on constants alone is computed, and what nothing needs is gone. A batch that the file leaves
open is 1 from here on: that decides all shape arithmetic, and the graph of weights/FORMAT.md has no
batch that could be mistaken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from dosemap_tools.importing.network import NetworkImportError

_FREE_BYTES = 16 << 20  # what constants may take beyond the file's own weights

# Operators whose value on constants is computed: arithmetic and moving of data. The others are
# not: a file must not have us run what it likes.
# fmt: off
_FOLDED = {
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip",
    "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Exp", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range",
    "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Reshape", "Round", "ScatterElements", "ScatterND", "Sigmoid", "Sign",
    "Sin", "Size", "Slice", "Softplus", "Sqrt", "Squeeze", "Sub",
    "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where", "Xor",
}
# fmt: on

Originals = dict[str, ir.TensorProtocol]


def simplify(model: ir.Model, spatial_shape: Sequence[int], channels: int, where: str) -> Originals:
    """Simplify in place for patches of `spatial_shape`, in the network's own axes.

    channels: those of an input whose own number the file leaves open. Returns the weights as the
    file has them, by name: constants that follow from them have the onnxscript metadata
    FOLDED_FROM_KEY.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # what fails is reported by us
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    originals = _weights(model)
    try:
        common.InlinePass()(model)
        common.TopologicalSortPass()(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.IdentityEliminationPass()(model)
    except Exception as error:  # the passes raise whatever a malformed model leads to
        raise NetworkImportError(
            f"the network cannot be read: {error}",
            where=where,
            remedy="check the file with onnx.checker.check_model, or export the network again",
        ) from error
    _refuse_training(model, where)
    _set_patch(model, spatial_shape, channels, where)
    _fold(model, where)
    common.RemoveUnusedNodesPass()(model)
    return originals


def _refuse_training(model: ir.Model, where: str) -> None:
    """Refuse batch normalisation and dropout that the file has in training mode."""
    for node in model.graph:
        training = False
        if node.op_type == "BatchNormalization":
            mode = node.attributes.get("training_mode")
            mean_and_variance = [v for v in node.outputs[1:] if v.name]
            old = model.opset_imports.get("", 1) < 14  # where the outputs tell
            training = bool(mode and mode.as_int()) or (old and bool(mean_and_variance))
        elif node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
            mode_tensor = node.inputs[2].const_value
            training = mode_tensor is None or bool(mode_tensor.numpy().any())
        if training:
            raise NetworkImportError(
                f"node '{node.name}' ({node.op_type}) is in training mode",
                where=where,
                remedy="call model.eval() before the export",
            )


def _weights(model: ir.Model) -> Originals:
    initializers = model.graph.initializers.items()
    return {name: v.const_value for name, v in initializers if v.const_value is not None}


def _set_patch(model: ir.Model, spatial_shape: Sequence[int], channels: int, where: str) -> None:
    """Give the inputs the size of the patch and forget all other shapes, which follow from it."""
    for value in model.graph.inputs:
        if value.dtype is None or not value.dtype.is_floating_point():
            kind = "unknown" if value.dtype is None else value.dtype.name
            raise NetworkImportError(
                f"input '{value.name}' is of type {kind}",
                where=where,
                remedy="inputs are images, of floating-point numbers; export without this one",
            )
        if value.shape is None or len(value.shape) != 5:
            rank = "unknown" if value.shape is None else f"{len(value.shape)}"
            raise NetworkImportError(
                f"input '{value.name}' has {rank} dimensions: {value.shape}",
                where=where,
                remedy="networks take 5: batch, channels and three spatial axes; "
                "a network for 2-D slices cannot be imported",
            )
        wanted = (1, channels, *spatial_shape)
        shape = [d if isinstance(d, int) else w for d, w in zip(value.shape, wanted, strict=True)]
        if tuple(shape[2:]) != tuple(spatial_shape):
            raise NetworkImportError(
                f"input '{value.name}' is made for patches of {_product(shape[2:])} voxels, "
                f"not {_product(spatial_shape)}",
                where=where,
                remedy="give that patch size, or export with dynamic spatial axes",
            )
        value.shape = ir.Shape(shape)
    for node in model.graph:
        for output in node.outputs:
            output.shape = None


def _product(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _fold(model: ir.Model, where: str) -> None:
    """Infer shapes and compute constants, in one walk; bounded by the size of the file's weights.

    A network's constants follow from its weights; one that claims more is left as it is, and
    refused as an operator that the graph does not have.
    """
    largest = _FREE_BYTES + sum(tensor.nbytes for tensor in _weights(model).values())
    left = 16 * largest  # a weight norm, say, takes several steps over the weights

    def should_fold(node: ir.Node) -> bool:
        nonlocal left
        size = 0
        for output in node.outputs:
            shape = static_shape(output)
            if shape is None:
                return False
            size += 8 * math.prod(shape)
        if node.domain not in ("", "ai.onnx") or node.op_type not in _FOLDED:
            return False
        read = sum(v.const_value.nbytes for v in node.inputs if v and v.const_value is not None)
        if size > largest or size + read > left:
            return False
        left -= size + read
        return True

    # onnx infers no shape for these: version 18 is deprecated, 21 a function. The other keeps them.
    kind = "GroupNormalization"
    grouped = [(n, list(n.attributes.values())) for n in model.graph if n.op_type == kind]
    for node, _ in grouped:
        node.op_type = "InstanceNormalization"
        node.attributes.clear()
    try:
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=1 << 40,
            output_size_limit=1 << 40,
            should_fold=should_fold,
        )
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.IdentityEliminationPass()(model)
    except Exception as error:  # evaluators raise whatever a malformed model leads to
        raise NetworkImportError(
            f"its constants cannot be computed: {error}",
            where=where,
            remedy="check the file with onnx.checker.check_model, or export the network again",
        ) from error
    finally:
        for node, attributes in grouped:
            node.op_type = kind
            for attribute in attributes:
                node.attributes.add(attribute)


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return a value's shape, None where it is not known in numbers."""
    if value.shape is None:
        return None
    dimensions = tuple(d for d in value.shape if isinstance(d, int))
    return dimensions if len(dimensions) == len(value.shape) else None


def undefined_because(node: ir.Node, opset: int) -> str:
    """Return why the shape of a node's output is not known, in the words of onnx; or nothing."""
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or not value.name or value.type is None or value.shape is None:
            continue
        proto = ir.serde.serialize_type(value.type)
        ir.serde.serialize_shape_into(proto, value.shape)
        types[value.name] = proto
        if value.const_value is not None and value.const_value.size <= 20:
            data[value.name] = ir.serde.serialize_tensor(value.const_value)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except Exception as error:  # whatever onnx says about it is the answer
        return " ".join(str(error).split())
    return ""

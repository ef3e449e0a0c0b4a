# SPDX-License-Identifier: Apache-2.0
"""ONNX operators to nodes of weights/FORMAT.md, by one table."""

from __future__ import annotations

from typing import NoReturn

import onnx_ir as ir

from dosemap_tools.importing import lower_layers, lower_layout, lower_pointwise, lower_sampling
from dosemap_tools.importing.graph_builder import GraphBuilder, Made
from dosemap_tools.importing.lowering import Rules, Step
from dosemap_tools.importing.network import NetworkImportError
from dosemap_tools.importing.simplify import undefined_because

RULES = Rules()
for _part in (lower_layers, lower_layout, lower_pointwise, lower_sampling):
    RULES |= _part.RULES

_QUANTISED = "export the network in float32, before it is quantised"
_RECURRENT = "recurrent layers are not possible; use convolutions"
_LOGIC = "conditions on values are not possible; Relu, LeakyRelu and clipping to numbers are"
_BRANCHES = "export the network with torch.export or tracing, which decide branches and loops"
_COMPARED = "take it off the end of the network; the graph ends in the values themselves"
_RATIONAL = "Relu, LeakyRelu, Elu, Gelu, Sigmoid, Tanh and Softplus are possible instead"
_REDUCED = (
    "the mean or sum over all three spatial axes, or over the channels alone, is possible; state "
    "the spatial axes together, and keep the reduced axes (keepdim) where channels follow"
)
_LARGEST = "the largest value over all three spatial axes together is possible (MaxPool)"
_SIZES = "shapes must follow from the patch size; export with a fixed patch size"

# What to do about operators that the graph does not have.
HINTS = {
    **dict.fromkeys(["LSTM", "GRU", "RNN"], _RECURRENT),
    **dict.fromkeys(["If", "Loop", "Scan", "SequenceAt", "SequenceConstruct"], _BRANCHES),
    **dict.fromkeys(["ArgMax", "ArgMin", "TopK", "LogSoftmax", "Hardmax", "OneHot"], _COMPARED),
    **dict.fromkeys(["Where", "Equal", "Greater", "Less", "And", "Or", "Not", "IsNaN"], _LOGIC),
    **dict.fromkeys(["GreaterOrEqual", "LessOrEqual", "ThresholdedRelu", "Shrink", "Sign"], _LOGIC),
    **dict.fromkeys(["Exp", "Log", "Sqrt", "Reciprocal", "Softsign", "Erf", "Sin"], _RATIONAL),
    **dict.fromkeys(["ReduceMean", "ReduceSum", "ReduceL2"], _REDUCED),
    **dict.fromkeys(["ReduceMax", "ReduceMin"], _LARGEST),
    **dict.fromkeys(["Shape", "Size", "ConstantOfShape", "Range", "NonZero"], _SIZES),
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear", "QLinearConv"], _QUANTISED),
    **dict.fromkeys(["ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"], _QUANTISED),
    "Softmax": "Sigmoid is possible for each channel by itself; attention over voxels is not",
    "LayerNormalization": "GroupNormalization with one group normalises all channels and voxels",
    "Einsum": "Conv, and Gemm with a constant matrix, are possible",
    "DepthToSpace": "ConvTranspose with stride goes up; pixel shuffling is not possible",
    "SpaceToDepth": "Conv with stride goes down; pixel shuffling is not possible",
    **dict.fromkeys(["Max", "Min"], "the larger or smaller of a value and a number is possible"),
    "MeanVarianceNormalization": "InstanceNormalization and GroupNormalization are possible",
    "LpNormalization": "InstanceNormalization and GroupNormalization are possible",
    "LRN": "InstanceNormalization and GroupNormalization are possible",
    "LpPool": "AveragePool and MaxPool are possible",
    "MaxUnpool": "go up by ConvTranspose or Resize",
    "GridSample": "Resize is possible; sampling at computed places is not",
    "DeformConv": "Conv is possible; sampling at computed places is not",
    "RandomNormalLike": "call model.eval() before the export: results must not be random",
    "RandomUniformLike": "call model.eval() before the export: results must not be random",
}


def lower(model: ir.Model, builder: GraphBuilder) -> list[Made]:
    """Add the network's nodes to a graph whose inputs are bound; return the network's outputs."""
    opset = model.opset_imports.get("", 1)
    for node in model.graph:
        step = Step(node, builder, opset)
        try:
            _lower_node(step)
        except NetworkImportError:
            raise
        except Exception as error:  # attributes of the wrong type or number, in a malformed file
            step.fail(
                f"it cannot be read: {error}",
                "check the file with onnx.checker.check_model, or export the network again",
            )
    return [_output(value, builder) for value in model.graph.outputs]


def _lower_node(step: Step) -> None:
    node = step.node
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        _refuse(step)
    for output in node.outputs:
        if output.shape is None and (output.uses() or output.is_graph_output()):
            reason = undefined_because(node, step.opset)
            step.fail(
                reason or f"the shape of its output '{output.name}' does not follow",
                "if the model is valid, it is not defined for this patch size: state a multiple of "
                "its strides",
            )
    result = rule(step)
    made = result if isinstance(result, list) else [result]  # Split alone has several
    for output, one in zip(node.outputs, made, strict=False):
        if one is not None:
            step.builder.bind(output, one.name, one.shape, one.reshaped_by)


def _refuse(step: Step) -> NoReturn:
    node = step.node
    if node.domain not in ("", "ai.onnx"):
        step.fail(
            f"the operator is of the domain '{node.domain}'",
            "export the network with standard ONNX operators, before a runtime rewrites it",
        )
    known = ", ".join(sorted(RULES))
    step.fail(
        "the graph does not have this operator", HINTS.get(node.op_type, f"possible are: {known}")
    )


def _output(value: ir.Value, builder: GraphBuilder) -> Made:
    made = builder.made(value)
    shape = builder.shape(value)
    if made is None:
        raise NetworkImportError(
            f"its output '{value.name}' does not depend on its inputs",
            where=builder.where,
            remedy="export the network without it",
        )
    if not shape or shape[0] != made.shape[0]:
        raise NetworkImportError(
            f"its output '{value.name}' has the shape {list(shape)}, which is not one per sample",
            where=builder.where,
            remedy="the first axis must be the batch; networks that join samples cannot run "
            "patch by patch",
        )
    return made

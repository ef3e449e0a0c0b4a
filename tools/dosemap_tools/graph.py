# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch module to the graph of weights/FORMAT.md.

The module is walked symbolically (torch.fx), so that what is written is what `forward` does. Each
kind of layer that may occur has one function below; a layer without one is refused by name.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

Json = dict[str, Any]


class GraphError(ValueError):
    """A module holds something that the graph format does not have."""


def _three(value: int | Sequence[int]) -> list[int]:
    return [int(value)] * 3 if isinstance(value, int) else [int(v) for v in value]


def _convolution_attributes(module: nn.Conv3d | nn.ConvTranspose3d) -> Json:
    if isinstance(module.padding, str):
        raise GraphError(f"padding={module.padding!r} is not supported; give numbers")
    if module.padding_mode != "zeros":
        raise GraphError(f"padding_mode={module.padding_mode!r} is not supported; use 'zeros'")
    attributes: Json = {"kernel_shape": _three(module.kernel_size)}
    optional = {
        "strides": (_three(module.stride), [1] * 3),
        "dilations": (_three(module.dilation), [1] * 3),
        "pads": (_three(module.padding) * 2, [0] * 6),
        "group": (module.groups, 1),
    }
    if isinstance(module, nn.ConvTranspose3d):
        optional["output_padding"] = (_three(module.output_padding), [0] * 3)
    return attributes | {key: v for key, (v, default) in optional.items() if v != default}


def _max_pool_attributes(module: nn.MaxPool3d) -> Json:
    return {
        "kernel_shape": _three(module.kernel_size),
        "strides": _three(module.stride),
        "pads": _three(module.padding) * 2,
        "dilations": _three(module.dilation),
        "ceil_mode": int(module.ceil_mode),
    }


def _average_pool_attributes(module: nn.AvgPool3d) -> Json:
    if module.divisor_override:
        raise GraphError("divisor_override of AvgPool3d is not supported")
    return {
        "kernel_shape": _three(module.kernel_size),
        "strides": _three(module.stride),
        "pads": _three(module.padding) * 2,
        "ceil_mode": int(module.ceil_mode),
        "count_include_pad": int(module.count_include_pad),
    }


def _upsample_attributes(module: nn.Upsample) -> Json:
    mode = {"nearest": "nearest", "trilinear": "linear"}.get(module.mode)
    if mode is None or module.scale_factor is None:
        raise GraphError(f"Upsample of mode {module.mode!r} needs nearest or trilinear and a scale")
    scale = module.scale_factor
    scales = [float(s) for s in (scale if isinstance(scale, tuple) else (scale,) * 3)]
    if mode == "nearest":
        return {
            "mode": mode,
            "scales": scales,
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }
    coordinates = "align_corners" if module.align_corners else "half_pixel"
    return {"mode": mode, "scales": scales, "coordinate_transformation_mode": coordinates}


def _normalisation(module: nn.Module, names: list[str]) -> list[str]:
    if getattr(module, "weight", None) is None:
        raise GraphError(f"{type(module).__name__} without affine parameters is not supported")
    if isinstance(module, nn.InstanceNorm3d) and module.track_running_stats:
        raise GraphError("InstanceNorm3d with running statistics is not supported")
    return names


_Rule = tuple[str, Callable[[Any], Json], list[str]]
_POINTWISE: _Rule = ("", lambda _: {}, [])
_RULES: dict[type[nn.Module], _Rule] = {
    nn.Conv3d: ("Conv", _convolution_attributes, ["weight", "bias"]),
    nn.ConvTranspose3d: ("ConvTranspose", _convolution_attributes, ["weight", "bias"]),
    nn.BatchNorm3d: (
        "BatchNormalization",
        lambda m: {"epsilon": m.eps},
        ["weight", "bias", "running_mean", "running_var"],
    ),
    nn.InstanceNorm3d: (
        "InstanceNormalization",
        lambda m: {"epsilon": m.eps},
        ["weight", "bias"],
    ),
    nn.GroupNorm: (
        "GroupNormalization",
        lambda m: {"num_groups": m.num_groups, "epsilon": m.eps},
        ["weight", "bias"],
    ),
    nn.LeakyReLU: ("LeakyRelu", lambda m: {"alpha": m.negative_slope}, []),
    nn.PReLU: ("PRelu", lambda _: {}, ["weight"]),
    nn.ELU: ("Elu", lambda m: {"alpha": m.alpha}, []),
    nn.GELU: ("Gelu", lambda m: {"approximate": m.approximate}, []),
    nn.ReLU: ("Relu", lambda _: {}, []),
    nn.Sigmoid: ("Sigmoid", lambda _: {}, []),
    nn.Tanh: ("Tanh", lambda _: {}, []),
    nn.Softplus: ("Softplus", lambda _: {}, []),
    nn.Identity: ("Identity", lambda _: {}, []),
    nn.Dropout3d: ("Identity", lambda _: {}, []),
    nn.MaxPool3d: ("MaxPool", _max_pool_attributes, []),
    nn.AvgPool3d: ("AveragePool", _average_pool_attributes, []),
    nn.Upsample: ("Resize", _upsample_attributes, []),
}
_FUNCTIONS: dict[Any, str] = {
    operator.add: "Add",
    torch.add: "Add",
    operator.mul: "Mul",
    torch.mul: "Mul",
    operator.sub: "Sub",
    torch.sub: "Sub",
    torch.relu: "Relu",
    F.relu: "Relu",
    torch.sigmoid: "Sigmoid",
    torch.tanh: "Tanh",
}


def _module_node(target: str, module: nn.Module, inputs: list[str], output: str) -> Json:
    rule = _RULES.get(type(module))
    if rule is None:
        raise GraphError(f"{target} is a {type(module).__name__}, which the graph does not have")
    if isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
        _normalisation(module, rule[2])
    weights = [f"{target}.{key}" for key in rule[2] if getattr(module, key) is not None]
    return {
        "op": rule[0],
        "name": target,
        "inputs": inputs + weights,
        "outputs": [output],
        "attributes": rule[1](module),
    }


def _function_node(node: fx.Node, inputs: list[str], output: str) -> Json:
    attributes: Json = {}
    if node.target is torch.cat:
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        kind, attributes = "Concat", {"axis": axis}
    else:
        kind = _FUNCTIONS.get(node.target, "")
        if not kind or len(inputs) != len(node.args):
            raise GraphError(f"{node.name} calls {node.target}, which the graph does not have")
    return {
        "op": kind,
        "name": node.name,
        "inputs": inputs,
        "outputs": [output],
        "attributes": attributes,
    }


def graph_of(
    module: nn.Module,
    name: str,
    *,
    patch_size: Sequence[int] = (32, 32, 32),
    voxel_size_mm: Sequence[float] | None = None,
    spatial_axes: str = "xyz",
    orientation: str = "RAS",
    quantity: str = "uptake",
    input_intensity: Sequence[Json] = (),
    output_intensity: Sequence[Json] = (),
) -> Json:
    """Return the graph of a module with one PET input and one dose output."""
    traced = fx.symbolic_trace(module)
    values: dict[fx.Node, str] = {}
    nodes: list[Json] = []
    result: fx.Node | None = None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = "pet"
        elif node.op == "output":
            result = node.args[0]
        else:
            inputs = [values[n] for n in node.all_input_nodes]
            values[node] = node.name
            if node.op == "call_module":
                layer = traced.get_submodule(str(node.target))
                nodes.append(_module_node(str(node.target), layer, inputs, node.name))
            elif node.op == "call_function":
                nodes.append(_function_node(node, inputs, node.name))
            else:
                raise GraphError(f"{node.name} ({node.op}) cannot be expressed in the graph")
    if list(values.values()).count("pet") != 1 or result is None or not nodes:
        raise GraphError(f"{name} must have one input, one output and at least one layer")
    for node_json in nodes:
        node_json["inputs"] = ["dose" if v == values[result] else v for v in node_json["inputs"]]
        node_json["outputs"] = ["dose" if v == values[result] else v for v in node_json["outputs"]]
    unit = {"uptake": "g/mL", "suv": "g/mL", "hu": "HU"}[quantity]
    return {
        "graph_version": 1,
        "name": name,
        "spatial_axes": spatial_axes,
        "orientation": orientation,
        "patch_size": [int(n) for n in patch_size],
        "voxel_size_mm": None if voxel_size_mm is None else [float(v) for v in voxel_size_mm],
        "inputs": [
            {
                "name": "pet",
                "quantity": quantity,
                "unit": unit,
                "channels": 1,
                "intensity": list(input_intensity),
            }
        ],
        "outputs": [
            {
                "name": "dose",
                "quantity": "dose_per_activity",
                "unit": "Gy/GBq",
                "channels": 1,
                "intensity": list(output_intensity),
            }
        ],
        "nodes": nodes,
    }


def weight_names(graph: Json) -> list[str]:
    """Return the weights that a graph names, in the order of their first use."""
    made = {port["name"] for port in graph["inputs"]}
    made |= {output for node in graph["nodes"] for output in node["outputs"]}
    used = (name for node in graph["nodes"] for name in node["inputs"])
    return list(dict.fromkeys(name for name in used if name and name not in made))


def graph_text(graph: Json) -> str:
    """Return a graph as JSON for people: one line per key, port and node."""
    lines = []
    for key, value in graph.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join("    " + json.dumps(item) for item in value)
            lines.append(f'  "{key}": [\n{items}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"

# SPDX-License-Identifier: Apache-2.0
"""Activations and arithmetic, voxel by voxel; other spellings of them are rejoin.py's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dosemap_tools.importing.graph_builder import Made, attribute_number
from dosemap_tools.importing.lowering import Rules, Step
from dosemap_tools.importing.network import Json

RULES = Rules()

# Operators without attributes that the graph has under the same name.
_SAME = ("Relu", "Sigmoid", "Tanh", "Softplus")
_ARITHMETIC = {"Add": "Add", "Sub": "Sub", "Mul": "Mul", "Div": "Mul"}
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_LARGEST = 3.4028234e38  # of float32: bounds from there on are none
_REMEDY_SIZES = (
    "operands of one shape, or one whose channels or spatial axes are 1, or a constant with one "
    "value or one per channel are possible"
)


@RULES.lowers(*_SAME)
def same(step: Step) -> Made:
    """Lower what has no attributes."""
    data = step.any_axes()
    return step.emit(step.node.op_type, [data.name], like=data)


@RULES.lowers("LeakyRelu", "Elu")
def sloped(step: Step) -> Made:
    """Lower what has a slope."""
    data = step.any_axes()
    alpha = step.number("alpha", {"LeakyRelu": 0.01, "Elu": 1.0}[step.node.op_type])
    return step.emit(step.node.op_type, [data.name], attributes={"alpha": alpha}, like=data)


@RULES.lowers("Gelu")
def gelu(step: Step) -> Made:
    """Lower both forms of Gelu."""
    data, how = step.any_axes(), step.attribute("approximate", "none")
    attributes: Json = {} if how == "none" else {"approximate": how}
    return step.emit("Gelu", [data.name], attributes=attributes, like=data)


@RULES.lowers("Clip")
def clip(step: Step) -> Made:
    """Lower bounds, which older versions have as attributes; some are none, or a Relu."""
    data, low, high = step.any_axes(), _bound(step, "min", 1), _bound(step, "max", 2)
    if low > high or low >= _LARGEST or high <= -_LARGEST:
        step.fail(
            f"its min is {low} and its max {high}", "give it bounds with numbers between them"
        )
    if low <= -_LARGEST and high >= _LARGEST:
        return data
    if low == 0 and high >= _LARGEST:
        return step.emit("Relu", [data.name], like=data)
    given = {"min": low, "max": high}
    attributes = {name: bound for name, bound in given.items() if abs(bound) < _LARGEST}
    return step.emit("Clip", [data.name], attributes=attributes, like=data)


def _bound(step: Step, name: str, index: int) -> float:
    found = step.attribute(name)
    if found is None:
        found = step.constant(index, name)
    if found is None:
        return -math.inf if name == "min" else math.inf
    bound = np.asarray(found, np.float32)
    if bound.size != 1 or not (bound == bound).all():
        step.fail(f"its {name} is {found}", "give it one number")
    return attribute_number(float(bound.reshape(())))


@RULES.lowers("PRelu")
def prelu(step: Step) -> Made:
    """Lower a slope that is learnt: one, or one per channel."""
    data = step.data()
    return step.emit("PRelu", [data.name, _add_operand(step, 1, data, "weight")], like=data)


@RULES.lowers("Neg")
def negated(step: Step) -> Made:
    """Lower -x."""
    return step.with_scalar("Mul", step.any_axes(), -1.0, "minus_one")


@RULES.lowers("Pow")
def power(step: Step) -> Made:
    """Lower x to the power of 1, 2 or 3."""
    exponent = step.constant(1, "exponent")
    data = step.any_axes()
    count = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else 0
    if count not in (1, 2, 3):
        step.fail(f"its exponent is {exponent}", "1, 2 and 3 are possible")
    result = data
    for i in range(int(count) - 1):
        part = "" if i == count - 2 else "square"
        result = step.emit("Mul", [result.name, data.name], part=part, like=data)
    return result


def _operand(step: Step, index: int, other: Made, role: str = "value") -> tuple[str, np.ndarray]:
    """Return a constant operand as the graph has it: one value, or one per channel."""
    name, array = step.parameter(index, role)
    rank, channels = len(step.shape(1 - index)), other.shape[1]
    if array.size == 1 and array.ndim <= rank:
        return name, array
    per_channel = _per_channel(array, rank, other.shape)
    if per_channel.size == 1:
        return f"{step.label}.value", per_channel.reshape(())
    if per_channel.size != channels:
        step.fail(
            f"its constant '{name}' {list(array.shape)} is neither one value nor one for "
            f"each of {channels} channels",
            "a constant for each voxel holds for one patch size only; make it an input of the "
            "network, or leave it out",
        )
    if array.size != channels:
        return f"{step.label}.value", per_channel.reshape(channels, 1, 1, 1)
    five_axes = array.ndim >= 4 and array.shape[-4] == channels
    return name, array if five_axes else array.reshape(channels, 1, 1, 1)


def _per_channel(array: np.ndarray, rank: int, shape: Sequence[int]) -> np.ndarray:
    """Return one value per channel of a constant that says no more; nothing of others."""
    nothing = np.empty(0, np.float32)
    if array.ndim > rank:
        return nothing
    dimensions = [1] * (rank - array.ndim) + list(array.shape)
    spatial = zip(dimensions[2:], shape[2:], strict=False)
    if dimensions[0] != 1 or any(n not in (1, m) for n, m in spatial):
        return nothing
    full = array.reshape(*dimensions[:2], -1)
    first = full[:, :, :1]
    return first if (full == first).all() else nothing


def _add_operand(step: Step, index: int, other: Made, role: str = "value") -> str:
    return step.builder.add_weight(*_operand(step, index, other, role))


def _add_reciprocal(step: Step, index: int, other: Made) -> str:
    name, values = _operand(step, index, other)
    with np.errstate(divide="ignore", over="ignore"):
        values = np.float32(1) / values
    if not np.isfinite(values).all():
        step.fail(f"its divisor '{name}' holds zeros", "divide by other numbers")
    return step.builder.add_weight(name, values, "reciprocal")


@RULES.lowers("Add", "Sub", "Mul", "Div")
def arithmetic(step: Step) -> Made:
    """Lower operands that broadcast as the graph's do; dividing by a constant multiplies."""
    kind = step.node.op_type
    constant = [i for i in (0, 1) if step.is_constant(i)]
    if len(constant) != 1:
        return _of_two(step)
    index = constant[0]
    other = step.any_axes(1 - index)
    if step.output_shape() != step.shape(1 - index):
        step.fail(
            f"its constant {list(step.shape(index))} enlarges the other operand "
            f"{list(step.shape(1 - index))}",
            _REMEDY_SIZES,
        )
    _, values = step.parameter(index, "value")
    if values.size == 1:
        if values.reshape(()) == _NEUTRAL[kind] and (index == 1 or kind in ("Add", "Mul")):
            return other
    else:
        other = step.data(1 - index)
    if kind == "Div" and index == 0:
        step.fail("it divides by a computed value", "dividing by a constant is possible")
    name = (_add_reciprocal if kind == "Div" else _add_operand)(step, index, other)
    inputs = [name, other.name] if index == 0 else [other.name, name]
    return step.emit(_ARITHMETIC[kind], inputs, like=other)


def _of_two(step: Step) -> Made:
    if step.node.op_type == "Div":
        step.fail("it divides by a computed value", "dividing by a constant is possible")
    a, b = step.any_axes(0), step.any_axes(1)
    return _joined(step, step.node.op_type, a, b, [step.shape(0), step.shape(1)])


def _joined(
    step: Step, kind: str, a: Made, b: Made, shapes: list[tuple[int, ...]], part: str = ""
) -> Made:
    """Join two computed values, whose axes are the same: the graph's, or the same others."""
    if shapes[0] == shapes[1] and a.shape == b.shape:
        return step.emit(kind, [a.name, b.name], part=part, like=a)
    for i in (0, 1):
        step.data(i)  # refuses other axes
    result = tuple(max(m, n) for m, n in zip(a.shape, b.shape, strict=True))
    if len(shapes[0]) != len(shapes[1]) or result not in (a.shape, b.shape):
        step.fail(f"its operands are {list(shapes[0])} and {list(shapes[1])}", _REMEDY_SIZES)
    return step.emit(kind, [a.name, b.name], result, part=part)


@RULES.lowers("Sum", "Mean")
def total(step: Step) -> Made:
    """Lower sums and means of several values of one shape."""
    values = [step.any_axes(i) for i in range(len(step.node.inputs))]
    mean, result = step.node.op_type == "Mean", values[0]
    shapes = {step.shape(i) for i in range(len(values))}
    if len(shapes) > 1:
        step.fail(f"its operands have the shapes {sorted(shapes)}", "one shape is possible")
    for i, value in enumerate(values[1:]):
        part = "" if i == len(values) - 2 and not mean else f"sum_{i + 2}"
        result = _joined(step, "Add", result, value, [step.shape(0)] * 2, part)
    if mean and len(values) > 1:
        return step.with_scalar("Mul", result, 1 / len(values), "mean")
    return result

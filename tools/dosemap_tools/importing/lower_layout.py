# SPDX-License-Identifier: Apache-2.0
"""Operators that move values: joins, slices, and axes that are only named differently."""

from __future__ import annotations

import numpy as np

from dosemap_tools.importing.graph_builder import Made, plain_shape
from dosemap_tools.importing.lowering import Rules, Step

RULES = Rules()

TO_THE_END = 2**31 - 1
_FLOAT_TYPES = {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"}


def other_axes(step: Step) -> Made:
    """Let the elements stand as they are, in the axes that the network gives them."""
    data, shape = step.any_axes(), step.output_shape()
    by = "" if plain_shape(shape) == data.shape else data.reshaped_by or step.label
    return Made(data.name, data.shape, by)


@RULES.lowers("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
def passed_on(step: Step) -> Made:
    """Pass on what keeps the order of the elements; a step that needs the five axes looks."""
    if step.node.op_type == "Dropout" and any(mask.uses() for mask in step.node.outputs[1:]):
        step.fail("its mask is used", "call model.eval() before the export")
    return other_axes(step)


@RULES.lowers("Cast", "CastLike")
def cast(step: Step) -> Made:
    """Pass on what stays a float; the graph computes in one precision."""
    types = [v.dtype.name if v and v.dtype else "?" for v in (step.input(0), step.node.outputs[0])]
    if not _FLOAT_TYPES.issuperset(types):
        step.fail(
            f"it makes {types[-1].lower()} of {types[0].lower()}",
            "the graph has floating-point values only",
        )
    return other_axes(step)


@RULES.lowers("Transpose")
def transpose(step: Step) -> Made:
    """Pass on what moves axes of length 1 only."""
    shape = step.shape(0)
    order = list(step.attribute("perm", range(len(shape))[::-1]))
    moved = [axis for axis in order if shape[axis] > 1]
    if moved != sorted(moved):
        step.fail(
            f"it moves axes: {order} of {list(shape)}",
            "the graph has the axes (N, C, a, b, c) throughout; write the network without "
            "permuting them (channels last, attention over voxels)",
        )
    return other_axes(step)


@RULES.lowers("Expand", "Tile")
def repeat(step: Step) -> Made:
    """Pass on what repeats nothing."""
    step.any_axes()  # refuses constants
    if step.output_shape() != step.shape(0):
        step.fail(
            f"it makes {list(step.output_shape())} of {list(step.shape(0))}",
            "repeating a whole tensor along its channels is possible, with Concat",
        )
    return other_axes(step)


@RULES.lowers("Concat")
def concat(step: Step) -> Made:
    """Lower a join along the channels."""
    parts = [step.data(i) for i in range(len(step.node.inputs))]
    axis = int(step.attribute("axis", 1))
    if len(parts) == 1:
        return other_axes(step)
    if axis % len(step.shape(0)) != 1:
        step.fail(f"it joins along axis {axis}", "joining along the channels, axis 1, is possible")
    return step.emit("Concat", [part.name for part in parts], attributes={"axis": 1})


def cut(
    step: Step,
    data: Made,
    ranges: list[tuple[int, int, int, int]],
    *,
    wanted: tuple[int, ...] | None = None,
) -> Made:
    """Lower slices (axis, start, end, step) of one value; those that take all are left out.

    wanted: the shape as the network has it, where the result has the same axes.
    """
    kept, shape = [], list(data.shape)
    for axis, start, end, stride in ranges:
        size = data.shape[axis]
        taken = len(range(size)[start:end:stride])
        if stride < 1 or taken < 1:
            step.fail(
                f"it takes {start}:{end}:{stride} of {size} along axis {axis}",
                "at least one element, in steps of 1 or more, is possible",
            )
        if taken == size:
            continue
        if axis == 0:
            step.fail("it takes some of the batch", "slice channels or voxels only")
        start = 0 if start < -size else start
        kept.append((start, TO_THE_END if end >= size else end, axis, stride))
        shape[axis] = taken
    if not kept:
        return data
    names, columns = ("starts", "ends", "axes", "steps"), zip(*kept, strict=True)
    attributes = {name: list(column) for name, column in zip(names, columns, strict=True)}
    if set(attributes["steps"]) == {1}:
        del attributes["steps"]
    if wanted is not None and plain_shape(wanted) != tuple(shape):
        step.fail(f"its output {list(wanted)} is not the slice {shape}", "export it again")
    return step.emit("Slice", [data.name], shape, attributes)


@RULES.lowers("Slice")
def sliced(step: Step) -> Made:
    """Lower slices, which are attributes before version 10."""
    data, rank = step.data(), len(step.shape(0))
    starts, ends = step.integers("starts", 1), step.integers("ends", 2)
    if starts is None or ends is None:
        step.fail("its starts or ends are missing", "export the network again")
    axes = step.integers("axes", 3) or list(range(len(starts)))
    steps = step.integers("steps", 4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        step.fail("its starts, ends, axes and steps differ in number", "export the network again")
    return cut(
        step,
        data,
        list(zip([a % rank for a in axes], starts, ends, steps, strict=True)),
        wanted=step.output_shape(),
    )


@RULES.lowers("Split")
def split(step: Step) -> list[Made | None]:
    """Lower a split into slices; parts that nothing uses are left out."""
    data, shape = step.data(), step.shape(0)
    axis = int(step.attribute("axis", 0)) % len(shape)
    sizes = step.integers("split", 1)
    if sizes is None:
        count = int(step.attribute("num_outputs", len(step.node.outputs)))
        each = -(-shape[axis] // count)
        sizes = [min(each, shape[axis] - i * each) for i in range(count)]
    results: list[Made | None] = []
    begin = 0
    for i, (output, size) in enumerate(zip(step.node.outputs, sizes, strict=True)):
        used = output.uses() or output.is_graph_output()
        ranges = [(axis, begin, begin + size, 1)]
        results.append(cut(step, data, ranges, wanted=step.output_shape(i)) if used else None)
        begin += size
    return results


@RULES.lowers("Gather")
def gather(step: Step) -> Made:
    """Lower a choice of neighbouring channels or voxels: a slice."""
    data, shape = step.data(), step.shape(0)
    axis = int(step.attribute("axis", 0)) % len(shape)
    indices = step.constant(1, "indices")
    assert indices is not None
    chosen = np.atleast_1d(indices) % shape[axis]
    if chosen.ndim != 1 or np.any(np.diff(chosen) != 1):
        step.fail(
            f"it takes {np.array2string(indices, threshold=8)} along axis {axis}",
            "neighbours in their order are possible; reorder with a convolution of 1 x 1 x 1",
        )
    made = cut(step, data, [(axis, int(chosen[0]), int(chosen[-1]) + 1, 1)])
    by = "" if plain_shape(step.output_shape()) == made.shape else step.label
    return Made(made.name, made.shape, by)

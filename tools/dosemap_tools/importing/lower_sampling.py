# SPDX-License-Identifier: Apache-2.0
"""Pools, resizing and padding."""

from __future__ import annotations

import math

import numpy as np

from dosemap_tools.importing.graph_builder import Made, attribute_number
from dosemap_tools.importing.lower_layers import WINDOW_DEFAULTS, window
from dosemap_tools.importing.lower_layout import TO_THE_END, other_axes
from dosemap_tools.importing.lowering import Rules, Step, without_defaults
from dosemap_tools.importing.network import Json

RULES = Rules()

_LARGEST_PATCH = 1024


def _pooled_size(attributes: Json, axis: int, size: int) -> int:
    """Return a pool's size along an axis by the rule of weights/FORMAT.md."""
    before, after = attributes["pads"][axis], attributes["pads"][axis + 3]
    extent = (attributes["kernel_shape"][axis] - 1) * attributes["dilations"][axis] + 1
    stride = attributes["strides"][axis]
    room = size + before + after - extent
    windows = room // stride + 1
    more = attributes["ceil_mode"] and room % stride and windows * stride < size + before
    return windows + bool(more)


@RULES.lowers("MaxPool", "AveragePool")
def pool(step: Step) -> Made:
    """Lower a pool with windows."""
    kind, data = step.node.op_type, step.data()
    attributes = window(step, [int(v) for v in step.attribute("kernel_shape", [])])
    attributes["ceil_mode"] = int(step.attribute("ceil_mode", 0))
    sizes = tuple(_pooled_size(attributes, i, data.shape[2 + i]) for i in range(3))
    if sizes != step.output_shape()[2:]:
        step.fail(
            f"its windows give {list(step.output_shape()[2:])} voxels, not {list(sizes)}: one "
            "begins in the padding at the end",
            "export it without ceil_mode",
        )
    if kind == "MaxPool" and any(indices.uses() for indices in step.node.outputs[1:]):
        step.fail("its indices are used (MaxUnpool)", "go up by ConvTranspose or Resize")
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(step.attribute("count_include_pad", 0))
        if attributes.pop("dilations") != [1, 1, 1]:
            step.fail("its dilations are not 1", "use a convolution with equal weights")
    attributes = without_defaults(attributes, WINDOW_DEFAULTS)
    return step.emit(kind, [data.name], attributes=attributes)


@RULES.lowers("GlobalAveragePool")
def global_average_pool(step: Step) -> Made:
    """Lower the mean of each channel."""
    data = step.data()
    return step.emit("GlobalAveragePool", [data.name], (*data.shape[:2], 1, 1, 1))


@RULES.lowers("GlobalMaxPool")
def global_max_pool(step: Step) -> Made:
    """Lower the maximum of each channel, by one window of the patch's size."""
    data = step.data()
    attributes = {"kernel_shape": list(data.shape[2:])}
    return step.emit("MaxPool", [data.name], (*data.shape[:2], 1, 1, 1), attributes)


# Resize


@RULES.lowers("Upsample")
def upsample(step: Step) -> Made:
    """Lower what Resize was called before version 10."""
    scales = step.attribute("scales")
    scales = step.constant(1, "scales") if scales is None else scales
    return _resized(step, step.attribute("mode", "nearest"), "asymmetric", "floor", scales)


@RULES.lowers("Resize")
def resize(step: Step) -> Made:
    """Lower all versions of Resize that do not sharpen."""
    mode = step.attribute("mode", "nearest")
    if step.opset < 11:
        return _resized(step, mode, "asymmetric", "floor", step.constant(1, "scales"))
    coordinates = step.attribute("coordinate_transformation_mode", "half_pixel")
    nearest = step.attribute("nearest_mode", "round_prefer_floor")
    if step.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        step.fail("it keeps the aspect ratio", "give the scale of each axis")
    scales = step.constant(2, "scales")
    sizes = step.constant(3, "sizes")
    given = scales if scales is not None and scales.size else None
    if given is not None and (axes := step.attribute("axes")) is not None:
        full = np.ones(len(step.shape(0)))
        full[list(axes)] = given
        given = full
    if given is None and (sizes is None or not sizes.size):
        step.fail("it has neither scales nor sizes", "export the network again")
    return _resized(step, mode, coordinates, nearest, given)


def _resized(
    step: Step, mode: str, coordinates: str, nearest: str, scales: np.ndarray | None
) -> Made:
    """Lower a resize to the size that the network's output has; scales: as given, if they are."""
    data, out = step.data(), step.output_shape()
    ratios = np.asarray(out) / np.asarray(data.shape)
    if ratios[0] != 1 or ratios[1] != 1 or len(ratios) != 5:
        step.fail(f"it makes {list(out)} of {list(data.shape)}", "resize the spatial axes only")
    if out == data.shape and (scales is None or np.all(np.asarray(scales) == 1)):
        return other_axes(step)
    if mode not in ("nearest", "linear"):
        step.fail(f"its mode is {mode}", "nearest and linear (trilinear) are possible")
    attributes: Json = {"mode": mode}
    attributes |= _size_attributes(step, data.shape[2:], out[2:], scales)
    effective = attributes.get("scales", list(ratios[2:]))
    if step.attribute("antialias", 0) and min(effective) < 1:
        step.fail("it smooths before it shrinks (antialias)", "shrink by AveragePool or Conv")
    axes = list(zip(data.shape[2:], out[2:], effective, strict=True))
    attributes["coordinate_transformation_mode"] = _coordinates(step, coordinates, axes)
    if mode == "nearest":
        attributes["nearest_mode"] = _nearest_mode(step, nearest, coordinates, axes)
    return step.emit("Resize", [data.name], attributes=attributes)


def _size_attributes(
    step: Step, before: tuple[int, ...], after: tuple[int, ...], scales: np.ndarray | None
) -> Json:
    """Return scales where they give the size exactly, for larger tiles as well; else sizes."""
    given = None if scales is None else [float(s) for s in np.asarray(scales).reshape(-1)[-3:]]
    result = []
    for i, (n, m) in enumerate(zip(before, after, strict=True)):
        ratio = m / n
        multiples = range(n, max(n, _LARGEST_PATCH) + 1, n)
        exact = all(math.floor(k * ratio) == k // n * m for k in multiples)
        if given is not None and abs(given[i] - ratio) > 1e-6 * ratio:
            ratio = attribute_number(given[i])  # 2.1 of 10 voxels gives 21, of 9 voxels 18
            exact = math.floor(n * ratio) == m
            if not exact:
                step.fail(f"its scale {ratio} does not make {m} voxels of {n}", "give sizes")
        if not exact:
            return {"sizes": list(after)}
        result.append(ratio)
    return {"scales": result}


_Axes = list[tuple[int, int, float]]  # size before, size after, scale


def _coordinates(step: Step, mode: str, axes: _Axes) -> str:
    """Return the graph's name for the same coordinates at these sizes."""
    if mode in ("half_pixel", "align_corners", "asymmetric"):
        return mode
    # They differ from half_pixel for a single voxel, and where the scaled size is a fraction.
    if mode == "pytorch_half_pixel" and all(m > 1 or n == 1 for n, m, _ in axes):
        return "half_pixel"
    if mode == "half_pixel_symmetric" and all(abs(n * s - m) < 1e-6 * m for n, m, s in axes):
        return "half_pixel"
    step.fail(
        f"its coordinate_transformation_mode is {mode}",
        "half_pixel, align_corners and asymmetric are possible",
    )


def _nearest_mode(step: Step, mode: str, coordinates: str, axes: _Axes) -> str:
    """Return the graph's name for the same rounding, which differs in halves only."""
    if mode in ("round_prefer_floor", "floor"):
        return mode
    tied = mode != "round_prefer_ceil"
    for n, m, scale in axes:
        x = np.arange(m)
        at = (x + 0.5) / scale - 0.5
        if coordinates == "asymmetric":
            at = x / scale
        elif coordinates == "align_corners":
            at = x * (n - 1) / max(m - 1, 1)
        tied |= bool(np.any(np.abs(at - np.floor(at) - 0.5) < 1e-6))
    if tied:
        step.fail(f"its nearest_mode is {mode}", "round_prefer_floor and floor are possible")
    return "round_prefer_floor"


# Pad


@RULES.lowers("Pad")
def pad(step: Step) -> Made:
    """Lower padding of the spatial axes; negative pads crop."""
    data, mode = step.data(), step.attribute("mode", "constant")
    pads = step.integers("pads", 1)
    axes = step.integers("axes", 3) or list(range(len(data.shape)))
    if pads is None or len(pads) != 2 * len(axes):
        step.fail(f"its pads are {pads} for {len(axes)} axes", "export the network again")
    before, after = [0] * 5, [0] * 5
    for axis, low, high in zip(axes, pads, pads[len(axes) :], strict=False):
        before[axis], after[axis] = low, high
    if before[0] or after[0] or before[1] or after[1]:
        step.fail(
            f"it pads the batch or the channels: {pads}",
            "channels can be added by Concat with zeros times a computed value",
        )
    if mode not in ("constant", "reflect", "edge"):
        step.fail(f"its mode is {mode}", "constant, reflect and edge are possible")
    if not any(before + after):
        return other_axes(step)
    grows = [max(v, 0) for v in before[2:] + after[2:]]
    crops = [max(-v, 0) for v in before[2:] + after[2:]]
    if any(crops):
        if any(grows) and mode != "constant":
            step.fail(f"it pads and crops by {mode}: {pads}", "crop by a slice")
        data = _cropped(step, data, crops, last=not any(grows))
    if not any(grows):
        return data
    attributes: Json = {"pads": grows}
    if mode != "constant":
        attributes["mode"] = mode
    elif value := _pad_value(step):
        attributes["value"] = value
    return step.emit("Pad", [data.name], attributes=attributes)


def _pad_value(step: Step) -> float:
    value = step.constant(2, "value")
    if value is None or not value.size:
        return step.number("value", 0.0)
    number = float(value.reshape(-1)[0])
    if not math.isfinite(number):
        step.fail(f"it pads with {number}", "pad with a number")
    return attribute_number(number)


def _cropped(step: Step, data: Made, crops: list[int], *, last: bool) -> Made:
    axes = [i for i in range(3) if crops[i] or crops[i + 3]]
    attributes = {
        "starts": [crops[i] for i in axes],
        "ends": [-crops[i + 3] or TO_THE_END for i in axes],
        "axes": [i + 2 for i in axes],
    }
    shape = list(data.shape)
    for i in axes:
        shape[i + 2] -= crops[i] + crops[i + 3]
    return step.emit("Slice", [data.name], shape, attributes, part="" if last else "crop")

# SPDX-License-Identifier: Apache-2.0
"""Images and affines for tests; every one from a seed."""

import numpy as np

RAS_AFFINE = np.array([[4.0, 0, 0, -60], [0, 4.0, 0, -50], [0, 0, 5.0, -200], [0, 0, 0, 1]])


def uptake(shape, seed=0):
    """Positive values without any symmetry, so that exchanged or flipped axes show."""
    rng = np.random.default_rng(seed)
    ramp = sum(w * g for w, g in zip((0.7, 1.3, 2.1), np.indices(shape), strict=True))
    return (rng.gamma(1.5, 2.0, shape) + 0.02 * ramp).astype(np.float32)


def stored_as(volume, affine, order, flips):
    """The same image with other axes: stored axis a is `order[a]`, flipped where flips[a]."""
    result = np.transpose(volume, order)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3][:, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            result = np.flip(result, axis)
            new[:3, 3] += new[:3, axis] * (volume.shape[order[axis]] - 1)
            new[:3, axis] *= -1
    return np.ascontiguousarray(result), new


def back_from(volume, order, flips):
    """Undo `stored_as`."""
    flipped = np.flip(volume, [a for a, flip in enumerate(flips) if flip])
    return np.transpose(flipped, np.argsort(order))


ORIENTATIONS = [
    (order, flips)
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    for flips in np.ndindex(2, 2, 2)
]

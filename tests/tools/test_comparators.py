# SPDX-License-Identifier: Apache-2.0
"""The comparators of the other tests reject what they must reject."""

import numpy as np
import pytest
from images import RAS_AFFINE, uptake
from program import assert_close, assert_dose

REFERENCE = uptake((5, 4, 3))
PEAK = np.equal(REFERENCE, REFERENCE.max())


def spoiled():
    yield "nan", np.where(np.indices(REFERENCE.shape)[0] == 2, np.nan, REFERENCE)
    yield "infinity", np.where(PEAK, np.inf, REFERENCE)
    yield "zero", np.zeros_like(REFERENCE)
    yield "sign", -REFERENCE
    yield "flip", REFERENCE[::-1]
    yield "one voxel", REFERENCE + 0.01 * PEAK
    yield "factor", REFERENCE * np.float32(1.001)


@pytest.mark.parametrize(("name", "result"), list(spoiled()), ids=[n for n, _ in spoiled()])
def test_rejects(name, result):
    with pytest.raises(AssertionError):
        assert_close(result, REFERENCE, 1e-5)
    with pytest.raises(AssertionError):
        assert_dose(result, REFERENCE)


def test_rejects_another_shape_and_a_reference_of_zero():
    with pytest.raises(AssertionError):
        assert_close(REFERENCE[1:], REFERENCE, 1e-5)
    with pytest.raises(AssertionError, match="zero everywhere"):
        assert_close(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), 1e-5)


def test_accepts_rounding():
    assert_close(REFERENCE * np.float32(1 + 3e-7), REFERENCE, 1e-5)
    assert_dose(REFERENCE * np.float32(1 + 3e-7), REFERENCE)
    assert_dose(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)))


def test_images_have_no_symmetry():
    cube = uptake((6, 6, 6))
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        with pytest.raises(AssertionError):
            assert_close(np.transpose(cube, order), cube, 2e-2)
    assert np.linalg.det(RAS_AFFINE[:3, :3]) > 0

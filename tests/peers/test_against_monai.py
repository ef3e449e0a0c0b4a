# SPDX-License-Identifier: Apache-2.0
"""Random generators through dosemap and through PyTorch + MONAI, voxel by voxel."""

import numpy as np
import pytest

pytest.importorskip("monai", reason="PyTorch and MONAI are missing: peers are not compared")

from images import RAS_AFFINE, back_from, stored_as, uptake
from make_test_models import random_generator, write_module
from peer import sliding_window
from program import assert_close, predict, relative_l2
from torch import nn

FLOAT32, BF16 = 1e-5, 2e-2


def options(tile, overlap, blend, precision="float32", threads=2):
    return (
        *("--tile", ",".join(map(str, tile)), "--overlap", overlap, "--blend", blend),
        *("--skip-air", "off", "--precision", precision, "--threads", threads, "--force-tile"),
    )


# Pairs of all the values, not all combinations. Sizes: smaller than the tile on one, two, three
# axes; equal to it; one more; primes.
CASES = [
    ("batch", (37, 41, 33), (32, 32, 32), 0.5, "gaussian"),
    ("batch", (32, 32, 32), (32, 32, 32), 0.25, "constant"),
    ("batch", (47, 30, 53), (32, 32, 32), 0.75, "constant"),
    ("batch", (61, 50, 67), (48, 48, 48), 0.25, "gaussian"),
    ("batch", (19, 7, 1), (32, 32, 32), 0.5, "gaussian"),
    ("batch", (70, 33, 64), (64, 64, 64), 0.0, "gaussian"),
    ("batch", (65, 40, 31), (32, 48, 64), 0.5, "constant"),
    ("instance", (37, 29, 43), (32, 32, 32), 0.25, "gaussian"),
    ("instance", (33, 48, 70), (48, 48, 48), 0.0, "constant"),
    ("instance", (17, 33, 40), (32, 32, 32), 0.5, "constant"),
    ("group", (41, 31, 33), (32, 32, 32), 0.0, "constant"),
    ("group", (59, 64, 20), (64, 64, 64), 0.5, "gaussian"),
    ("group", (32, 35, 47), (32, 32, 32), 0.75, "gaussian"),
    ("dilated", (40, 33, 36), (32, 32, 32), 0.25, "constant"),
    ("dilated", (50, 49, 11), (48, 48, 48), 0.5, "gaussian"),
    ("strided", (35, 40, 33), (32, 32, 32), 0.5, "gaussian"),
    ("strided", (23, 66, 64), (64, 64, 64), 0.75, "constant"),
]


@pytest.mark.parametrize(("kind", "shape", "tile", "overlap", "blend"), CASES)
def test_generator(tmp_path, kind, shape, tile, overlap, blend):
    module, volume = random_generator(kind), uptake(shape)
    write_module(tmp_path / "m.safetensors.zst", module)
    reference = sliding_window(module, volume, tile, overlap, blend)
    chosen = options(tile, overlap, blend)
    dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
    assert_close(dose, reference, FLOAT32)

    chosen = options(tile, overlap, blend, "bf16")
    dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
    error, limit = relative_l2(dose, reference), BF16
    assert error > FLOAT32, "bf16 was not used"
    if error > limit:
        # In networks as narrow as these, rounding averages out little, least of all through
        # InstanceNorm: then no further from float32 than PyTorch's own bfloat16.
        half = module.bfloat16()
        peer = sliding_window(lambda x: half(x.bfloat16()).float(), volume, tile, overlap, blend)
        limit = relative_l2(peer, reference)
        assert limit < 2 * BF16
    assert error <= limit


@pytest.mark.parametrize("kind", ["dosegan-16", "dosegan-16-instance", "dosegan-16-group"])
def test_full_width(tmp_path, kind):
    module, volume = random_generator(kind, seed=3), uptake((45, 33, 40), seed=3)
    write_module(tmp_path / "m.safetensors.zst", module)
    tile = (32, 32, 32)
    reference = sliding_window(module, volume, tile, 0.5, "gaussian")
    for precision, tolerance in (("float32", FLOAT32), ("bf16", BF16)):
        chosen = options(tile, 0.5, "gaussian", precision)
        dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
        assert_close(dose, reference, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("F16", 1e-3), ("BF16", 1e-2)])
def test_weights_stored_in_half_precision(tmp_path, dtype, tolerance):
    """Against PyTorch with the same rounded weights; and the rounding must have happened."""
    import torch

    module, volume = random_generator("batch"), uptake((32, 32, 32))
    exact = sliding_window(module, volume, (32, 32, 32), 0, "constant")
    write_module(tmp_path / "m.safetensors.zst", module, dtype=dtype)
    half = torch.float16 if dtype == "F16" else torch.bfloat16
    rounded = {
        k: v.to(half).float() if v.is_floating_point() else v
        for k, v in module.state_dict().items()
    }
    module.load_state_dict(rounded)
    reference = sliding_window(module, volume, (32, 32, 32), 0, "constant")
    chosen = options((32, 32, 32), 0, "constant")
    dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
    assert_close(dose, reference, FLOAT32)
    assert FLOAT32 < relative_l2(dose, exact) < 10 * tolerance


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (0, 0, 0)), ((0, 1, 2), (1, 1, 0)), ((2, 0, 1), (0, 1, 1))]
)
def test_axes_and_orientation(tmp_path, axes, order, flips):
    """An image stored any way round gives the result of the RAS image, stored that way round."""
    module, volume = random_generator("strided", seed=5), uptake((38, 33, 45), seed=5)
    write_module(tmp_path / "m.safetensors.zst", module, spatial_axes=axes)
    tile = (32, 40, 48)
    reference = sliding_window(module, volume, tile, 0.5, "gaussian", axes)
    stored, affine = stored_as(volume, RAS_AFFINE, order, flips)
    chosen = options(tile, 0.5, "gaussian")
    dose = predict(tmp_path, stored, affine, tmp_path / "m.safetensors.zst", *chosen)
    assert_close(back_from(dose, order, flips), reference, FLOAT32)


def test_orientation_of_the_model(tmp_path):
    """An LPS network sees the image flipped along x and y; a `stored` one as it is in the file."""
    module, volume = random_generator("batch", seed=6), uptake((40, 35, 32), seed=6)
    tile = (32, 32, 32)
    flipped = np.flip(volume, (0, 1))
    lps = np.flip(sliding_window(module, flipped, tile, 0.5, "gaussian"), (0, 1))
    stored = sliding_window(module, volume, tile, 0.5, "gaussian")
    assert relative_l2(lps, stored) > 1e-2
    lpi_affine = RAS_AFFINE @ np.diag([-1.0, 1.0, -1.0, 1.0])
    for orientation, affine, reference in (
        ("LPS", RAS_AFFINE, lps),
        ("stored", lpi_affine, stored),
    ):
        write_module(tmp_path / "m.safetensors.zst", module, orientation=orientation)
        chosen = options(tile, 0.5, "gaussian")
        dose = predict(tmp_path, volume, affine, tmp_path / "m.safetensors.zst", *chosen)
        assert_close(dose, reference, FLOAT32)


def test_intensity_transforms(tmp_path):
    """Into the network before the padding, out of it after the stitching, as MONAI users do."""
    steps_in = [{"clip": [0.5, 9.0]}, {"log1p": True}, {"scale": 1.5, "offset": -0.7}]
    steps_out = [{"scale": 0.05, "offset": 0.3}, {"square": True}, {"sqrt": True}, {"expm1": True}]
    module, volume = random_generator("batch", seed=7), uptake((40, 20, 33), seed=7)
    write_module(
        tmp_path / "m.safetensors.zst",
        module,
        input_intensity=steps_in,
        output_intensity=steps_out,
    )
    seen = (1.5 * np.log1p(np.clip(volume, 0.5, 9.0)) - 0.7).astype(np.float32)
    raw = sliding_window(module, seen, (32, 32, 32), 0.5, "gaussian").astype(np.float64)
    reference = np.expm1(np.abs(0.05 * raw + 0.3))
    chosen = options((32, 32, 32), 0.5, "gaussian")
    dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
    assert_close(dose, reference, FLOAT32)


def test_suv_network_does_not_see_the_weight(tmp_path):
    module, volume = random_generator("batch", seed=8), uptake((32, 32, 32), seed=8)
    for quantity, factor in (("suv", 1.0), ("uptake", 78.7 / 50.0)):
        write_module(tmp_path / "m.safetensors.zst", module, quantity=quantity)
        seen = (volume * factor).astype(np.float32)
        reference = sliding_window(module, seen, (32, 32, 32), 0, "constant")
        chosen = (*options((32, 32, 32), 0, "constant"), "--units", "suv", "--body-weight", 50)
        dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
        assert_close(dose, reference, FLOAT32)


def interpolation_matrix(n_target, n_source, scale, offset):
    """Linear interpolation at source index scale*t + offset, clamped at the edges."""
    at = np.clip(scale * np.arange(n_target) + offset, 0, n_source - 1)
    low = np.minimum(np.floor(at).astype(int), max(n_source - 2, 0))
    matrix = np.zeros((n_target, n_source))
    matrix[np.arange(n_target), low] += 1 - (at - low)
    matrix[np.arange(n_target), np.minimum(low + 1, n_source - 1)] += at - low
    return matrix


def resample(volume, shape, scales):
    """Trilinear resampling between two grids with one centre; scale in source voxels."""
    for axis, (n, scale) in enumerate(zip(shape, scales, strict=True)):
        source = volume.shape[axis]
        matrix = interpolation_matrix(n, source, scale, ((source - 1) - scale * (n - 1)) / 2)
        volume = np.moveaxis(np.tensordot(matrix, volume, (1, axis)), 0, axis)
    return volume


@pytest.mark.parametrize("voxel_mm", [(3.3, 3.3, 4.1), (5.0, 4.0, 6.5)])
def test_model_with_a_voxel_size(tmp_path, voxel_mm):
    """Onto the network's grid (centred on the image), through MONAI, and back."""
    module, volume = random_generator("batch", seed=9), uptake((38, 33, 29), seed=9)
    write_module(tmp_path / "m.safetensors.zst", module, voxel_size_mm=voxel_mm)
    spacing = np.linalg.norm(RAS_AFFINE[:3, :3], axis=0)
    scales = np.array(voxel_mm) / spacing
    shape = [int(np.ceil(n / s - 1e-3)) for n, s in zip(volume.shape, scales, strict=True)]
    seen = resample(volume.astype(np.float64), shape, scales).astype(np.float32)
    made = sliding_window(module, seen, (32, 32, 32), 0.5, "gaussian").astype(np.float64)
    reference = resample(made, volume.shape, 1 / scales)
    chosen = options((32, 32, 32), 0.5, "gaussian")
    dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
    assert_close(dose, reference, FLOAT32)


def test_coarse_model_averages_the_fine_image(tmp_path):
    """Three times the voxel size: noise is averaged, a constant and a ramp survive."""
    write_module(
        tmp_path / "m.safetensors.zst", nn.Sequential(nn.Identity()), voxel_size_mm=(12.0,) * 3
    )
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    ramp = (10 + np.arange(48)[:, None, None] + np.zeros((48, 48, 48))).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 1, ramp.shape).astype(np.float32)
    chosen = options((32, 32, 32), 0, "constant")
    dose = predict(tmp_path, ramp + noise, affine, tmp_path / "m.safetensors.zst", *chosen)
    inner = (slice(6, -6),) * 3
    rest = (dose - ramp)[inner]
    assert abs(rest.mean()) < 0.02
    assert rest.std() < 0.35  # 27 voxels averaged: 0.19, less by the interpolation back


def test_threads_do_not_change_a_bit(tmp_path):
    module, volume = random_generator("group", seed=10), uptake((50, 41, 33), seed=10)
    write_module(tmp_path / "m.safetensors.zst", module)
    results = [
        predict(
            tmp_path,
            volume,
            RAS_AFFINE,
            tmp_path / "m.safetensors.zst",
            *options((32, 32, 32), 0.5, "gaussian", precision, threads),
        ).tobytes()
        for precision in ("float32", "bf16")
        for threads in (1, 2, 3)
    ]
    assert len(set(results[:3])) == 1
    assert len(set(results[3:])) == 1

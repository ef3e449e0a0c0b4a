# SPDX-License-Identifier: Apache-2.0
"""Window starts and importance maps of MONAI, for tests/unit/predict/test_tiling.c.

    python tests/golden/make_monai_tiling.py > tests/golden/monai_tiling.txt

made with MONAI 1.6.1. Lines:
    starts VOLUME TILE OVERLAP N START...            (one axis; starts count from the padding)
    weight TILE_X TILE_Y TILE_Z X Y Z VALUE          (Gaussian importance of one voxel of a tile)
"""

import numpy as np
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval

SIZES = (1, 2, 7, 16, 31, 32, 33, 47, 64, 65, 200, 331)
TILES = (2, 16, 32, 80)
OVERLAPS = (0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9)


def starts() -> None:
    for volume in SIZES:
        for tile in TILES:
            for overlap in OVERLAPS:
                size, roi = (max(volume, tile),), (tile,)
                interval = _get_scan_interval(size, roi, 1, (overlap,))
                found = [s[0].start for s in dense_patch_slices(size, roi, interval)]
                print("starts", volume, tile, overlap, len(found), *found)


def weights() -> None:
    rng = np.random.default_rng(0)
    for tile in ((1, 1, 1), (32, 32, 32), (16, 48, 80), (7, 2, 33), (64, 64, 64)):
        values = compute_importance_map(tile, mode="gaussian").numpy()
        corners = [(0, 0, 0), tuple(n - 1 for n in tile), tuple(n // 2 for n in tile)]
        for at in corners + [tuple(rng.integers(0, n) for n in tile) for _ in range(40)]:
            print("weight", *tile, *(int(i) for i in at), f"{values[at]:.9g}")


starts()
weights()
